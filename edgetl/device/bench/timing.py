"""Timed loops, with nothing but the measured work between two clock readings."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, Protocol

from edgetl.device.bench.protocol import BenchProtocol

if TYPE_CHECKING:
    from edgetl.device.bench.backend import Stage

Clock = Callable[[], int]
Timestamps = Sequence[Sequence[int]]
"""For each inference the clock at its start and after each stage, ns."""


class Monitor(Protocol):
    """Readings before and after the timed part, without warm-up."""

    def start(self) -> None:
        """Start the timed part."""

    def stop(self) -> None:
        """End the timed part."""


@dataclass(frozen=True)
class TimedBlock:
    """Latencies of one workload in one process."""

    latencies_ns: list[int]
    stages_ns: dict[str, list[int]]
    """Stage latencies by name; empty for a single stage."""
    steady: bool
    """Whether warm-up ended with two windows that agree."""
    warmup_medians_ns: list[float]
    """Median latency of each warm-up window."""
    waited: int = 0
    """Number of paced arrivals that had to wait for the previous inference."""
    slices: list[int] = field(default_factory=list)
    """Number of latencies in each slice."""


class BlockTimer:
    """Timer of one workload's block, run slice by slice so that processes can take turns.

    Every input goes through all stages, each called with the previous one's result; the inputs
    rotate.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        inputs: Sequence[Any],
        protocol: BenchProtocol,
        monitor: Monitor | None = None,
        clock: Clock = perf_counter_ns,
    ) -> None:
        self._stages = stages
        self._inputs = inputs
        self._protocol = protocol
        self._monitor = monitor
        self._clock = clock
        self._timestamps: list[Sequence[int]] = []
        self._slice_lengths: list[int] = []
        self._warmup_medians_ns: list[float] = []
        self._steady = False

    def warm_up(self) -> None:
        """Run until the medians of two windows agree, or the protocol's time is over."""
        protocol = self._protocol
        clock = self._clock
        medians = self._warmup_medians_ns
        deadline = clock() + int(protocol.warmup_seconds * 1e9)
        while (
            not self._steady
            and len(medians) < protocol.max_windows
            and (len(medians) < 2 or clock() < deadline)
        ):
            window = run_for(
                self._stages, self._inputs, protocol.window_seconds, protocol.window_runs, clock
            )
            medians.append(median(compute_latencies(window)))
            self._steady = (
                len(medians) > 1
                and abs(medians[-1] - medians[-2]) < protocol.steady_within * medians[-2]
            )

    def run_slice(self) -> None:
        """Measure one slice, after a few untimed runs that refill the caches."""
        protocol = self._protocol
        offset = len(self._timestamps) % len(self._inputs)
        inputs = [*self._inputs[offset:], *self._inputs[:offset]]
        if self._slice_lengths:
            run_for(self._stages, inputs, 0, protocol.slice_warm_runs, self._clock)
        if self._monitor is not None:
            self._monitor.start()
        seconds = protocol.block_seconds / protocol.slices
        runs = -(-protocol.block_runs // protocol.slices)
        timestamps = run_for(self._stages, inputs, seconds, runs, self._clock)
        if self._monitor is not None:
            self._monitor.stop()
        self._timestamps += timestamps
        self._slice_lengths.append(len(timestamps))

    def to_block(self) -> TimedBlock:
        """Return the measurements so far."""
        names = [name for name, _ in self._stages] if len(self._stages) > 1 else []
        return TimedBlock(
            compute_latencies(self._timestamps),
            _compute_stage_latencies(names, self._timestamps),
            self._steady,
            self._warmup_medians_ns,
            slices=list(self._slice_lengths),
        )


def measure(
    stages: Sequence[Stage],
    inputs: Sequence[Any],
    protocol: BenchProtocol,
    monitor: Monitor | None = None,
    clock: Clock = perf_counter_ns,
) -> TimedBlock:
    """Measure a complete block: warm-up, then all slices."""
    timer = BlockTimer(stages, inputs, protocol, monitor, clock)
    timer.warm_up()
    for _ in range(protocol.slices):
        timer.run_slice()
    return timer.to_block()


def measure_paced(
    stages: Sequence[Stage],
    inputs: Sequence[Any],
    protocol: BenchProtocol,
    rate: float,
    monitor: Monitor | None = None,
    clock: Clock = perf_counter_ns,
    sleep: Callable[[float], None] = time.sleep,
) -> TimedBlock:
    """Measure inputs that arrive `rate` times a second; the process sleeps in between.

    A latency runs from the arrival to the result. An arrival during the previous inference waits,
    and the wait counts: otherwise a runtime that cannot keep up would look fast because it gets
    fewer inputs (coordinated omission; Tene, 2013).
    """
    run_stages = [run_stage for _, run_stage in stages]
    interval_ns = 1e9 / rate
    runs = max(protocol.paced_runs, int(protocol.paced_seconds * rate))
    timestamps: list[tuple[int, ...]] = []
    waited = 0
    if monitor is not None:
        monitor.start()
    start = clock()
    deadline = start + int(protocol.paced_seconds_at_most * 1e9)
    for index in range(runs):
        due = start + int(index * interval_ns)
        now = clock()
        if now >= deadline and timestamps:
            break
        if now < due:
            sleep((due - now) / 1e9)
            # The timer's delay is not the model's latency: the input arrives when sleep returns.
            due = now = clock()
        elif index:
            waited += 1
        value = inputs[index % len(inputs)]
        times = [due, now]
        for run_stage in run_stages:
            value = run_stage(value)
            times.append(clock())
        timestamps.append(tuple(times))
    if monitor is not None:
        monitor.stop()
    names = ["wait", *(name for name, _ in stages)] if len(stages) > 1 else []
    return TimedBlock(
        latencies_ns=compute_latencies(timestamps),
        stages_ns=_compute_stage_latencies(names, timestamps),
        steady=True,
        warmup_medians_ns=[],
        waited=waited,
    )


def run_for(
    stages: Sequence[Stage],
    inputs: Sequence[Any],
    seconds: float,
    runs: int,
    clock: Clock = perf_counter_ns,
) -> Timestamps:
    """Run without a pause for at least `seconds` and at least `runs` inferences."""
    loop = _run_single_stage if len(stages) == 1 else _run_all_stages
    return loop(stages, inputs, seconds, runs, clock)


def compute_latencies(timestamps: Timestamps) -> list[int]:
    """Return the latency of each inference, ns."""
    return [times[-1] - times[0] for times in timestamps]


def _compute_stage_latencies(names: Sequence[str], timestamps: Timestamps) -> dict[str, list[int]]:
    return {
        name: [times[index + 1] - times[index] for times in timestamps]
        for index, name in enumerate(names)
    }


def _run_single_stage(
    stages: Sequence[Stage], inputs: Sequence[Any], seconds: float, runs: int, clock: Clock
) -> Timestamps:
    run_stage = stages[0][1]
    count = len(inputs)
    done = 0
    timestamps: list[tuple[int, ...]] = []
    deadline = clock() + int(seconds * 1e9)
    while True:
        value = inputs[done % count]
        start = clock()
        run_stage(value)
        end = clock()
        timestamps.append((start, end))
        done += 1
        if end >= deadline and done >= runs:
            return timestamps


def _run_all_stages(
    stages: Sequence[Stage], inputs: Sequence[Any], seconds: float, runs: int, clock: Clock
) -> Timestamps:
    run_stages = [run_stage for _, run_stage in stages]
    count = len(inputs)
    done = 0
    timestamps: list[tuple[int, ...]] = []
    deadline = clock() + int(seconds * 1e9)
    while True:
        value = inputs[done % count]
        times = [clock()]
        for run_stage in run_stages:
            value = run_stage(value)
            times.append(clock())
        timestamps.append(tuple(times))
        done += 1
        if times[-1] >= deadline and done >= runs:
            return timestamps

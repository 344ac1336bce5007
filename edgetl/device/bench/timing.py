"""The timed loops. Nothing but the clock stands between two readings of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, Protocol

from edgetl.device.bench.protocol import BenchProtocol
from edgetl.device.hardware.energy import EnergyMeter
from edgetl.device.hardware.memory import resident_memory_bytes
from edgetl.device.hardware.nvml import (
    GpuReader,
    first_cuda_device,
    open_nvml,
    read_gpu_info,
    read_gpu_states,
)

if TYPE_CHECKING:
    from edgetl.device.bench.backend import Stage


class BlockMonitor:
    """Energy and growth of memory of one block, over all its slices."""

    def __init__(self, meter: EnergyMeter) -> None:
        self._meter = meter
        self._initial_memory_bytes: int | None = None
        self._slice_count = 0
        self.memory_growth_bytes: int | None = None
        self.energy_j: dict[str, float] = {}

    def start(self) -> None:
        """A slice begins; growth counts from the first one."""
        if self._slice_count == 0:
            self._initial_memory_bytes = resident_memory_bytes()
        self._meter.start()

    def stop(self) -> None:
        """It has ended: its energy adds up."""
        used = self._meter.stop()
        # A counter that failed in one slice has not seen all images: it says nothing about the block.
        known = used if self._slice_count == 0 else self.energy_j.keys() & used.keys()
        self.energy_j = {source: self.energy_j.get(source, 0.0) + used[source] for source in known}
        self._slice_count += 1
        held = resident_memory_bytes()
        self.memory_growth_bytes = (
            None
            if held is None or self._initial_memory_bytes is None
            else held - self._initial_memory_bytes
        )


class GpuMonitor:
    """State of the GPU that CUDA programs use, read right after slices, while its clocks are still those of the work."""

    def __init__(self, reader: GpuReader | None = None) -> None:
        """Find the GPU.

        Args:
            reader: reads the GPUs; None takes NVML.
        """
        self._reader = reader or open_nvml()
        gpus = read_gpu_info(self._reader).get("gpus", [])
        self._gpu_index = first_cuda_device([gpu["uuid"] for gpu in gpus])
        self._readings: list[dict[str, Any]] = []

    def read(self) -> None:
        """Take one reading; do nothing without NVML."""
        states = read_gpu_states(self._reader)
        if self._gpu_index < len(states):
            self._readings.append(states[self._gpu_index])

    def summarize(self) -> dict[str, Any]:
        """Return the readings so far in one object; empty without any.

        `sm_clocks_mhz` are in the order of the readings, `throttle_reasons` any reading's, and of
        temperature, power and memory the largest; `index` is NVML's.
        """
        if not self._readings:
            return {}
        peaks = ("temperature_c", "power_w", "memory_used_bytes")
        reasons = {
            reason for reading in self._readings for reason in reading["throttle_reasons"] or ()
        }
        return {
            "index": self._gpu_index,
            "sm_clocks_mhz": _non_null_values(self._readings, "sm_clock_mhz"),
            "memory_clocks_mhz": _non_null_values(self._readings, "memory_clock_mhz"),
            "max_sm_clock_mhz": self._readings[0]["max_sm_clock_mhz"],
            "throttle_reasons": sorted(reasons),
            **{name: max(_non_null_values(self._readings, name), default=None) for name in peaks},
        }


def _non_null_values(readings: list[dict[str, Any]], name: str) -> list[Any]:
    return [reading[name] for reading in readings if reading[name] is not None]


Clock = Callable[[], int]
Timestamps = Sequence[Sequence[int]]
"""For each run the clock at its start and after each stage, ns."""


class Monitor(Protocol):
    """Something read before and after the timed part, warm-up left out."""

    def start(self) -> None:
        """The timed part begins."""

    def stop(self) -> None:
        """It has ended."""


@dataclass(frozen=True)
class TimedBlock:
    """What one stream took in one process."""

    latencies_ns: list[int]
    stages_ns: dict[str, list[int]]
    steady: bool
    warmup_medians_ns: list[float]
    waited: int = 0
    """Paced arrivals that found the one before still being answered."""
    slices: list[int] = field(default_factory=list)
    """How many of the latencies each slice holds."""


class BlockTimer:
    """A block of one stream, measured slice by slice, so that other processes can take turns with it.

    Every input goes through all stages, each fed with what the one before returned; the inputs take turns.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        inputs: Sequence[Any],
        protocol: BenchProtocol,
        watch: Monitor | None = None,
        clock: Clock = perf_counter_ns,
    ) -> None:
        self._stages, self._inputs, self._protocol, self._monitor, self._clock = (
            stages,
            inputs,
            protocol,
            watch,
            clock,
        )
        self._timestamps: list[Sequence[int]] = []
        self._slice_lengths: list[int] = []
        self._warmup_medians_ns: list[float] = []
        self._steady = False

    def warm_up(self) -> None:
        """Run until two windows agree, or for as long as the protocol allows."""
        protocol, medians, clock = self._protocol, self._warmup_medians_ns, self._clock
        give_up = clock() + int(protocol.warmup_seconds * 1e9)
        while (
            not self._steady
            and len(medians) < protocol.max_windows
            and (len(medians) < 2 or clock() < give_up)
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
        """Measure one slice; a few runs before it bring back into the caches what others have taken since the last."""
        protocol, turned = self._protocol, len(self._timestamps) % len(self._inputs)
        inputs = [*self._inputs[turned:], *self._inputs[:turned]]
        if self._slice_lengths:
            run_for(self._stages, inputs, 0, protocol.slice_warm_runs, self._clock)
        if self._monitor is not None:
            self._monitor.start()
        share = protocol.slices
        marks = run_for(
            self._stages,
            inputs,
            protocol.block_seconds / share,
            -(-protocol.block_runs // share),
            self._clock,
        )
        if self._monitor is not None:
            self._monitor.stop()
        self._timestamps += marks
        self._slice_lengths.append(len(marks))

    def to_block(self) -> TimedBlock:
        """What was measured so far."""
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
    watch: Monitor | None = None,
    clock: Clock = perf_counter_ns,
) -> TimedBlock:
    """A whole block at once: warm-up, then all slices."""
    measurement = BlockTimer(stages, inputs, protocol, watch, clock)
    measurement.warm_up()
    for _ in range(protocol.slices):
        measurement.run_slice()
    return measurement.to_block()


def measure_paced(
    stages: Sequence[Stage],
    inputs: Sequence[Any],
    protocol: BenchProtocol,
    rate: float,
    watch: Monitor | None = None,
    clock: Clock = perf_counter_ns,
    sleep: Callable[[float], None] = time.sleep,
) -> TimedBlock:
    """Inputs arrive `rate` times a second; between them the process sleeps, as a device waits for its camera.

    A latency runs from the arrival to the answer. An arrival that finds the one before still being answered waits, and its waiting
    counts: a runtime that cannot keep up must not look fast because it was asked less often (coordinated omission; Tene, 2013).
    """
    steps, count = [step for _, step in stages], len(inputs)
    interval = 1e9 / rate
    runs = max(protocol.paced_runs, int(protocol.paced_seconds * rate))
    marks: list[tuple[int, ...]] = []
    waited = 0
    if watch is not None:
        watch.start()
    began = clock()
    stop = began + int(protocol.paced_seconds_at_most * 1e9)
    for number in range(runs):
        due = began + int(number * interval)
        now = clock()
        if now >= stop and marks:
            break
        if now < due:
            sleep((due - now) / 1e9)
            # The timer's own delay is no latency of the model's: the input arrives when the process wakes.
            due = now = clock()
        elif number:
            waited += 1
        value = inputs[number % count]
        passed = [due, now]
        for step in steps:
            value = step(value)
            passed.append(clock())
        marks.append(tuple(passed))
    if watch is not None:
        watch.stop()
    names = ["wait", *(name for name, _ in stages)] if len(stages) > 1 else []
    return TimedBlock(
        compute_latencies(marks), _compute_stage_latencies(names, marks), True, [], waited
    )


def run_for(
    stages: Sequence[Stage],
    inputs: Sequence[Any],
    seconds: float,
    runs: int,
    clock: Clock = perf_counter_ns,
) -> Timestamps:
    """Run without a pause for at least `seconds` and `runs`."""
    timed = _run_single_stage if len(stages) == 1 else _run_all_stages
    return timed(stages, inputs, seconds, runs, clock)


def compute_latencies(marks: Timestamps) -> list[int]:
    """Each run's latency, ns."""
    return [mark[-1] - mark[0] for mark in marks]


def _compute_stage_latencies(names: Sequence[str], marks: Timestamps) -> dict[str, list[int]]:
    return {
        name: [mark[index + 1] - mark[index] for mark in marks] for index, name in enumerate(names)
    }


def _run_single_stage(
    stages: Sequence[Stage], inputs: Sequence[Any], seconds: float, runs: int, clock: Clock
) -> Timestamps:
    step, count, done = stages[0][1], len(inputs), 0
    marks: list[tuple[int, ...]] = []
    stop = clock() + int(seconds * 1e9)
    while True:
        given = inputs[done % count]
        start = clock()
        step(given)
        end = clock()
        marks.append((start, end))
        done += 1
        if end >= stop and done >= runs:
            return marks


def _run_all_stages(
    stages: Sequence[Stage], inputs: Sequence[Any], seconds: float, runs: int, clock: Clock
) -> Timestamps:
    steps, count, done = [step for _, step in stages], len(inputs), 0
    marks: list[tuple[int, ...]] = []
    stop = clock() + int(seconds * 1e9)
    while True:
        value = inputs[done % count]
        passed = [clock()]
        for step in steps:
            value = step(value)
            passed.append(clock())
        marks.append(tuple(passed))
        done += 1
        if passed[-1] >= stop and done >= runs:
            return marks

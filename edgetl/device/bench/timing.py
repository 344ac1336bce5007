"""The timed loops. Nothing but the clock stands between two readings of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter_ns
from typing import Any

from edgetl.device.bench.protocol import BenchProtocol

Stage = tuple[str, Callable[[Any], Any]]
Clock = Callable[[], int]


@dataclass(frozen=True)
class Block:
    """What one scope took in one process."""

    latencies_ns: list[int]
    stages_ns: dict[str, list[int]]
    steady: bool
    warmup_medians_ns: list[float]


def measure(stages: Sequence[Stage], inputs: Sequence[Any], protocol: BenchProtocol, clock: Clock = perf_counter_ns) -> Block:
    """Warm up until steady, then measure; every input goes through all stages, the inputs take turns.

    Args:
        stages: named steps, each fed with what the one before returned.
        inputs: what the first stage is fed with.
    """
    timed = _one_stage if len(stages) == 1 else _several_stages
    medians: list[float] = []
    steady = False
    give_up = clock() + int(protocol.warmup_seconds * 1e9)
    while not steady and len(medians) < protocol.max_windows and (len(medians) < 2 or clock() < give_up):
        window = timed(stages, inputs, protocol.window_seconds, protocol.window_runs, clock)
        medians.append(median(_totals(window)))
        steady = len(medians) > 1 and abs(medians[-1] - medians[-2]) < protocol.steady_within * medians[-2]
    marks = timed(stages, inputs, protocol.block_seconds, protocol.block_runs, clock)
    names = [name for name, _ in stages] if len(stages) > 1 else []
    parts = {name: [mark[index + 1] - mark[index] for mark in marks] for index, name in enumerate(names)}
    return Block(_totals(marks), parts, steady, medians)


def _totals(marks: Sequence[Sequence[int]]) -> list[int]:
    return [mark[-1] - mark[0] for mark in marks]


def _one_stage(stages: Sequence[Stage], inputs: Sequence[Any], seconds: float, runs: int, clock: Clock) -> list[tuple[int, ...]]:
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


def _several_stages(stages: Sequence[Stage], inputs: Sequence[Any], seconds: float, runs: int, clock: Clock) -> list[tuple[int, ...]]:
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

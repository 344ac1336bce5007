"""Rounds in random order: fresh processes, of which one works at a time."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from operator import methodcaller
from pathlib import Path
from resource import RUSAGE_CHILDREN, RUSAGE_SELF, getrusage
from typing import Any

from edgetl.core.artifacts.bench import Noise
from edgetl.core.artifacts.bench_rows import BlockResult, ColdStart, relative_spread
from edgetl.core.errors import BenchError, EdgetlError
from edgetl.device.bench.gate import GatedCase
from edgetl.device.bench.job import Workload
from edgetl.device.bench.worker_process import Worker
from edgetl.device.hardware.memory import free_memory_bytes
from edgetl.device.hardware.noise import assess_noise
from edgetl.device.hardware.state import read_device_state

BenchProgress = Callable[[int, int, str], None]
"""(blocks done, blocks in all, what comes next)."""
_MAX_LIVE_PROCESSES = 8
_MAX_MEMORY_SHARE = 0.7
_DEFAULT_PROCESS_MEMORY_BYTES = 2**30


class RoundRunner:
    """What has been measured so far; an interruption keeps all of it but the group of processes that it ended.

    In a round every contender gets a fresh process. Those that will be compared are kept alive together and take turns, slice by slice: on
    machines that change their speed within seconds, only neighbours in time can be told apart. Those that have no turn sleep.
    """

    def __init__(self) -> None:
        self.case_order: list[tuple[str, ...]] = []
        """The names of each round in the order in which they were started; the last round may be unfinished."""
        self.rounds_by_row: dict[str, list[BlockResult]] = {}
        """Row id to its rounds."""
        self.failures: dict[str, EdgetlError | OSError] = {}
        """Names of those that could not go on, with their last words; they sat out the rounds that followed."""

    def measure(
        self,
        contenders: Sequence[GatedCase],
        count: int,
        seed: int,
        folder: Path,
        progress: BenchProgress,
    ) -> None:
        """Measure `count` rounds.

        Raises:
            BenchError: not one ONNX Runtime contender can go on.
        """
        generator = random.Random(seed)
        groups, total = group_cases(contenders), count * len(contenders)
        for number in range(count):
            self.case_order.append(())
            done = number * len(contenders)
            for group in generator.sample(groups, len(groups)):
                able = [
                    contender for contender in group if contender.case.name not in self.failures
                ]
                for place, contender in enumerate(able):
                    progress(
                        done + place,
                        total,
                        f"round {number + 1} of {count}: {contender.case.name}",
                    )
                self._measure_group(able, generator, folder)
                done += len(group)
            alive = [
                contender for contender in contenders if contender.case.name not in self.failures
            ]
            if contenders and not any(contender.case.runtime != "pytorch" for contender in alive):
                raise BenchError("\n".join(dict.fromkeys(map(str, self.failures.values()))))
        progress(total, total, "measured")

    def _measure_group(
        self, group: Sequence[GatedCase], generator: random.Random, folder: Path
    ) -> None:
        with ExitStack() as stack:
            workers: dict[str, Worker] = {}

            def attempt(contender: GatedCase, what: Callable[[Worker], Any]) -> Any:
                name = contender.case.name
                try:
                    return what(workers[name])
                except (EdgetlError, OSError) as error:
                    self.failures[name] = error
                    return None

            def turns() -> list[GatedCase]:
                return generator.sample(
                    able := [one for one in group if one.case.name not in self.failures], len(able)
                )

            for contender in turns():
                name = contender.case.name
                try:
                    workers[name] = stack.enter_context(Worker(contender.job, folder))
                except OSError as error:
                    self.failures[name] = error
                    continue
                attempt(contender, Worker.wait_until_ready)
                self.case_order[-1] += (name,)
            for stream in dict.fromkeys(
                stream for contender in group for stream in contender.job.streams
            ):
                for piece in _plan_steps(stream, group[0].job.protocol.slices):
                    for contender in turns():
                        if stream in contender.job.streams:
                            attempt(contender, methodcaller("request", piece))
            answers = {
                contender.case.name: attempt(contender, Worker.result) for contender in turns()
            }
        for contender in group:
            answer = answers.get(contender.case.name)
            if answer is not None:
                for row, stream in zip(contender.rows, contender.job.streams, strict=True):
                    self.rounds_by_row.setdefault(row.id, []).append(
                        _parse_round(answer[stream.name])
                    )


def group_cases(contenders: Sequence[GatedCase]) -> list[list[GatedCase]]:
    """Groups that are kept alive together: the same threads and batch, no more than fit into the memory that is free now."""
    by_cell: dict[tuple[int, int], list[GatedCase]] = defaultdict(list)
    for contender in contenders:
        by_cell[contender.case.source.threads, contender.case.source.batch].append(contender)
    room = _MAX_MEMORY_SHARE * free_memory_bytes()
    groups: list[list[GatedCase]] = []
    for cell in by_cell.values():
        held = room + 1
        for contender in cell:
            wanted = contender.peak_memory_bytes or _DEFAULT_PROCESS_MEMORY_BYTES
            # How much memory a GPU has is not known here: its processes live one after the other.
            alone = contender.case.source.provider != "cpu"
            if alone or held + wanted > room or len(groups[-1]) == _MAX_LIVE_PROCESSES:
                groups.append([])
                held = 0
            groups[-1].append(contender)
            held += room + 1 if alone else wanted
    return groups


def _plan_steps(stream: Workload, slices: int) -> list[str]:
    if stream.rate is not None:
        return [f"paced {stream.name}"]
    return [f"warm-up {stream.name}", *[f"slice {stream.name}"] * slices]


def _parse_round(answer: dict[str, Any]) -> BlockResult:
    return BlockResult.from_json({**answer, "cold": vars(ColdStart(**answer["cold"]))})


class BenchRunner:
    """One measurement; what was measured before it was ended is as good as ever."""

    def __init__(self) -> None:
        self.round_runner = RoundRunner()
        self.stop_cause: BaseException | None = None
        """What ended it early."""
        self.device_states: dict[str, Any] = {}
        """The device `before` and `after` the rounds."""
        self._process_cpu_s = 0.0

    @contextmanager
    def capture_stop(self) -> Iterator[None]:
        """What ends the block early waits in `stopped`.

        Raises:
            KeyboardInterrupt, EdgetlError: it ended before anything was measured.
        """
        try:
            yield
        except (KeyboardInterrupt, EdgetlError, OSError) as cause:
            if self.round_runner.rounds_by_row:
                self.stop_cause = cause
            elif isinstance(cause, KeyboardInterrupt):
                raise KeyboardInterrupt(
                    "Interrupted before anything was measured: nothing was kept."
                ) from cause
            else:
                raise (
                    cause
                    if isinstance(cause, EdgetlError)
                    else BenchError(f"Nothing could be measured: {cause}.")
                ) from cause

    def measure(
        self,
        able: Sequence[GatedCase],
        count: int,
        seed: int,
        folder: Path,
        progress: BenchProgress,
    ) -> None:
        """Measure `count` rounds of those that may be timed; what comes after them neither dilutes their noise nor adds to it.

        Raises:
            BenchError: as `Rounds.measure`.
        """
        before, cpu_before = read_device_state(), read_process_cpu_s()
        try:
            self.round_runner.measure(able, count if able else 0, seed, folder, progress)
        finally:
            self.device_states = {"before": before, "after": read_device_state()}
            self._process_cpu_s = read_process_cpu_s() - cpu_before

    def evaluate_noise(self, measured: Mapping[str, Sequence[BlockResult]]) -> Noise:
        """Whether the device was left alone, judged by its states and by each row's rounds."""
        timed = {name: rounds for name, rounds in measured.items() if rounds}
        if not timed:
            return Noise(())
        spreads = {
            name: relative_spread([block.median_ns for block in rounds])
            for name, rounds in timed.items()
        }
        clocks = [
            [block.frequency_khz for block in rounds if block.frequency_khz is not None]
            for rounds in timed.values()
        ]
        gpus = [[block.gpu for block in rounds if block.gpu] for rounds in timed.values()]
        gpu_rounds = [readings for readings in gpus if readings]
        return assess_noise(
            self.device_states["before"],
            self.device_states["after"],
            self._process_cpu_s,
            spreads,
            clocks,
            gpu_rounds=gpu_rounds,
        )

    def raise_if_stopped(
        self, measured: Mapping[str, Sequence[BlockResult]], path: Path | None, notes: Sequence[str]
    ) -> None:
        """Raise what ended it early, with what was kept; do nothing where it came to its end.

        Args:
            measured: each row's rounds.
            path: where the result lies; None where there was space nowhere.
            notes: what the keeping of it had to say.

        Raises:
            KeyboardInterrupt, BenchError: it was ended early.
        """
        if self.stop_cause is None:
            return
        kept = f"{sum(map(bool, measured.values()))} of {len(measured)} rows have figures, kept in {path}."
        told = " ".join([*([] if path is None else [kept]), *notes])
        if isinstance(self.stop_cause, KeyboardInterrupt):
            raise KeyboardInterrupt(f"Interrupted: {told}") from self.stop_cause
        raise BenchError(f"{self.stop_cause} {told}") from self.stop_cause


def read_process_cpu_s() -> float:
    """CPU seconds of this process and of the workers that it has waited for."""
    used = [getrusage(whose) for whose in (RUSAGE_SELF, RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)

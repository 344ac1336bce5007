"""Measurement rounds: every case in a fresh process, in random order, one working at a time."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from operator import methodcaller
from pathlib import Path
from resource import RUSAGE_CHILDREN, RUSAGE_SELF, getrusage
from typing import Any

from edgetl.core.artifacts.bench_rows import BenchRow, BlockResult, relative_spread
from edgetl.core.artifacts.device import DeviceInfo, DeviceState
from edgetl.core.artifacts.noise import NoiseReport
from edgetl.core.errors import BenchError, EdgetlError
from edgetl.core.progress import ProgressCallback
from edgetl.device.bench.correctness_gate import GatedCase
from edgetl.device.bench.job import Workload
from edgetl.device.bench.worker_process import Worker
from edgetl.device.hardware.memory import free_memory_bytes
from edgetl.device.hardware.noise import assess_noise
from edgetl.device.hardware.state import read_device_state

_MAX_LIVE_PROCESSES = 8
_MAX_MEMORY_SHARE = 0.7
_DEFAULT_PROCESS_MEMORY_BYTES = 2**30


class RoundRunner:
    """A series of rounds. An interruption loses only the group of processes being measured.

    In a round every case gets a fresh process. Cases that will be compared are kept alive together
    and take turns, slice by slice: on machines whose speed changes within seconds, only
    measurements close in time are comparable. Processes sleep while it is not their turn.
    """

    def __init__(self) -> None:
        self.case_order: list[tuple[str, ...]] = []
        """Case names of each round in starting order; the last round may be incomplete."""
        self.rounds_by_row: dict[str, list[BlockResult]] = {}
        """Measured rounds by row id."""
        self.failures: dict[str, EdgetlError | OSError] = {}
        """Errors of failed cases by name; these cases are left out of the remaining rounds."""
        self.stop_cause: BaseException | None = None
        """The exception that stopped the measurement early."""
        self.device_states: tuple[DeviceState, DeviceState] | None = None
        """State of the device before and after the rounds."""
        self._process_cpu_s = 0.0

    def measure(
        self,
        gated_cases: Sequence[GatedCase],
        count: int,
        seed: int,
        folder: Path,
        progress: ProgressCallback,
    ) -> list[GatedCase]:
        """Measure `count` rounds and record the device's state around them.

        Later work, such as profiling, does not affect the noise of these rounds.

        Returns:
            The cases that did not fail, with their rounds.

        Raises:
            BenchError: every ONNX Runtime case has failed.
        """
        state_before = read_device_state()
        cpu_s_before = read_process_cpu_s()
        try:
            if gated_cases:
                self._measure_rounds(gated_cases, count, seed, folder, progress)
        finally:
            self.device_states = (state_before, read_device_state())
            self._process_cpu_s = read_process_cpu_s() - cpu_s_before
        return [
            replace(item, rows=tuple(self.attach_rounds(row) for row in item.rows))
            for item in self._without_failures(gated_cases)
        ]

    def attach_rounds(self, row: BenchRow) -> BenchRow:
        """Return a row with its measured rounds."""
        return replace(row, rounds=tuple(self.rounds_by_row.get(row.id, ())))

    def _measure_rounds(
        self,
        gated_cases: Sequence[GatedCase],
        count: int,
        seed: int,
        folder: Path,
        progress: ProgressCallback,
    ) -> None:
        generator = random.Random(seed)
        groups = group_cases(gated_cases)
        total = count * len(gated_cases)
        for round_index in range(count):
            self.case_order.append(())
            done = round_index * len(gated_cases)
            for group in generator.sample(groups, len(groups)):
                running = self._without_failures(group)
                for index, gated_case in enumerate(running):
                    text = f"round {round_index + 1} of {count}: {gated_case.case.name}"
                    progress(text, done + index, total)
                self._measure_group(running, generator, folder)
                done += len(group)
            remaining = self._without_failures(gated_cases)
            if all(item.case.runtime == "pytorch" for item in remaining):
                raise BenchError("\n".join(dict.fromkeys(map(str, self.failures.values()))))
        progress("measured", total, total)

    def _without_failures(self, gated_cases: Sequence[GatedCase]) -> list[GatedCase]:
        return [item for item in gated_cases if item.case.name not in self.failures]

    def _measure_group(
        self, group: Sequence[GatedCase], generator: random.Random, folder: Path
    ) -> None:
        with ExitStack() as stack:
            workers: dict[str, Worker] = {}

            def attempt(gated_case: GatedCase, action: Callable[[Worker], Any]) -> Any:
                name = gated_case.case.name
                try:
                    return action(workers[name])
                except (EdgetlError, OSError) as error:
                    self.failures[name] = error
                    return None

            def shuffle_cases() -> list[GatedCase]:
                running = self._without_failures(group)
                return generator.sample(running, len(running))

            for gated_case in shuffle_cases():
                name = gated_case.case.name
                try:
                    workers[name] = stack.enter_context(Worker(gated_case.job, folder))
                except OSError as error:
                    self.failures[name] = error
                    continue
                attempt(gated_case, Worker.wait_until_ready)
                self.case_order[-1] += (name,)
            workloads = dict.fromkeys(
                workload for gated_case in group for workload in gated_case.job.streams
            )
            for workload in workloads:
                for step in _plan_steps(workload, group[0].job.protocol.slices):
                    for gated_case in shuffle_cases():
                        if workload in gated_case.job.streams:
                            attempt(gated_case, methodcaller("request", step))
            results: dict[str, dict[str, BlockResult] | None] = {
                gated_case.case.name: attempt(
                    gated_case, lambda worker: worker.result(dict[str, BlockResult])
                )
                for gated_case in shuffle_cases()
            }
        for gated_case in group:
            result = results.get(gated_case.case.name)
            if result is not None:
                for row, workload in zip(gated_case.rows, gated_case.job.streams, strict=True):
                    self.rounds_by_row.setdefault(row.id, []).append(result[workload.name])

    @property
    def failure_notes(self) -> list[str]:
        """Notes on the cases that failed."""
        return [f"{name} failed and was dropped: {error}" for name, error in self.failures.items()]

    @contextmanager
    def capture_stop(self) -> Iterator[None]:
        """Store an exception that stops the block early in `stop_cause`.

        Raises:
            KeyboardInterrupt, EdgetlError: the block stopped before anything was measured.
        """
        try:
            yield
        except (KeyboardInterrupt, EdgetlError, OSError) as cause:
            if self.rounds_by_row:
                self.stop_cause = cause
            elif isinstance(cause, KeyboardInterrupt):
                raise KeyboardInterrupt(
                    "Interrupted before anything was measured: no result was written."
                ) from cause
            elif isinstance(cause, EdgetlError):
                raise
            else:
                raise BenchError(f"Nothing could be measured: {cause}.") from cause

    def describe_device(self, info: DeviceInfo) -> DeviceInfo:
        """Return the device's facts with its states."""
        if self.device_states is None:
            return info
        before, after = self.device_states
        return replace(info, before=before, after=after)

    def evaluate_noise(self, names: Mapping[str, str] | None = None) -> NoiseReport:
        """Assess interference from the device's states and the rounds of each row.

        Args:
            names: names of rows in the reasons by row id; None uses the ids.
        """
        if not self.rounds_by_row or self.device_states is None:
            return NoiseReport(())
        spreads = {
            (names or {}).get(row_id, row_id): relative_spread(
                [block.median_ns for block in rounds]
            )
            for row_id, rounds in self.rounds_by_row.items()
        }
        clocks = [
            [block.frequency_khz for block in rounds if block.frequency_khz is not None]
            for rounds in self.rounds_by_row.values()
        ]
        gpu_readings = [
            [block.gpu for block in rounds if block.gpu is not None]
            for rounds in self.rounds_by_row.values()
        ]
        return assess_noise(
            *self.device_states,
            self._process_cpu_s,
            spreads,
            clocks,
            gpu_rounds=[readings for readings in gpu_readings if readings],
        )

    def raise_if_stopped(self, row_count: int, path: Path | None, notes: Sequence[str]) -> None:
        """Raise the exception that stopped the measurement early, if any.

        Args:
            row_count: number of rows of the result.
            path: the result file; None if it could not be written.
            notes: notes from writing the result.

        Raises:
            KeyboardInterrupt, BenchError: the measurement stopped early.
        """
        if self.stop_cause is None:
            return
        sentences = list(notes)
        if path is not None:
            timed = len(self.rounds_by_row)
            sentences.insert(0, f"{timed} of {row_count} rows were timed, see {path}.")
        text = " ".join(sentences)
        if isinstance(self.stop_cause, KeyboardInterrupt):
            raise KeyboardInterrupt(f"Interrupted: {text}") from self.stop_cause
        raise BenchError(f"{self.stop_cause} {text}") from self.stop_cause


def group_cases(gated_cases: Sequence[GatedCase]) -> list[list[GatedCase]]:
    """Group the cases whose processes are kept alive together.

    A group has the same threads and batch, and fits into the memory that is free now.
    """
    by_configuration: dict[tuple[int, int], list[GatedCase]] = defaultdict(list)
    for gated_case in gated_cases:
        source = gated_case.case.source
        by_configuration[source.threads, source.batch].append(gated_case)
    capacity_bytes = _MAX_MEMORY_SHARE * free_memory_bytes()
    groups: list[list[GatedCase]] = []
    for comparable_cases in by_configuration.values():
        group_bytes = capacity_bytes + 1
        for gated_case in comparable_cases:
            process_bytes = gated_case.peak_memory_bytes or _DEFAULT_PROCESS_MEMORY_BYTES
            # The memory of a GPU is unknown here, so its processes run one after the other.
            is_alone = gated_case.case.source.provider != "cpu"
            if (
                is_alone
                or group_bytes + process_bytes > capacity_bytes
                or len(groups[-1]) == _MAX_LIVE_PROCESSES
            ):
                groups.append([])
                group_bytes = 0
            groups[-1].append(gated_case)
            group_bytes += capacity_bytes + 1 if is_alone else process_bytes
    return groups


def _plan_steps(workload: Workload, slices: int) -> list[str]:
    if workload.rate is not None:
        return [f"paced {workload.name}"]
    return [f"warm-up {workload.name}", *[f"slice {workload.name}"] * slices]


def read_process_cpu_s() -> float:
    """Return the CPU seconds of this process and the child processes it has waited for."""
    usages = [getrusage(target) for target in (RUSAGE_SELF, RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)

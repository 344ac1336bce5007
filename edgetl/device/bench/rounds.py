"""Rounds in random order: fresh processes, of which one works at a time."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from operator import methodcaller
from pathlib import Path
from typing import Any

from edgetl.core.errors import BenchError, EdgetlError
from edgetl.core.rows import ColdStart, Round
from edgetl.device.bench.jobs import Stream
from edgetl.device.bench.processes import Worker
from edgetl.device.bench.proving import Contender
from edgetl.device.memory import free_memory_bytes

Progress = Callable[[int, int, str], None]
"""(blocks done, blocks in all, what comes next)."""
_MOST_ALIVE = 8
_SHARE_OF_MEMORY = 0.7
_MEMORY_UNKNOWN = 2**30


class Rounds:
    """What has been measured so far; an interruption keeps all of it but the group of processes that it ended.

    In a round every contender gets a fresh process. Those that will be compared are kept alive together and take turns, slice by slice: on
    machines that change their speed within seconds, only neighbours in time can be told apart. Those that have no turn sleep.
    """

    def __init__(self) -> None:
        self.order: list[tuple[str, ...]] = []
        """The names of each round in the order in which they were started; the last round may be unfinished."""
        self.blocks: dict[str, list[Round]] = {}
        """Row id to its rounds."""
        self.died: dict[str, EdgetlError | OSError] = {}
        """Names of those that could not go on, with their last words; they sat out the rounds that followed."""

    def measure(
        self,
        contenders: Sequence[Contender],
        count: int,
        seed: int,
        folder: Path,
        progress: Progress,
    ) -> None:
        """Measure `count` rounds.

        Raises:
            BenchError: not one ONNX Runtime contender can go on.
        """
        generator = random.Random(seed)
        groups, total = together(contenders), count * len(contenders)
        for number in range(count):
            self.order.append(())
            done = number * len(contenders)
            for group in generator.sample(groups, len(groups)):
                able = [
                    contender for contender in group if contender.candidate.name not in self.died
                ]
                for place, contender in enumerate(able):
                    progress(
                        done + place,
                        total,
                        f"round {number + 1} of {count}: {contender.candidate.name}",
                    )
                self._measure_together(able, generator, folder)
                done += len(group)
            alive = [
                contender for contender in contenders if contender.candidate.name not in self.died
            ]
            if contenders and not any(
                contender.candidate.runtime != "pytorch" for contender in alive
            ):
                raise BenchError("\n".join(dict.fromkeys(map(str, self.died.values()))))
        progress(total, total, "measured")

    def _measure_together(
        self, group: Sequence[Contender], generator: random.Random, folder: Path
    ) -> None:
        with ExitStack() as stack:
            workers: dict[str, Worker] = {}

            def attempt(contender: Contender, what: Callable[[Worker], Any]) -> Any:
                name = contender.candidate.name
                try:
                    return what(workers[name])
                except (EdgetlError, OSError) as error:
                    self.died[name] = error
                    return None

            def turns() -> list[Contender]:
                return generator.sample(
                    able := [one for one in group if one.candidate.name not in self.died], len(able)
                )

            for contender in turns():
                name = contender.candidate.name
                try:
                    workers[name] = stack.enter_context(Worker(contender.job, folder))
                except OSError as error:
                    self.died[name] = error
                    continue
                attempt(contender, Worker.wait_until_ready)
                self.order[-1] += (name,)
            for stream in dict.fromkeys(
                stream for contender in group for stream in contender.job.streams
            ):
                for piece in _pieces(stream, group[0].job.protocol.slices):
                    for contender in turns():
                        if stream in contender.job.streams:
                            attempt(contender, methodcaller("ask", piece))
            answers = {
                contender.candidate.name: attempt(contender, Worker.finish) for contender in turns()
            }
        for contender in group:
            answer = answers.get(contender.candidate.name)
            if answer is not None:
                for row, stream in zip(contender.rows, contender.job.streams, strict=True):
                    self.blocks.setdefault(row.id, []).append(_round(answer[stream.name]))


def together(contenders: Sequence[Contender]) -> list[list[Contender]]:
    """Groups that are kept alive together: the same threads and batch, no more than fit into the memory that is free now."""
    by_cell: dict[tuple[int, int], list[Contender]] = defaultdict(list)
    for contender in contenders:
        by_cell[contender.candidate.source.threads, contender.candidate.source.batch].append(
            contender
        )
    room = _SHARE_OF_MEMORY * free_memory_bytes()
    groups: list[list[Contender]] = []
    for cell in by_cell.values():
        held = room + 1
        for contender in cell:
            wanted = contender.memory_bytes or _MEMORY_UNKNOWN
            # How much memory a GPU has is not known here: its processes live one after the other.
            alone = contender.candidate.source.provider != "cpu"
            if alone or held + wanted > room or len(groups[-1]) == _MOST_ALIVE:
                groups.append([])
                held = 0
            groups[-1].append(contender)
            held += room + 1 if alone else wanted
    return groups


def _pieces(stream: Stream, slices: int) -> list[str]:
    if stream.rate is not None:
        return [f"paced {stream.name}"]
    return [f"warm-up {stream.name}", *[f"slice {stream.name}"] * slices]


def _round(answer: dict[str, Any]) -> Round:
    return Round.from_json({**answer, "cold": vars(ColdStart(**answer["cold"]))})

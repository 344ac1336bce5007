"""Rounds in random order; each block in a fresh process, one alive at a time."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edgetl.core.errors import BenchError
from edgetl.core.rows import ColdStart, Round
from edgetl.device.bench.processes import run_job
from edgetl.device.bench.proving import Contender

Progress = Callable[[int, int, str], None]
"""(blocks done, blocks in all, what comes next)."""


class Rounds:
    """What has been measured so far; an interruption keeps all of it, the rows of an unfinished round included."""

    def __init__(self) -> None:
        self.order: list[tuple[str, ...]] = []
        """The names of each round in the order in which they ran; the last round may be unfinished."""
        self.blocks: dict[str, list[Round]] = {}
        """Row id to its rounds."""
        self.died: dict[str, BenchError] = {}
        """Names of those whose process ended, with its last words; they sat out the rounds that followed."""

    def measure(self, contenders: Sequence[Contender], count: int, seed: int, folder: Path, progress: Progress) -> None:
        """Measure `count` rounds.

        Raises:
            BenchError: the workers of every ONNX Runtime contender died.
        """
        generator = random.Random(seed)
        able, total = list(contenders), count * len(contenders)
        for number in range(count):
            self.order.append(())
            for place, contender in enumerate(generator.sample(able, len(able))):
                name = contender.candidate.name
                progress(number * len(contenders) + place, total, f"round {number + 1} of {count}: {name}")
                try:
                    answer = run_job(contender.job, folder)
                except BenchError as error:
                    self.died[name] = error
                    able.remove(contender)
                    if not any(other.candidate.runtime != "pytorch" for other in able):
                        raise
                    continue
                self.order[-1] += (name,)
                for row, stream in zip(contender.rows, contender.job.streams, strict=True):
                    self.blocks.setdefault(row.id, []).append(_round(answer[stream.name]))
        progress(total, total, "measured")


def _round(answer: dict[str, Any]) -> Round:
    return Round.from_json({**answer, "cold": vars(ColdStart(**answer["cold"]))})

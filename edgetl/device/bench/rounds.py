"""Rounds in random order; each block in a fresh process, one alive at a time."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edgetl.core.rows import ColdStart, Round
from edgetl.device.bench.processes import run_job
from edgetl.device.bench.proving import Contender

Progress = Callable[[int, int, str], None]
"""(blocks done, blocks in all, what comes next)."""


class Rounds:
    """What has been measured so far: whole rounds only, so that every row has the same ones."""

    def __init__(self) -> None:
        self.order: list[tuple[str, ...]] = []
        self.blocks: dict[str, list[Round]] = {}
        """Row id to its rounds."""

    def measure(self, contenders: Sequence[Contender], count: int, seed: int, folder: Path, progress: Progress) -> None:
        """Measure `count` rounds; what was complete before an interruption or an error stays.

        Raises:
            BenchError: a worker died.
        """
        generator = random.Random(seed)
        total = count * len(contenders)
        for number in range(count):
            ordered = generator.sample(list(contenders), len(contenders))
            found: dict[str, Round] = {}
            for place, contender in enumerate(ordered):
                progress(number * len(contenders) + place, total, f"round {number + 1} of {count}: {contender.candidate.name}")
                answer = run_job(contender.job, folder)
                found |= {row.id: _round(answer[row.scope]) for row in contender.rows}
            self.order.append(tuple(contender.candidate.name for contender in ordered))
            for row_id, block in found.items():
                self.blocks.setdefault(row_id, []).append(block)
        progress(total, total, "measured")


def _round(answer: dict[str, Any]) -> Round:
    return Round.from_json({**answer, "cold": vars(ColdStart(**answer["cold"]))})

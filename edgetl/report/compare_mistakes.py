"""Which images the experiment's networks get wrong: those that none of them knows often have a wrong label."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgetl.core.comparing import EQUAL_TIME
from edgetl.core.files import read_csv
from edgetl.core.layout import RunDirectory
from edgetl.core.runs import Run


@dataclass(frozen=True)
class Hard:
    """An image that pretrained networks get wrong."""

    path: str
    """In the data folder."""
    label: str
    answers: tuple[str, ...]
    """The wrong classes, the most frequent first."""
    wrong: int
    runs: int


def hard_images(folder: Path, runs: Sequence[Run]) -> list[Hard]:
    """Images by how many of the pretrained runs get them wrong, the most first; empty where the runs' folders are gone.

    Args:
        folder: the experiment's.
        runs: all of them; those from nothing are left out, which get most images wrong for want of training.
    """
    wrong: dict[tuple[str, str], list[str]] = defaultdict(list)
    read = 0
    for run in runs:
        if run.failed is not None or run.strategy in ("scratch", EQUAL_TIME):
            continue
        try:
            rows = read_csv(RunDirectory(folder / run.folder).predictions)
        except (OSError, ValueError):
            continue
        read += 1
        for row in rows:
            if row["label"] != row["predicted"]:
                wrong[row["path"], row["label"]].append(row["predicted"])
    found = [
        Hard(
            path,
            label,
            tuple(sorted(set(answers), key=lambda answer: -answers.count(answer))),
            len(answers),
            read,
        )
        for (path, label), answers in wrong.items()
    ]
    return sorted(found, key=lambda hard: (-hard.wrong, hard.path))

"""Which image is trained on and which is validated on: decided once, written down, read back."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from edgetl.core.artifacts.run_config import RunConfiguration, read_run_configuration
from edgetl.core.errors import RunError
from edgetl.core.files import read_csv, write_csv
from edgetl.core.paths import RunDirectory
from edgetl.train.data.folders import RejectedFile, SplitName
from edgetl.train.data.scan import ScannedFile

_MAX_CELL_CHARACTERS = 100
"""Characters of a broken cell that a message holds."""


@dataclass(frozen=True)
class SplitEntry:
    """One image of a run."""

    path: Path
    """Absolute."""
    label: str
    split: SplitName


def split_files(files: Sequence[ScannedFile], share: float, seed: int) -> list[SplitName]:
    """Hold back `share` of each class for validation; one entry a file.

    The order in which images are drawn is a hash of the seed and the image's pixels: it depends neither on names nor on the file
    system's order nor on the other images, and exact duplicates go the same way together. A class always keeps an image to train
    on, and gives one to validation as soon as it has two different ones. Images that stand under two labels are trained on.
    """
    labels_of: dict[str, set[str]] = defaultdict(set)
    copies: dict[tuple[str, str], int] = defaultdict(int)
    for read in files:
        labels_of[read.pixels_sha256].add(read.file.label)
        copies[read.file.label, read.pixels_sha256] += 1
    held_back: set[str] = set()
    for label in {read.file.label for read in files} if share > 0 else ():
        own = {pixels: count for (other, pixels), count in copies.items() if other == label}
        drawn = sorted(
            (pixels for pixels in own if len(labels_of[pixels]) == 1),
            key=lambda pixels: _shuffle_key(seed, pixels),
        )
        if len(drawn) == len(own):
            drawn = drawn[:-1]
        wanted, taken = max(1, round(share * sum(own.values()))), 0
        for pixels in drawn:
            # Take a group of copies only when that brings the count nearer to what is wanted.
            if taken and abs(taken + own[pixels] - wanted) >= abs(taken - wanted):
                continue
            held_back.add(pixels)
            taken += own[pixels]
    return ["val" if read.pixels_sha256 in held_back else "train" for read in files]


def write_split(run: RunDirectory, data: Path, rows: Sequence[SplitEntry]) -> None:
    """Write split.csv: path relative to the data folder with forward slashes, label, split."""
    write_csv(
        run.split,
        ("path", "label", "split"),
        [(row.path.relative_to(data).as_posix(), row.label, row.split) for row in rows],
    )


def write_rejected(run: RunDirectory, data: Path, rejected: Sequence[RejectedFile]) -> None:
    """Write rejected.csv: path as in split.csv, and why the file was left out; no file when nothing was."""
    if rejected:
        rows = [
            (_escape_undecodable(entry.path.relative_to(data).as_posix()), entry.reason)
            for entry in rejected
        ]
        write_csv(run.rejected_files, ("path", "reason"), rows)


def read_split(run: RunDirectory) -> list[SplitEntry]:
    """The images of a run, from split.csv and the data folder that config.json names.

    Raises:
        RunError: either file is missing or broken; whether the images still exist is not looked at.
    """
    configuration = read_run_configuration(run)
    try:
        rows = read_csv(run.split)
        if not rows:
            raise ValueError("it lists no images")
        return [_parse_entry(configuration, row) for row in rows]
    except OSError as cause:
        raise RunError(
            f"The run's split cannot be read: {run.split} ({cause.strerror}). Run finetune again."
        ) from cause
    except KeyError as cause:
        raise RunError(
            f"{run.split} is broken: it has no column {cause}. Run finetune again."
        ) from cause
    except ValueError as cause:
        raise RunError(f"{run.split} is broken: {cause}. Run finetune again.") from cause


def _parse_entry(configuration: RunConfiguration, row: dict[str, str]) -> SplitEntry:
    path, label, part = row["path"], row["label"], row["split"]
    inside = PurePosixPath(path)
    # What is listed is copied into bundles as a golden image: nothing from outside the data folder.
    if not inside.parts or inside.is_absolute() or ".." in inside.parts or "\0" in path:
        raise ValueError(f"{path[:_MAX_CELL_CHARACTERS]!r} is no path inside the data folder")
    if label not in configuration.classes:
        raise ValueError(
            f"{path[:_MAX_CELL_CHARACTERS]!r} is of the class {label[:_MAX_CELL_CHARACTERS]!r}, which config.json does not list"
        )
    if part not in ("train", "val"):
        raise ValueError(
            f"{path[:_MAX_CELL_CHARACTERS]!r} is in the part {part[:_MAX_CELL_CHARACTERS]!r}, which is neither train nor val"
        )
    return SplitEntry(configuration.config.data / path, label, "val" if part == "val" else "train")


def _shuffle_key(seed: int, pixels: str) -> bytes:
    return hashlib.sha256(f"{seed} {pixels}".encode()).digest()


def _escape_undecodable(name: str) -> str:
    return name.encode(errors="backslashreplace").decode()

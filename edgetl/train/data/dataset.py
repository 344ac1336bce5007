"""From a data folder to the images of a run: found, read, checked and split."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgetl.core.config.finetune import FinetuneConfig
from edgetl.core.errors import DataError
from edgetl.train.data.decoded_cache import DecodedImages
from edgetl.train.data.folders import FoundFiles, Part, Rejected, find_files
from edgetl.train.data.scan import ReadFile, read_files
from edgetl.train.data.splits import SplitRow, split_files


@dataclass(frozen=True)
class DataSet:
    """Labelled images, split, with what is wrong about them."""

    folder: Path
    """Absolute."""
    labels: list[str]
    rows: list[SplitRow]
    rejected: list[Rejected]
    warnings: list[str]
    """Sentences for the user."""
    fingerprint: str
    """SHA-256 of every image's relative path, label, part and pixels."""
    hashes: dict[Path, str]
    """SHA-256 of each image's file."""

    def part(self, part: Part) -> list[SplitRow]:
        """The images of one part."""
        return [row for row in self.rows if row.split == part]

    def to_json(self) -> dict[str, Any]:
        """The entry `data` of config.json."""
        counts = {
            part: dict(Counter(row.label for row in self.rows if row.split == part))
            for part in ("train", "val")
        }
        return {
            "fingerprint": self.fingerprint,
            "counts": counts,
            "rejected": len(self.rejected),
            "warnings": self.warnings,
        }


def read_data(
    data: Path,
    val_split: float,
    seed: int,
    report: Callable[[int, int], None],
    decoded: DecodedImages | None = None,
    allow_leaks: bool = False,
) -> DataSet:
    """Find, decode, check and split the images of a folder.

    Args:
        val_split: share of each class for validation where the folder has no validation part of its own.
        report: called with (files done, files in all).
        decoded: is offered what was decoded on the way.
        allow_leaks: warn of images that are in both parts, instead of refusing them.

    Raises:
        DataError: see `find_files`; or no file of a class can be decoded; or an image is in both parts.
    """
    folder = data.expanduser().absolute()
    found = find_files(folder)
    ignored = found.given_split and val_split == 0
    if ignored:
        found = replace(found, files=[file for file in found.files if file.part == "train"])
    read, broken = read_files(found.files, report, decoded or DecodedImages(0, 1))
    rejected = sorted([*found.rejected, *broken], key=lambda entry: entry.path)
    _check_classes(found, read, broken)
    parts = (
        [one.file.part or "train" for one in read]
        if found.given_split
        else split_files(read, val_split, seed)
    )
    rows = [
        SplitRow(one.file.path, one.file.label, part) for one, part in zip(read, parts, strict=True)
    ]
    warnings = [
        *_rejected_warning(rejected),
        *_duplicate_warnings(folder, read, parts, allow_leaks),
    ]
    if ignored:
        warnings.append("--val-split 0: the folder's own validation images are left out.")
    elif found.given_split and val_split != FinetuneConfig.val_split:
        warnings.append("--val-split is not used: the folder has a validation part of its own.")
    if (found.given_split or val_split > 0) and not ignored:
        warnings += _unvalidated_warning(found.labels, rows)
    return DataSet(
        folder,
        found.labels,
        rows,
        rejected,
        warnings,
        _fingerprint(folder, rows, read),
        {one.file.path: one.sha256 for one in read},
    )


def _check_classes(found: FoundFiles, read: list[ReadFile], broken: list[Rejected]) -> None:
    readable = {(one.file.part, one.file.label) for one in read}
    for part in dict.fromkeys(file.part for file in found.files):
        for label in found.labels:
            if (part, label) not in readable:
                where = f"the class {label} of {part}/" if part else f"the class {label}"
                of_class = {
                    file.path for file in found.files if (file.part, file.label) == (part, label)
                }
                reason = next(
                    (entry.reason for entry in broken if entry.path in of_class), "unknown"
                )
                raise DataError(
                    f"No image of {where} can be read; the first: {reason} Replace the files, or remove the class folder."
                )


def _rejected_warning(rejected: list[Rejected]) -> list[str]:
    if not rejected:
        return []
    first = f"{rejected[0].path.name}: {rejected[0].reason.rstrip('.')}"
    return [
        f"{_files(len(rejected))} left out ({first}{' ...' if len(rejected) > 1 else ''}); rejected.csv lists all with the reason."
    ]


def _duplicate_warnings(
    folder: Path, read: list[ReadFile], parts: list[Part], allow_leaks: bool
) -> list[str]:
    groups: dict[str, list[tuple[ReadFile, Part]]] = defaultdict(list)
    for one, part in zip(read, parts, strict=True):
        groups[one.pixels].append((one, part))

    def example(group: list[tuple[ReadFile, Part]]) -> str:
        return " and ".join(one.file.path.relative_to(folder).as_posix() for one, _ in group[:2])

    contradictory = [
        group for group in groups.values() if len({one.file.label for one, _ in group}) > 1
    ]
    leaks = [group for group in groups.values() if len({part for _, part in group}) > 1]
    messages = []
    if contradictory:
        distinct = sorted(contradictory[0], key=lambda entry: entry[0].file.label)
        shown = [
            distinct[0],
            next(entry for entry in distinct if entry[0].file.label != distinct[0][0].file.label),
        ]
        messages.append(
            f"{_images(len(contradictory))} under more than one label, for example {example(shown)}. Correct the labels."
        )
    if leaks:
        shown = [next(entry for entry in leaks[0] if entry[1] == part) for part in ("train", "val")]
        told = f"{_images(len(leaks))} both in train and in val, for example {example(shown)}: validation accuracy is flattered."
        if not allow_leaks:
            raise DataError(
                f"{told} `edgetl check {folder}` lists them; remove them from one of the two, or train with --allow-leaks all the same."
            )
        messages.append(told)
    return messages


def _unvalidated_warning(labels: list[str], rows: list[SplitRow]) -> list[str]:
    validated = {row.label for row in rows if row.split == "val"}
    absent = [label for label in labels if label not in validated]
    if not absent:
        return []
    names = ", ".join(absent[:5]) + (" ..." if len(absent) > 5 else "")
    return [
        f"{names}: too few different images to hold one back, so nothing is known about accuracy on these classes. Add images."
    ]


def _fingerprint(folder: Path, rows: list[SplitRow], read: list[ReadFile]) -> str:
    lines = [
        f"{row.path.relative_to(folder).as_posix()}\t{row.label}\t{row.split}\t{one.pixels}\n"
        for row, one in zip(rows, read, strict=True)
    ]
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def _files(count: int) -> str:
    return "1 file was" if count == 1 else f"{count} files were"


def _images(count: int) -> str:
    return "1 image stands" if count == 1 else f"{count} images stand"

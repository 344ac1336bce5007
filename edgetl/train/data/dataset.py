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
from edgetl.train.data.decoded_cache import DecodedImageCache
from edgetl.train.data.folders import DatasetFiles, RejectedFile, SplitName, find_files
from edgetl.train.data.scan import ScannedFile, scan_files
from edgetl.train.data.splits import SplitEntry, split_files


@dataclass(frozen=True)
class SplitDataset:
    """Labelled images, split, with what is wrong about them."""

    folder: Path
    """Absolute."""
    labels: list[str]
    entries: list[SplitEntry]
    rejected: list[RejectedFile]
    warnings: list[str]
    """Sentences for the user."""
    fingerprint: str
    """SHA-256 of every image's relative path, label, part and pixels."""
    file_hashes: dict[Path, str]
    """SHA-256 of each image's file."""

    def entries_in(self, part: SplitName) -> list[SplitEntry]:
        """The images of one part."""
        return [row for row in self.entries if row.split == part]

    def to_json(self) -> dict[str, Any]:
        """The entry `data` of config.json."""
        counts = {
            part: dict(Counter(row.label for row in self.entries if row.split == part))
            for part in ("train", "val")
        }
        return {
            "fingerprint": self.fingerprint,
            "counts": counts,
            "rejected": len(self.rejected),
            "warnings": self.warnings,
        }


def read_dataset(
    data: Path,
    val_split: float,
    seed: int,
    report: Callable[[int, int], None],
    decoded: DecodedImageCache | None = None,
    allow_leaks: bool = False,
) -> SplitDataset:
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
    ignored = found.has_predefined_split and val_split == 0
    if ignored:
        found = replace(found, files=[file for file in found.files if file.split == "train"])
    read, broken = scan_files(found.files, report, decoded or DecodedImageCache(0, 1))
    rejected = sorted([*found.rejected, *broken], key=lambda entry: entry.path)
    _check_classes(found, read, broken)
    parts = (
        [one.file.split or "train" for one in read]
        if found.has_predefined_split
        else split_files(read, val_split, seed)
    )
    rows = [
        SplitEntry(one.file.path, one.file.label, part)
        for one, part in zip(read, parts, strict=True)
    ]
    warnings = [
        *_rejected_warning(rejected),
        *_duplicate_warnings(folder, read, parts, allow_leaks),
    ]
    if ignored:
        warnings.append("--val-split 0: the folder's own validation images are left out.")
    elif found.has_predefined_split and val_split != FinetuneConfig.val_split:
        warnings.append("--val-split is not used: the folder has a validation part of its own.")
    if (found.has_predefined_split or val_split > 0) and not ignored:
        warnings += _unvalidated_warning(found.labels, rows)
    return SplitDataset(
        folder,
        found.labels,
        rows,
        rejected,
        warnings,
        _fingerprint(folder, rows, read),
        {one.file.path: one.sha256 for one in read},
    )


def _check_classes(
    found: DatasetFiles, read: list[ScannedFile], broken: list[RejectedFile]
) -> None:
    readable = {(one.file.split, one.file.label) for one in read}
    for part in dict.fromkeys(file.split for file in found.files):
        for label in found.labels:
            if (part, label) not in readable:
                where = f"the class {label} of {part}/" if part else f"the class {label}"
                of_class = {
                    file.path for file in found.files if (file.split, file.label) == (part, label)
                }
                reason = next(
                    (entry.reason for entry in broken if entry.path in of_class), "unknown"
                )
                raise DataError(
                    f"No image of {where} can be read; the first: {reason} Replace the files, or remove the class folder."
                )


def _rejected_warning(rejected: list[RejectedFile]) -> list[str]:
    if not rejected:
        return []
    first = f"{rejected[0].path.name}: {rejected[0].reason.rstrip('.')}"
    return [
        f"{_files(len(rejected))} left out ({first}{' ...' if len(rejected) > 1 else ''}); rejected.csv lists all with the reason."
    ]


def _duplicate_warnings(
    folder: Path, read: list[ScannedFile], parts: list[SplitName], allow_leaks: bool
) -> list[str]:
    groups: dict[str, list[tuple[ScannedFile, SplitName]]] = defaultdict(list)
    for one, part in zip(read, parts, strict=True):
        groups[one.pixels_sha256].append((one, part))

    def example(group: list[tuple[ScannedFile, SplitName]]) -> str:
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


def _unvalidated_warning(labels: list[str], rows: list[SplitEntry]) -> list[str]:
    validated = {row.label for row in rows if row.split == "val"}
    absent = [label for label in labels if label not in validated]
    if not absent:
        return []
    names = ", ".join(absent[:5]) + (" ..." if len(absent) > 5 else "")
    return [
        f"{names}: too few different images to hold one back, so nothing is known about accuracy on these classes. Add images."
    ]


def _fingerprint(folder: Path, rows: list[SplitEntry], read: list[ScannedFile]) -> str:
    lines = [
        f"{row.path.relative_to(folder).as_posix()}\t{row.label}\t{row.split}\t{one.pixels_sha256}\n"
        for row, one in zip(rows, read, strict=True)
    ]
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def _files(count: int) -> str:
    return "1 file was" if count == 1 else f"{count} files were"


def _images(count: int) -> str:
    return "1 image stands" if count == 1 else f"{count} images stand"

"""Split of a data set into training, validation and test images."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from edgetl.core.config.split_names import SPLITS, SplitName
from edgetl.core.files import write_csv
from edgetl.core.paths import RunDirectory
from edgetl.train.data.folders import RejectedFile
from edgetl.train.data.scan import ScannedFile

T = TypeVar("T")
LEAKS: Mapping[tuple[SplitName, ...], tuple[str, str]] = {
    ("train", "val"): ("both train and val", "validation accuracy is too optimistic"),
    ("train", "test"): ("both train and test", "test accuracy is too optimistic"),
    ("val", "test"): ("both val and test", "test accuracy is too optimistic"),
    SPLITS: ("train, val and test", "validation and test accuracy are too optimistic"),
}
"""Words for the splits that share an image, and the effect."""


def split_files(
    files: Sequence[ScannedFile], val_share: float, test_share: float, seed: int
) -> list[SplitName]:
    """Return the split of each file, with these shares of each class for validation and testing.

    Images are ordered by a hash of the seed and their pixels, so the split depends neither on
    names, nor on the order of the file system, nor on other images; exact duplicates are in the
    same split. Test images are selected after the validation images, so a test split leaves those as
    they are. Each class keeps at least one distinct image for training, has one for validation if
    it has two, and one for testing if it has three. Images with two labels are in train.
    """
    labels_by_pixels: dict[str, set[str]] = defaultdict(set)
    copies_by_label: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for image in files:
        labels_by_pixels[image.pixels_sha256].add(image.file.label)
        copies_by_label[image.file.label][image.pixels_sha256] += 1
    split_by_pixels: dict[str, SplitName] = {}
    for copies in copies_by_label.values():
        candidates = sorted(
            (pixels for pixels in copies if len(labels_by_pixels[pixels]) == 1),
            key=lambda pixels: _shuffle_key(seed, pixels),
        )
        if len(candidates) == len(copies):
            candidates = candidates[:-1]
        images = sum(copies.values())
        val: list[str] = []
        if val_share > 0:
            reserved = 1 if test_share > 0 and len(candidates) > 1 else 0
            val = _select(candidates[: len(candidates) - reserved], copies, val_share * images)
        split_by_pixels |= dict.fromkeys(val, "val")
        if test_share > 0:
            rest = [pixels for pixels in candidates if pixels not in split_by_pixels]
            split_by_pixels |= dict.fromkeys(_select(rest, copies, test_share * images), "test")
    return [split_by_pixels.get(image.pixels_sha256, "train") for image in files]


def _select(candidates: Sequence[str], copies: Mapping[str, int], target: float) -> list[str]:
    """Return the first candidates with about `target` images, at least one candidate."""
    target = max(1, round(target))
    selected: list[str] = []
    count = 0
    for pixels in candidates:
        # Add a group of copies only if that brings the count closer to the target.
        if count and abs(count + copies[pixels] - target) >= abs(count - target):
            continue
        selected.append(pixels)
        count += copies[pixels]
    return selected


def group_leaks(
    groups: Iterable[Sequence[T]], get_split: Callable[[T], SplitName | None]
) -> dict[tuple[SplitName, ...], list[Sequence[T]]]:
    """Return the groups of equal images with members in several splits, by these splits."""
    leaks: dict[tuple[SplitName, ...], list[Sequence[T]]] = defaultdict(list)
    for group in groups:
        members = {get_split(image) for image in group}
        splits = tuple(split for split in SPLITS if split in members)
        if len(splits) > 1:
            leaks[splits].append(group)
    return leaks


def write_rejected(run: RunDirectory, data: Path, rejected: Sequence[RejectedFile]) -> None:
    """Write rejected.csv: path as in split.csv, and reason; no file if nothing was rejected."""
    if rejected:
        rows = [
            (_escape_undecodable(entry.path.relative_to(data).as_posix()), entry.reason)
            for entry in rejected
        ]
        write_csv(run.rejected_files, ("path", "reason"), rows)


def _shuffle_key(seed: int, pixels: str) -> bytes:
    return hashlib.sha256(f"{seed} {pixels}".encode()).digest()


def _escape_undecodable(name: str) -> str:
    return name.encode(errors="backslashreplace").decode()

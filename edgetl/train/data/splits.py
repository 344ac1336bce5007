"""Split of a data set into training, validation and test images, and split.csv."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeVar

from edgetl.core.artifacts.run_config import RunConfiguration
from edgetl.core.errors import RunError
from edgetl.core.files import read_csv, write_csv
from edgetl.core.paths import RunDirectory
from edgetl.train.data.folders import SPLITS, RejectedFile, SplitName
from edgetl.train.data.scan import ScannedFile

T = TypeVar("T")
LEAKS: Mapping[tuple[SplitName, ...], tuple[str, str]] = {
    ("train", "val"): ("both train and val", "validation accuracy is too optimistic"),
    ("train", "test"): ("both train and test", "test accuracy is too optimistic"),
    ("val", "test"): ("both val and test", "test accuracy is too optimistic"),
    SPLITS: ("train, val and test", "validation and test accuracy are too optimistic"),
}
"""Words for the splits that share an image, and the effect."""
_MAX_CELL_CHARACTERS = 100
"""Maximum characters of an invalid cell in a message."""


@dataclass(frozen=True)
class SplitEntry:
    """Image of a run with its label and split."""

    path: Path
    """Absolute path."""
    label: str
    split: SplitName


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


def write_split(run: RunDirectory, data: Path, entries: Sequence[SplitEntry]) -> None:
    """Write split.csv: path relative to the data folder with forward slashes, label, split."""
    write_csv(
        run.split,
        ("path", "label", "split"),
        [(entry.path.relative_to(data).as_posix(), entry.label, entry.split) for entry in entries],
    )


def write_rejected(run: RunDirectory, data: Path, rejected: Sequence[RejectedFile]) -> None:
    """Write rejected.csv: path as in split.csv, and reason; no file if nothing was rejected."""
    if rejected:
        rows = [
            (_escape_undecodable(entry.path.relative_to(data).as_posix()), entry.reason)
            for entry in rejected
        ]
        write_csv(run.rejected_files, ("path", "reason"), rows)


def read_split(run: RunDirectory, configuration: RunConfiguration) -> list[SplitEntry]:
    """Read split.csv of a run; paths are relative to the data folder of its configuration.

    It is not checked whether the images still exist.

    Raises:
        RunError: the file is missing or invalid.
    """
    try:
        rows = read_csv(run.split)
        if not rows:
            raise ValueError("it lists no images")
        return [_parse_entry(configuration, row) for row in rows]
    except OSError as cause:
        raise RunError(
            f"Cannot read the split {run.split} ({cause.strerror}). Run finetune again."
        ) from cause
    except KeyError as cause:
        raise RunError(
            f"{run.split} is invalid: it has no column {cause}. Run finetune again."
        ) from cause
    except ValueError as cause:
        raise RunError(f"{run.split} is invalid: {cause}. Run finetune again.") from cause


def _parse_entry(configuration: RunConfiguration, row: dict[str, str]) -> SplitEntry:
    path, label, split = row["path"], row["label"], row["split"]
    relative_path = PurePosixPath(path)
    is_inside = relative_path.parts and not relative_path.is_absolute()
    # Images are copied into bundles as golden images, so paths must stay inside the data folder.
    if not is_inside or ".." in relative_path.parts or "\0" in path:
        raise ValueError(f"{_shorten(path)} is not a path inside the data folder")
    if label not in configuration.classes:
        raise ValueError(
            f"the class {_shorten(label)} of {_shorten(path)} is not listed in config.json"
        )
    for name in SPLITS:
        if split == name:
            return SplitEntry(Path(configuration.config.data, path), label, name)
    raise ValueError(
        f"the split of {_shorten(path)} must be train, val or test, got {_shorten(split)}"
    )


def _shorten(cell: str) -> str:
    return repr(cell[:_MAX_CELL_CHARACTERS])


def _shuffle_key(seed: int, pixels: str) -> bytes:
    return hashlib.sha256(f"{seed} {pixels}".encode()).digest()


def _escape_undecodable(name: str) -> str:
    return name.encode(errors="backslashreplace").decode()

"""Data set of a run: find, decode, check and split the images of a folder."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

from edgetl.core.artifacts.run_config import DatasetInfo
from edgetl.core.artifacts.split import SplitEntry
from edgetl.core.config.finetune import FinetuneConfig
from edgetl.core.config.split_names import SPLITS, SplitName
from edgetl.core.errors import DataError
from edgetl.core.progress import ProgressCallback, log_progress
from edgetl.train.data.decoded_cache import DecodedImageCache
from edgetl.train.data.folders import DatasetFiles, RejectedFile, find_files
from edgetl.train.data.scan import ScannedFile, scan_files
from edgetl.train.data.splits import LEAKS, group_leaks, split_files


@dataclass(frozen=True)
class SplitDataset:
    """Labeled images with their split and the problems of the folder."""

    folder: Path
    """Absolute path of the data folder."""
    labels: list[str]
    entries: list[SplitEntry]
    rejected: list[RejectedFile]
    warnings: list[str]
    """Messages for the user."""
    fingerprint: str
    """SHA-256 of every image's relative path, label, split and pixels."""
    file_hashes: dict[Path, str]
    """SHA-256 of each image's file."""

    def entries_in(self, *splits: SplitName) -> list[SplitEntry]:
        """Return the images of these splits, in the order of `entries`."""
        return [entry for entry in self.entries if entry.split in splits]

    def summarize(self) -> DatasetInfo:
        """Return the entry `data` of config.json."""
        counts: dict[str, dict[str, int]] = {
            split: dict(Counter(entry.label for entry in self.entries_in(split)))
            for split in SPLITS
        }
        if not counts["test"]:
            del counts["test"]
        return DatasetInfo(self.fingerprint, counts, len(self.rejected), tuple(self.warnings))


def read_dataset(
    data: Path,
    val_split: float,
    test_split: float,
    seed: int,
    progress: ProgressCallback = log_progress,
    decoded_cache: DecodedImageCache | None = None,
    allow_leaks: bool = False,
) -> SplitDataset:
    """Find, decode, check and split the images of a folder.

    Args:
        data: the data folder.
        val_split: share of each class for validation, unless the folder has its own val folder.
        test_split: share of each class for testing, unless the folder has its own test folder.
        seed: seed of the split.
        progress: called after each file.
        decoded_cache: receives the images that are decoded on the way.
        allow_leaks: warn about images that are in several splits instead of raising an error.

    Raises:
        DataError: see `find_files`; or no file of a class can be decoded; or an image is in several
            splits.
    """
    folder = data.expanduser().absolute()
    dataset_files = find_files(folder)
    if dataset_files.has_val and val_split == 0:
        other_files = [file for file in dataset_files.files if file.split != "val"]
        dataset_files = replace(dataset_files, files=other_files)
    cache = decoded_cache or DecodedImageCache(0, 1)
    images, unreadable = scan_files(dataset_files.files, progress, cache)
    rejected = sorted([*dataset_files.rejected, *unreadable], key=lambda entry: entry.path)
    _check_classes(dataset_files, images, unreadable)
    splits = _assign_splits(dataset_files, images, val_split, test_split, seed)
    entries = [
        SplitEntry(image.file.path, image.file.label, split)
        for image, split in zip(images, splits, strict=True)
    ]
    warnings = [
        *dataset_files.warnings,
        *_rejected_warning(rejected),
        *_duplicate_warnings(folder, images, splits, allow_leaks),
        *_split_warnings(dataset_files, entries, val_split, test_split),
    ]
    return SplitDataset(
        folder,
        dataset_files.labels,
        entries,
        rejected,
        warnings,
        _fingerprint(folder, entries, images),
        {image.file.path: image.sha256 for image in images},
    )


def _split_warnings(
    dataset_files: DatasetFiles, entries: list[SplitEntry], val_split: float, test_split: float
) -> list[str]:
    warnings = []
    ignores_val = dataset_files.has_val and val_split == 0
    if ignores_val:
        warnings.append("--val-split 0: the folder's own validation images are not used.")
    elif dataset_files.has_val and val_split != FinetuneConfig.val_split:
        warnings.append("--val-split has no effect: the data folder has its own val folder.")
    if dataset_files.has_test and test_split != FinetuneConfig.test_split:
        warnings.append("--test-split has no effect: the data folder has its own test folder.")
    if (dataset_files.has_val or val_split > 0) and not ignores_val:
        warnings += _missing_classes_warning(
            dataset_files.labels,
            entries,
            "val",
            "too few distinct images for validation, so the accuracy on these classes is unknown",
        )
    if dataset_files.has_test or test_split > 0:
        warnings += _missing_classes_warning(
            dataset_files.labels,
            entries,
            "test",
            "no test images, so the test figures leave these classes out",
        )
    return warnings


def _assign_splits(
    dataset_files: DatasetFiles,
    images: list[ScannedFile],
    val_split: float,
    test_split: float,
    seed: int,
) -> list[SplitName]:
    """Return the split of each image: its folder's, or else by the shares of `split_files`."""
    undecided = [image for image in images if image.file.split in (None, "train")]
    val_share = 0.0 if dataset_files.has_val else val_split
    test_share = 0.0 if dataset_files.has_test else test_split
    assigned = iter(split_files(undecided, val_share, test_share, seed))
    return [
        image.file.split if image.file.split in ("val", "test") else next(assigned)
        for image in images
    ]


def _check_classes(
    dataset_files: DatasetFiles, images: list[ScannedFile], unreadable: list[RejectedFile]
) -> None:
    readable = {(image.file.split, image.file.label) for image in images}
    # A class without test images is only a warning.
    trained = dict.fromkeys(file.split for file in dataset_files.files if file.split != "test")
    for split in trained:
        for label in dataset_files.labels:
            if (split, label) in readable:
                continue
            class_paths = {
                file.path
                for file in dataset_files.files
                if (file.split, file.label) == (split, label)
            }
            reason = next(
                (entry.reason for entry in unreadable if entry.path in class_paths), "unknown"
            )
            split_text = f" of {split}/" if split else ""
            raise DataError(
                f"Cannot read any image of the class {label}{split_text}; the first: {reason} "
                "Replace the files, or remove the class folder."
            )


def _rejected_warning(rejected: list[RejectedFile]) -> list[str]:
    if not rejected:
        return []
    example = f"{rejected[0].path.name}: {rejected[0].reason.rstrip('.')}"
    if len(rejected) > 1:
        example += " ..."
    count = "1 file was" if len(rejected) == 1 else f"{len(rejected)} files were"
    return [f"{count} skipped ({example}). See rejected.csv for all files and reasons."]


def _duplicate_warnings(
    folder: Path, images: list[ScannedFile], splits: list[SplitName], allow_leaks: bool
) -> list[str]:
    groups: dict[str, list[tuple[ScannedFile, SplitName]]] = defaultdict(list)
    for image, split in zip(images, splits, strict=True):
        groups[image.pixels_sha256].append((image, split))

    def example(group: list[tuple[ScannedFile, SplitName]]) -> str:
        return " and ".join(
            image.file.path.relative_to(folder).as_posix() for image, _ in group[:2]
        )

    contradictory = [
        group for group in groups.values() if len({image.file.label for image, _ in group}) > 1
    ]
    messages = []
    if contradictory:
        first, *others = sorted(contradictory[0], key=lambda entry: entry[0].file.label)
        second = next(entry for entry in others if entry[0].file.label != first[0].file.label)
        messages.append(
            f"{_images(len(contradictory))} under more than one label, for example "
            f"{example([first, second])}. Correct the labels."
        )
    leaks = []
    for leaking_splits, leaking in group_leaks(groups.values(), lambda entry: entry[1]).items():
        location, effect = LEAKS[leaking_splits]
        pair = [
            next(entry for entry in leaking[0] if entry[1] == split) for split in leaking_splits[:2]
        ]
        leaks.append(
            f"{_images(len(leaking))} in {location}, for example {example(pair)}: {effect}."
        )
    if leaks and not allow_leaks:
        raise DataError(
            f"{' '.join(leaks)} List them with `edgetl check {folder}` and keep each in one split "
            "only, or use {allow_leaks}.",
            FinetuneConfig,
        )
    return messages + leaks


def _missing_classes_warning(
    labels: list[str], entries: list[SplitEntry], split: SplitName, reason: str
) -> list[str]:
    present = {entry.label for entry in entries if entry.split == split}
    missing = [label for label in labels if label not in present]
    if not missing:
        return []
    names = ", ".join(missing[:5]) + (" ..." if len(missing) > 5 else "")
    return [f"{names}: {reason}. Add images."]


def _fingerprint(folder: Path, entries: list[SplitEntry], images: list[ScannedFile]) -> str:
    lines = [
        f"{entry.path.relative_to(folder).as_posix()}\t{entry.label}\t{entry.split}\t{image.pixels_sha256}\n"
        for entry, image in zip(entries, images, strict=True)
    ]
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def _images(count: int) -> str:
    return "1 image is" if count == 1 else f"{count} images are"

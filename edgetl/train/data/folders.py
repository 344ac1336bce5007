"""Image files and classes of a data folder; nothing is decoded."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgetl.core.errors import DataError
from edgetl.device.runtime.images import IMAGE_SUFFIXES, raise_unreadable_folder

SplitName = Literal["train", "val"]
_VALIDATION_NAMES = ("val", "valid", "validation")
_IGNORED_NAMES = frozenset({"thumbs.db", "desktop.ini", "__macosx"})


@dataclass(frozen=True)
class LabeledFile:
    """File in a class folder with the suffix of an image."""

    path: Path
    label: str
    split: SplitName | None
    """Split given by the folders; None if the data set has yet to be split."""


@dataclass(frozen=True)
class RejectedFile:
    """File that is not used, with the reason."""

    path: Path
    reason: str


@dataclass(frozen=True)
class DatasetFiles:
    """Content of a data folder."""

    labels: list[str]
    """Classes, sorted by name: the order of the logits."""
    files: list[LabeledFile]
    """Sorted by path."""
    rejected: list[RejectedFile]
    has_predefined_split: bool
    """Whether the folder has its own train and val folders."""


def find_files(data: Path, problems: list[str] | None = None) -> DatasetFiles:
    """List the images of a data folder.

    It holds either one folder per class, or train/ and val/ (also valid/ or validation/) with one
    folder per class each.

    Args:
        data: the data folder.
        problems: receives messages about single classes; None raises them as errors.

    Raises:
        DataError: if the folder is missing, unreadable or empty, has no class folders, only one
            class or a class without images, or the classes of train and val differ.
    """
    if not data.exists():
        raise DataError(
            f"Data folder not found: {data}. Use a folder with one folder of images per class."
        )
    if not data.is_dir():
        raise DataError(
            f"{data} must be a folder, got a file. Use a folder with one folder of images per class."
        )
    folders = {entry.name.lower(): entry for entry in _folders(data)}
    val_folders = [folders[name] for name in _VALIDATION_NAMES if name in folders]
    val = next((folder for folder in val_folders if _folders(folder)), None)
    train = folders.get("train")
    if train is not None and not _folders(train):
        train = None
    if train and val is None and val_folders:
        raise DataError(
            f"{val_folders[0]} has no class folders, but {train} has. "
            f"Add them, or remove the folder to split {train.name}/."
        )
    if val and train is None:
        raise DataError(
            f"{data} has {val.name}/ but no train/ with class folders. "
            "Add it, or use one folder of images per class."
        )
    rejected = _list_stray_files(data)
    if train is None:
        labels, files, rejected_in_classes = _list_classes(data, None, problems)
        return DatasetFiles(
            labels, files, rejected + rejected_in_classes, has_predefined_split=False
        )
    # Without val/, train/ is split. A test/ beside it is ignored.
    labels, files, rejected_in_classes = _list_classes(train, "train" if val else None, problems)
    rejected += _list_stray_files(train) + rejected_in_classes
    if val is None:
        return DatasetFiles(labels, files, rejected, has_predefined_split=False)
    val_labels, val_files, rejected_in_classes = _list_classes(val, "val", problems)
    rejected += _list_stray_files(val) + rejected_in_classes
    if val_labels != labels:
        differences = [
            f"{name} is only in {train.name}/" for name in labels if name not in val_labels
        ]
        differences += [
            f"{name} is only in {val.name}/" for name in val_labels if name not in labels
        ]
        _raise_or_collect(
            f"The classes of {train} and {val} differ: {'; '.join(differences)}. "
            "Use the same class folders in both.",
            problems,
        )
        labels = sorted({*labels, *val_labels})
    return DatasetFiles(labels, files + val_files, rejected, has_predefined_split=True)


def _list_classes(
    folder: Path, split: SplitName | None, problems: list[str] | None
) -> tuple[list[str], list[LabeledFile], list[RejectedFile]]:
    classes = sorted(_folders(folder), key=lambda entry: entry.name)
    if not classes:
        if any(_is_image(path) for path in _walk(folder)):
            raise DataError(
                f"{folder} holds images but no class folders. "
                "Move the images of each class into a folder with the class's name."
            )
        raise DataError(
            f"{folder} is empty: no class folders. Use a folder with one folder of images per class."
        )
    files: list[LabeledFile] = []
    rejected: list[RejectedFile] = []
    for entry in classes:
        paths = sorted(_walk(entry))
        rejected += [
            RejectedFile(path, "not an image by its name") for path in paths if not _is_image(path)
        ]
        images = [LabeledFile(path, entry.name, split) for path in paths if _is_image(path)]
        if not images:
            _raise_or_collect(
                f"The class folder {entry} holds no images. Add some, or remove the folder.",
                problems,
            )
        files += images
    if len(classes) == 1:
        _raise_or_collect(
            f"{folder} has one class only, {classes[0].name}. "
            "A classifier needs at least two class folders.",
            problems,
        )
    return [entry.name for entry in classes], files, rejected


def _raise_or_collect(message: str, problems: list[str] | None) -> None:
    if problems is None:
        raise DataError(message)
    problems.append(message)


def _folders(folder: Path) -> list[Path]:
    return [entry for entry in _entries(folder) if entry.is_dir() and not _is_ignored(entry.name)]


def _list_stray_files(folder: Path) -> list[RejectedFile]:
    return [
        RejectedFile(path, "not in a class folder")
        for path in sorted(_entries(folder))
        if path.is_file() and not _is_ignored(path.name)
    ]


def _entries(folder: Path) -> list[Path]:
    try:
        return [*folder.iterdir()]
    except OSError as cause:
        raise_unreadable_folder(cause)


def _walk(folder: Path) -> list[Path]:
    paths: list[Path] = []
    visited: set[str] = set()
    for parent, folders, names in os.walk(
        folder, followlinks=True, onerror=raise_unreadable_folder
    ):
        real_path = os.path.realpath(parent)
        if real_path in visited:  # a symbolic link to a parent folder
            folders.clear()
            continue
        visited.add(real_path)
        folders[:] = [name for name in folders if not _is_ignored(name)]
        paths += [Path(parent, name) for name in names if not _is_ignored(name)]
    return paths


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES


def _is_ignored(name: str) -> bool:
    return name.startswith(".") or name.lower() in _IGNORED_NAMES

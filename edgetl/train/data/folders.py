"""Which files of a folder are images of which class; nothing is decoded here."""

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
    """A file whose name is an image's."""

    path: Path
    label: str
    split: SplitName | None
    """Where the folders put it; None where the split is still to be made."""


@dataclass(frozen=True)
class RejectedFile:
    """A file that was left out."""

    path: Path
    reason: str


@dataclass(frozen=True)
class DatasetFiles:
    """What a data folder holds."""

    labels: list[str]
    """The classes, sorted by name: the order of the logits."""
    files: list[LabeledFile]
    """Sorted by path."""
    rejected: list[RejectedFile]
    has_predefined_split: bool
    """Whether the folder has train and validation folders of its own."""


def find_files(data: Path, problems: list[str] | None = None) -> DatasetFiles:
    """Look through DATA: train/ and val/ (or valid/, validation/) folders of classes, or one folder of classes.

    Args:
        problems: takes the sentences about single classes, which are raised where it is None.

    Raises:
        DataError: missing, unreadable or empty, no class folders, one class only, a class without images, or classes that differ
            between the parts.
    """
    if not data.exists():
        raise DataError(
            f"No data folder at {data}. Give a folder that holds one folder of images per class."
        )
    if not data.is_dir():
        raise DataError(
            f"{data} is a file. Give a folder that holds one folder of images per class."
        )
    folders = {entry.name.lower(): entry for entry in _folders(data)}
    validation = next(
        (
            folders[name]
            for name in _VALIDATION_NAMES
            if name in folders and _folders(folders[name])
        ),
        None,
    )
    train = folders.get("train") if "train" in folders and _folders(folders["train"]) else None
    empty = (
        next((folders[name] for name in _VALIDATION_NAMES if name in folders), None)
        if validation is None
        else None
    )
    if train and empty:
        raise DataError(
            f"{empty} has no class folders, though {train} has. Fill it, or remove it to have {train.name}/ split."
        )
    if validation and train is None:
        raise DataError(
            f"{data} has {validation.name}/ but no train/ with class folders. Give both, or one folder of classes."
        )
    rejected = _list_stray_files(data)
    if train is None:
        labels, files, more = _classes(data, None, problems)
        return DatasetFiles(labels, files, rejected + more, has_predefined_split=False)
    # A lone train/ is split; a test/ beside it is nobody's business here.
    labels, files, more = _classes(train, "train" if validation else None, problems)
    rejected += _list_stray_files(train) + more
    if validation is None:
        return DatasetFiles(labels, files, rejected, has_predefined_split=False)
    val_labels, val_files, more = _classes(validation, "val", problems)
    if val_labels != labels:
        only = [f"{name} is only in {train.name}/" for name in labels if name not in val_labels]
        only += [
            f"{name} is only in {validation.name}/" for name in val_labels if name not in labels
        ]
        _raise_or_collect(
            f"The classes of {train} and {validation} differ: {'; '.join(only)}. Give both the same class folders.",
            problems,
        )
        labels = sorted({*labels, *val_labels})
    return DatasetFiles(
        labels,
        files + val_files,
        rejected + _list_stray_files(validation) + more,
        has_predefined_split=True,
    )


def _classes(
    folder: Path, part: SplitName | None, problems: list[str] | None
) -> tuple[list[str], list[LabeledFile], list[RejectedFile]]:
    classes = sorted(_folders(folder), key=lambda entry: entry.name)
    if not classes:
        if any(_is_image(path) for path in _walk(folder)):
            raise DataError(
                f"{folder} holds images but no class folders. Move the images of each class into a folder of the class's name."
            )
        raise DataError(
            f"{folder} is empty: no class folders. Give a folder that holds one folder of images per class."
        )
    files: list[LabeledFile] = []
    rejected: list[RejectedFile] = []
    for entry in classes:
        paths = sorted(_walk(entry))
        rejected += [
            RejectedFile(path, "not an image by its name") for path in paths if not _is_image(path)
        ]
        images = [LabeledFile(path, entry.name, part) for path in paths if _is_image(path)]
        if not images:
            _raise_or_collect(
                f"The class folder {entry} holds no images. Add some, or remove the folder.",
                problems,
            )
        files += images
    if len(classes) == 1:
        _raise_or_collect(
            f"{folder} has one class only, {classes[0].name}. A classifier needs at least two class folders.",
            problems,
        )
    return [entry.name for entry in classes], files, rejected


def _raise_or_collect(sentence: str, problems: list[str] | None) -> None:
    if problems is None:
        raise DataError(sentence)
    problems.append(sentence)


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
    found: list[Path] = []
    seen: set[str] = set()
    for parent, folders, names in os.walk(
        folder, followlinks=True, onerror=raise_unreadable_folder
    ):
        real = os.path.realpath(parent)
        if real in seen:  # a link that leads back up
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not _is_ignored(name)]
        found += [Path(parent, name) for name in names if not _is_ignored(name)]
    return found


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES


def _is_ignored(name: str) -> bool:
    return name.startswith(".") or name.lower() in _IGNORED_NAMES

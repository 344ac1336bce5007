"""Which files of a folder are images of which class; nothing is decoded here."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgetl.core.errors import DataError
from edgetl.device.runtime.images import IMAGE_SUFFIXES, refuse_unreadable

Part = Literal["train", "val"]
_VALIDATION_NAMES = ("val", "valid", "validation")
_CLUTTER = frozenset({"thumbs.db", "desktop.ini", "__macosx"})


@dataclass(frozen=True)
class LabelledFile:
    """A file whose name is an image's."""

    path: Path
    label: str
    part: Part | None
    """Where the folders put it; None where the split is still to be made."""


@dataclass(frozen=True)
class Rejected:
    """A file that was left out."""

    path: Path
    reason: str


@dataclass(frozen=True)
class FoundFiles:
    """What a data folder holds."""

    labels: list[str]
    """The classes, sorted by name: the order of the logits."""
    files: list[LabelledFile]
    """Sorted by path."""
    rejected: list[Rejected]
    given_split: bool
    """Whether the folder has train and validation folders of its own."""


def find_files(data: Path, problems: list[str] | None = None) -> FoundFiles:
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
    rejected = _beside(data)
    if train is None:
        labels, files, more = _classes(data, None, problems)
        return FoundFiles(labels, files, rejected + more, given_split=False)
    # A lone train/ is split; a test/ beside it is nobody's business here.
    labels, files, more = _classes(train, "train" if validation else None, problems)
    rejected += _beside(train) + more
    if validation is None:
        return FoundFiles(labels, files, rejected, given_split=False)
    val_labels, val_files, more = _classes(validation, "val", problems)
    if val_labels != labels:
        only = [f"{name} is only in {train.name}/" for name in labels if name not in val_labels]
        only += [
            f"{name} is only in {validation.name}/" for name in val_labels if name not in labels
        ]
        _complain(
            f"The classes of {train} and {validation} differ: {'; '.join(only)}. Give both the same class folders.",
            problems,
        )
        labels = sorted({*labels, *val_labels})
    return FoundFiles(
        labels, files + val_files, rejected + _beside(validation) + more, given_split=True
    )


def _classes(
    folder: Path, part: Part | None, problems: list[str] | None
) -> tuple[list[str], list[LabelledFile], list[Rejected]]:
    classes = sorted(_folders(folder), key=lambda entry: entry.name)
    if not classes:
        if any(_is_image(path) for path in _walk(folder)):
            raise DataError(
                f"{folder} holds images but no class folders. Move the images of each class into a folder of the class's name."
            )
        raise DataError(
            f"{folder} is empty: no class folders. Give a folder that holds one folder of images per class."
        )
    files: list[LabelledFile] = []
    rejected: list[Rejected] = []
    for entry in classes:
        paths = sorted(_walk(entry))
        rejected += [
            Rejected(path, "not an image by its name") for path in paths if not _is_image(path)
        ]
        images = [LabelledFile(path, entry.name, part) for path in paths if _is_image(path)]
        if not images:
            _complain(
                f"The class folder {entry} holds no images. Add some, or remove the folder.",
                problems,
            )
        files += images
    if len(classes) == 1:
        _complain(
            f"{folder} has one class only, {classes[0].name}. A classifier needs at least two class folders.",
            problems,
        )
    return [entry.name for entry in classes], files, rejected


def _complain(sentence: str, problems: list[str] | None) -> None:
    if problems is None:
        raise DataError(sentence)
    problems.append(sentence)


def _folders(folder: Path) -> list[Path]:
    return [entry for entry in _entries(folder) if entry.is_dir() and not _is_clutter(entry.name)]


def _beside(folder: Path) -> list[Rejected]:
    return [
        Rejected(path, "not in a class folder")
        for path in sorted(_entries(folder))
        if path.is_file() and not _is_clutter(path.name)
    ]


def _entries(folder: Path) -> list[Path]:
    try:
        return [*folder.iterdir()]
    except OSError as cause:
        refuse_unreadable(cause)


def _walk(folder: Path) -> list[Path]:
    found: list[Path] = []
    seen: set[str] = set()
    for parent, folders, names in os.walk(folder, followlinks=True, onerror=refuse_unreadable):
        real = os.path.realpath(parent)
        if real in seen:  # a link that leads back up
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not _is_clutter(name)]
        found += [Path(parent, name) for name in names if not _is_clutter(name)]
    return found


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES


def _is_clutter(name: str) -> bool:
    return name.startswith(".") or name.lower() in _CLUTTER

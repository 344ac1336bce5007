"""Image files and classes of a data folder; nothing is decoded."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgetl.core.config.split_names import SPLIT_FOLDERS, SplitName
from edgetl.core.errors import DataError
from edgetl.device.runtime.images import (
    IMAGE_SUFFIXES,
    is_ignored_name,
    raise_unreadable_folder,
    walk_files,
)


@dataclass(frozen=True)
class LabeledFile:
    """File in a class folder with the suffix of an image."""

    path: Path
    label: str
    split: SplitName | None
    """Split given by the folders; None if the folder has neither val/ nor test/."""


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
    has_val: bool = False
    """Whether the folder has its own val folder."""
    has_test: bool = False
    """Whether the folder has its own test folder."""
    warnings: tuple[str, ...] = ()
    """Messages about folders that are not used."""


def find_files(data: Path, problems: list[str] | None = None) -> DatasetFiles:
    """List the images of a data folder.

    It holds either one folder per class, or train/ and optionally val/ (also valid/ or validation/)
    and test/ (also testing/; then train/ may be training/) with one folder per class each. A test
    folder may lack classes.

    Args:
        data: the data folder.
        problems: receives messages about single classes; None raises them as errors.

    Raises:
        DataError: if the folder is missing, unreadable or empty, has no class folders, only one
            class or a class without images, the classes of train and val differ, or test has other
            classes.
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
    val_folders = [folders[name] for name in SPLIT_FOLDERS["val"] if name in folders]
    val = next((folder for folder in val_folders if _folders(folder)), None)
    train, test = _find_train_and_test(folders)
    if train and val is None and val_folders:
        raise DataError(
            f"{val_folders[0]} has no class folders, but {train} has. "
            f"Add them, or remove the folder to split {train.name}/."
        )
    held_out = val or test
    if held_out is not None and train is None:
        raise DataError(
            f"{data} has {held_out.name}/ but no train/ with class folders. "
            "Add it, or use one folder of images per class."
        )
    rejected = _list_stray_files(data)
    if train is None:
        labels, files, rejected_in_classes = _list_classes(data, None, problems)
        return DatasetFiles(labels, files, rejected + rejected_in_classes)
    test, warnings = _select_test_folder(test, train)
    split: SplitName | None = "train" if val or test else None
    labels, files, rejected_in_classes = _list_classes(train, split, problems)
    rejected += _list_stray_files(train) + rejected_in_classes
    if val is not None:
        val_labels, val_files, rejected_in_classes = _list_classes(val, "val", problems)
        files += val_files
        rejected += _list_stray_files(val) + rejected_in_classes
        labels = _merge_labels(train, labels, val, val_labels, problems)
    if test is not None:
        test_files, rejected_in_classes = _list_test(test, labels, train, problems)
        files += test_files
        rejected += _list_stray_files(test) + rejected_in_classes
    return DatasetFiles(labels, files, rejected, val is not None, test is not None, warnings)


def _find_train_and_test(folders: Mapping[str, Path]) -> tuple[Path | None, Path | None]:
    test = next((folders[name] for name in SPLIT_FOLDERS["test"] if name in folders), None)
    for name in SPLIT_FOLDERS["train"]:
        train = folders.get(name)
        # Without a test folder, training/ is a class.
        if train is not None and (name == "train" or test is not None) and _folders(train):
            return train, test
    # Without train/, test/ is a class unless it holds folders of the other classes.
    if test is None or not _holds_classes(test, folders.keys() - {test.name.lower()}):
        return None, None
    return None, test


def _holds_classes(folder: Path, names: Collection[str]) -> bool:
    return any(entry.name.lower() in names for entry in _folders(folder))


def _select_test_folder(test: Path | None, train: Path) -> tuple[Path | None, tuple[str, ...]]:
    """Return the test folder if it has classes of `train`; else None and a warning."""
    if test is None:
        return None, ()
    # Folders of unlabeled images are common: Kaggle's competitions have them.
    class_names = {entry.name.lower() for entry in _folders(train)}
    if _holds_classes(test, class_names):
        return test, ()
    reason = f"none of its folders is a class of {train.name}/"
    if not _folders(test):
        reason = "it has no class folders"
    return None, (f"{test.name}/ is not used: {reason}.",)


def _merge_labels(
    train: Path, labels: list[str], val: Path, val_labels: list[str], problems: list[str] | None
) -> list[str]:
    if val_labels == labels:
        return labels
    differences = [f"{name} is only in {train.name}/" for name in labels if name not in val_labels]
    differences += [f"{name} is only in {val.name}/" for name in val_labels if name not in labels]
    _raise_or_collect(
        f"The classes of {train} and {val} differ: {'; '.join(differences)}. "
        "Use the same class folders in both.",
        problems,
    )
    return sorted({*labels, *val_labels})


def _list_test(
    test: Path, labels: Sequence[str], train: Path, problems: list[str] | None
) -> tuple[list[LabeledFile], list[RejectedFile]]:
    classes = sorted(_folders(test), key=lambda entry: entry.name)
    unknown = [entry.name for entry in classes if entry.name not in labels]
    if unknown:
        _raise_or_collect(
            f"{test} has folders that are no classes of {train}: {', '.join(unknown)}. "
            "Rename or remove them.",
            problems,
        )
    files: list[LabeledFile] = []
    rejected: list[RejectedFile] = []
    for entry in classes:
        if entry.name in labels:
            images, others = _list_class(entry, "test")
            files += images
            rejected += others
    return files, rejected


def _list_classes(
    folder: Path, split: SplitName | None, problems: list[str] | None
) -> tuple[list[str], list[LabeledFile], list[RejectedFile]]:
    classes = sorted(_folders(folder), key=lambda entry: entry.name)
    if not classes:
        if any(_is_image(path) for path in walk_files(folder)):
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
        images, others = _list_class(entry, split)
        rejected += others
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


def _list_class(
    folder: Path, split: SplitName | None
) -> tuple[list[LabeledFile], list[RejectedFile]]:
    paths = sorted(walk_files(folder))
    images = [LabeledFile(path, folder.name, split) for path in paths if _is_image(path)]
    others = [
        RejectedFile(path, "not an image by its name") for path in paths if not _is_image(path)
    ]
    return images, others


def _raise_or_collect(message: str, problems: list[str] | None) -> None:
    if problems is None:
        raise DataError(message)
    problems.append(message)


def _folders(folder: Path) -> list[Path]:
    return [
        entry for entry in _entries(folder) if entry.is_dir() and not is_ignored_name(entry.name)
    ]


def _list_stray_files(folder: Path) -> list[RejectedFile]:
    return [
        RejectedFile(path, "not in a class folder")
        for path in sorted(_entries(folder))
        if path.is_file() and not is_ignored_name(path.name)
    ]


def _entries(folder: Path) -> list[Path]:
    try:
        return [*folder.iterdir()]
    except OSError as cause:
        raise_unreadable_folder(cause)


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES

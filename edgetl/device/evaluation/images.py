"""Labeled images of an evaluation: class folders, data folders with splits, runs and CSV files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgetl.core.artifacts.run_config import read_run_configuration
from edgetl.core.artifacts.split import read_split
from edgetl.core.config.evaluate import EvaluateConfig
from edgetl.core.config.split_names import SPLIT_FOLDERS, SPLITS, SplitName
from edgetl.core.errors import ConfigError, DataError
from edgetl.core.files import read_csv
from edgetl.core.formatting import pluralize
from edgetl.core.paths import RunDirectory
from edgetl.device.runtime.images import is_ignored_name, list_images, raise_unreadable_folder

DEFAULT_SPLITS: tuple[SplitName, ...] = ("test", "val")
"""Splits to evaluate on, the first that the data have."""
_MAX_LISTED = 10


@dataclass(frozen=True)
class LabeledImage:
    """Image file with its class."""

    path: str
    label: str
    groups: tuple[str, ...] = ()
    """Value of each column or level of `group_by`."""


@dataclass(frozen=True)
class ImageList:
    """Images to evaluate on."""

    paths: list[str]
    labels: NDArray[np.int32]
    """Class of each image."""
    groups: Mapping[str, NDArray[np.str_]]
    """Value of each image, by column or level of `group_by`."""
    description: str
    split: SplitName | None = None
    ignored_classes: Mapping[str, int] = field(default_factory=dict)
    """Images that were left out, by class."""


def list_evaluated_images(config: EvaluateConfig, labels: Sequence[str]) -> ImageList:
    """List the images of DATA with their classes; nothing is decoded.

    Args:
        config: Options.
        labels: Labels of the bundle.

    Raises:
        DataError: There are no images, or a class is not among the labels.
        ConfigError: The data have no such split, column or level.
        RunError: The run is broken.
    """
    data = Path(config.data)
    if not data.exists():
        raise DataError(
            f"{data} not found. Give a folder with one folder of images per class, a run or a CSV "
            "file with the columns path and label."
        )
    split: SplitName | None = None
    if data.is_file():
        images, description = list(_read_table(data, config.group_by)), data.name
    elif RunDirectory.exists_at(data):
        levels = _parse_levels(config.group_by)
        images, split = _read_run(RunDirectory(data), config.split, levels)
        description = f"the run {data}, split {split}"
    else:
        levels = _parse_levels(config.group_by)
        folder, split = _select_folder(data, config.split, labels)
        images = list(_read_class_folders(folder, labels, config.ignore_other_classes, levels))
        description = str(folder)
    return _select_known_classes(images, labels, config, description, split)


def _select_known_classes(
    images: Sequence[LabeledImage],
    labels: Sequence[str],
    config: EvaluateConfig,
    description: str,
    split: SplitName | None,
) -> ImageList:
    positions = {label: index for index, label in enumerate(labels)}
    ignored = Counter(image.label for image in images if image.label not in positions)
    if ignored and not config.ignore_other_classes:
        raise DataError(_describe_other_classes(ignored, labels), EvaluateConfig)
    labeled = [image for image in images if image.label in positions]
    if not labeled:
        raise DataError(
            f"No images of the bundle's classes in {description}. The labels are: {join_names(labels)}."
        )
    columns = zip(*(image.groups for image in labeled), strict=True)
    names = [_describe_group_key(key) for key in config.group_by]
    return ImageList(
        paths=[image.path for image in labeled],
        labels=np.array([positions[image.label] for image in labeled], np.int32),
        groups={name: np.array(column) for name, column in zip(names, columns, strict=True)},
        description=description,
        split=split,
        ignored_classes=dict(ignored),
    )


def _describe_other_classes(classes: Counter[str], labels: Sequence[str]) -> str:
    counts = join_names(
        [f"{name} ({pluralize(count, 'image')})" for name, count in classes.items()]
    )
    return (
        f"The data have classes that are not among the bundle's labels: {counts}. "
        f"The labels are: {join_names(labels)}. Rename the classes, or leave their images out with "
        "{ignore_other_classes}."
    )


def join_names(names: Sequence[str]) -> str:
    """Return the first names, separated by commas, and the number of the others."""
    text = ", ".join(names[:_MAX_LISTED])
    return text if len(names) <= _MAX_LISTED else f"{text} and {len(names) - _MAX_LISTED} more"


def _describe_group_key(key: str) -> str:
    return f"folder level {key}" if key.isdecimal() else key


def _parse_levels(group_by: Sequence[str]) -> tuple[int, ...]:
    for key in group_by:
        if not key.isdecimal() or int(key) < 1:
            raise ConfigError(
                f"{{group_by}} must be a level from 1 on for folders, got {key!r}. 1 is the "
                "folder inside the class folder; columns need a CSV file.",
                EvaluateConfig,
            )
    return tuple(map(int, group_by))


def _read_table(path: Path, columns: Sequence[str]) -> Iterator[LabeledImage]:
    """Yield the images of a CSV file, whose paths are relative to its folder."""
    try:
        rows = read_csv(path)
    except (OSError, ValueError) as cause:
        raise DataError(
            f"{path} cannot be read as a CSV file ({cause}). Give a UTF-8 file with the columns "
            "path and label."
        ) from cause
    available = list(rows[0]) if rows else []
    for column in ("path", "label"):
        if column not in available:
            raise DataError(
                f"{path} must have the columns path and label, got {', '.join(available) or 'none'}."
            )
    for column in columns:
        if column not in available:
            raise ConfigError(
                f"{path} has no column {column!r} for {{group_by}}. "
                f"Columns: {', '.join(available)}.",
                EvaluateConfig,
            )
    for row in rows:
        groups = tuple(row[column] for column in columns)
        yield LabeledImage(str(path.parent / row["path"]), row["label"], groups)


def _read_run(
    run: RunDirectory, requested: SplitName | None, levels: Sequence[int]
) -> tuple[list[LabeledImage], SplitName]:
    configuration = read_run_configuration(run)
    entries = read_split(run, configuration)
    splits = {entry.split for entry in entries}
    split = _select_split([name for name in SPLITS if name in splits], requested, f"The run {run}")
    data = Path(configuration.config.data)
    if not data.is_dir():
        raise DataError(
            f"The images of the run {run} are not at {data}. Copy them there, or give the folder "
            "of the images instead of the run."
        )
    images = []
    for entry in entries:
        if entry.split == split:
            folders = entry.path.relative_to(data).parent.parts
            inner = folders[folders.index(entry.label) + 1 :] if entry.label in folders else folders
            images.append(LabeledImage(str(entry.path), entry.label, _select(inner, levels)))
    return images, split


def _select(folders: Sequence[str], levels: Sequence[int]) -> tuple[str, ...]:
    return tuple(folders[level - 1] if level <= len(folders) else "" for level in levels)


def _select_folder(
    data: Path, requested: SplitName | None, labels: Sequence[str]
) -> tuple[Path, SplitName | None]:
    """Return the folder of class folders and its split, None if the data have none."""
    folders = {
        entry.name.lower(): entry for entry in _list_folders(data) if entry.name not in labels
    }
    available: dict[SplitName, Path] = {
        split: folders[name]
        for split, names in SPLIT_FOLDERS.items()
        for name in reversed(names)
        if name in folders
    }
    if requested is None and not available:
        return data, None
    split = _select_split(list(available), requested, str(data))
    return available[split], split


def _select_split(
    available: Sequence[SplitName], requested: SplitName | None, source: str
) -> SplitName:
    splits = DEFAULT_SPLITS if requested is None else (requested,)
    for split in splits:
        if split in available:
            return split
    raise ConfigError(
        f"{source} has no {' or '.join(splits)} images. Splits: {', '.join(available) or 'none'}. "
        "Choose {split}.",
        EvaluateConfig,
    )


def _read_class_folders(
    folder: Path, labels: Sequence[str], ignore_others: bool, levels: Sequence[int]
) -> Iterator[LabeledImage]:
    classes = sorted(_list_folders(folder), key=lambda entry: entry.name)
    if not classes:
        raise DataError(
            f"{folder} has no class folders. Use one folder of images per class, named as the "
            f"bundle's labels: {join_names(labels)}."
        )
    for entry in classes:
        for path in list_images(entry):
            inner = path.parent.relative_to(entry).parts
            yield LabeledImage(str(path), entry.name, _select(inner, levels))


def _list_folders(folder: Path) -> list[Path]:
    try:
        return [
            entry
            for entry in folder.iterdir()
            if entry.is_dir() and not is_ignored_name(entry.name)
        ]
    except OSError as cause:
        raise_unreadable_folder(cause)

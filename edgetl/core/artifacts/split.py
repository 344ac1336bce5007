"""Split of a run's images: split.csv."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from edgetl.core.artifacts.run_config import RunConfiguration
from edgetl.core.config.split_names import SPLITS, SplitName
from edgetl.core.errors import RunError
from edgetl.core.files import read_csv, write_csv
from edgetl.core.paths import RunDirectory

_MAX_CELL_CHARACTERS = 100
"""Maximum characters of an invalid cell in a message."""


@dataclass(frozen=True)
class SplitEntry:
    """Image of a run with its label and split."""

    path: Path
    """Absolute path."""
    label: str
    split: SplitName


def write_split(run: RunDirectory, data: Path, entries: Sequence[SplitEntry]) -> None:
    """Write split.csv: path relative to the data folder with forward slashes, label, split."""
    write_csv(
        run.split,
        ("path", "label", "split"),
        [(entry.path.relative_to(data).as_posix(), entry.label, entry.split) for entry in entries],
    )


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

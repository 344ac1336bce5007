"""The worst of a data set as a picture."""

from __future__ import annotations

import csv
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageOps

from edgetl.core.errors import DataError, DecodeError
from edgetl.device.runtime.images import load_image
from edgetl.report.plots.contact_sheet import MAX_TILES, Tile, save_photo_sheet
from edgetl.report.plots.style import save_message_figure
from edgetl.train.check.dataset_check import DatasetReport, worst_files

_TILE_SIDE = 200


def draw_worst_files(found: DatasetReport, path: Path) -> None:
    """Write a PNG of the files to look at first."""
    chosen = worst_files(found, MAX_TILES)
    if not chosen:
        save_message_figure(
            path, "Nothing to look at", f"{found.image_count} images, nothing wrong with any."
        )
        return
    tiles = [
        Tile(_load_tile(file), found.display_path(file), ((finding.severity, finding.kind, ""),))
        for finding, file in chosen
    ]
    save_photo_sheet(path, f"{found.folder.name}: what to look at first", tiles)


def _load_tile(path: Path) -> NDArray[Any]:
    try:
        return np.asarray(
            ImageOps.pad(Image.fromarray(load_image(path)), (_TILE_SIDE, _TILE_SIDE), color="white")
        )
    except DecodeError:
        blank = Image.new("RGB", (_TILE_SIDE, _TILE_SIDE), "#dddddd")
        drawing = ImageDraw.Draw(blank)
        drawing.line((0, 0, _TILE_SIDE, _TILE_SIDE), fill="#999999", width=2)
        drawing.line((0, _TILE_SIDE, _TILE_SIDE, 0), fill="#999999", width=2)
        return np.asarray(blank)


LIST_FILE_NAME = "list.csv"


def quarantine(found: DatasetReport, folder: Path) -> int:
    """Copy the files of errors and warnings into a new folder, one below it for each kind, with a list.

    Returns:
        How many files were copied.

    Raises:
        DataError: the folder is not empty, lies inside the data set, or cannot be written.
    """
    folder = folder.expanduser().absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(
            f"{folder} exists and is not empty. Choose another folder for --quarantine."
        )
    if folder.resolve().is_relative_to(found.folder.resolve()):
        raise DataError(
            f"{folder} would lie inside the data folder, where a later run would take it for a class. Choose another."
        )
    copied = 0
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / LIST_FILE_NAME).open(
            "w", newline="", encoding="utf-8", errors="backslashreplace"
        ) as stream:
            table = csv.writer(stream)
            table.writerow(("severity", "kind", "group", "file", "copy"))
            for finding in found.findings_with_severity("error", "warning"):
                for number, group in enumerate(finding.groups, 1):
                    for path in group:
                        copy = (
                            folder
                            / re.sub(r"\W+", "-", finding.kind)
                            / found.display_path(path).lstrip("/")
                        )
                        done = _try_copy(path, copy)
                        copied += done
                        table.writerow(
                            (
                                finding.severity,
                                finding.kind,
                                number,
                                found.display_path(path),
                                copy if done else "could not be copied",
                            )
                        )
    except OSError as cause:
        raise DataError(
            f"{folder} cannot be written ({cause.strerror or cause}). Choose another folder for --quarantine."
        ) from cause
    return copied


def _try_copy(path: Path, copy: Path) -> bool:
    try:
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    except (FileNotFoundError, PermissionError):
        return False
    return True

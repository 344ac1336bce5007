"""Review of findings: contact sheet and quarantine folder."""

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


def draw_worst_files(report: DatasetReport, path: Path) -> None:
    """Write a PNG with the worst files of a data set."""
    examples = worst_files(report, MAX_TILES)
    if not examples:
        save_message_figure(path, "No problems", f"{report.image_count} images without problems.")
        return
    tiles = [
        Tile(_load_tile(file), report.display_path(file), ((finding.severity, finding.kind, ""),))
        for finding, file in examples
    ]
    save_photo_sheet(path, f"{report.folder.name}: worst files", tiles)


def _load_tile(path: Path) -> NDArray[Any]:
    size = (_TILE_SIDE, _TILE_SIDE)
    try:
        return np.asarray(ImageOps.pad(Image.fromarray(load_image(path)), size, color="white"))
    except DecodeError:
        blank = Image.new("RGB", size, "#dddddd")
        drawing = ImageDraw.Draw(blank)
        drawing.line((0, 0, _TILE_SIDE, _TILE_SIDE), fill="#999999", width=2)
        drawing.line((0, _TILE_SIDE, _TILE_SIDE, 0), fill="#999999", width=2)
        return np.asarray(blank)


LIST_FILE_NAME = "list.csv"


def copy_problem_files(report: DatasetReport, folder: Path) -> int:
    """Copy the files of errors and warnings into a new folder, with a list of them.

    There is one subfolder for each kind of finding.

    Returns:
        Number of copied files.

    Raises:
        DataError: if the folder is not empty, lies inside the data folder, or cannot be written.
    """
    folder = folder.expanduser().absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder} already exists and is not empty. Choose another folder.")
    if folder.resolve().is_relative_to(report.folder.resolve()):
        raise DataError(
            f"{folder} must not be inside the data folder, where it would become a class. "
            "Choose another folder."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return _copy_files(report, folder)
    except OSError as cause:
        raise DataError(
            f"Cannot write to {folder} ({cause.strerror or cause}). Choose another folder."
        ) from cause


def _copy_files(report: DatasetReport, folder: Path) -> int:
    copied_files = 0
    with (folder / LIST_FILE_NAME).open(
        "w", newline="", encoding="utf-8", errors="backslashreplace"
    ) as stream:
        table = csv.writer(stream)
        table.writerow(("severity", "kind", "group", "file", "copy"))
        for finding in report.findings_with_severity("error", "warning"):
            kind_folder = folder / re.sub(r"\W+", "-", finding.kind)
            for number, group in enumerate(finding.groups, 1):
                for path in group:
                    name = report.display_path(path)
                    copy = kind_folder / name.lstrip("/")
                    is_copied = _try_copy(path, copy)
                    copied_files += is_copied
                    copy_cell = copy if is_copied else "could not be copied"
                    table.writerow((finding.severity, finding.kind, number, name, copy_cell))
    return copied_files


def _try_copy(path: Path, copy: Path) -> bool:
    try:
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    except (FileNotFoundError, PermissionError):
        return False
    return True

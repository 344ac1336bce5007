"""The worst of a data set as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageOps

from edgetl.core.errors import DecodeError
from edgetl.device.images import load_image
from edgetl.report.figures import say_only
from edgetl.report.sheet import SHOWN, Tile, draw_sheet
from edgetl.train.checking.checking import DataCheck, worst_files

_SIDE = 200


def draw_worst(found: DataCheck, path: Path) -> None:
    """Write a PNG of the files to look at first."""
    chosen = worst_files(found, SHOWN)
    if not chosen:
        say_only(path, "Nothing to look at", f"{found.images} images, nothing wrong with any.")
        return
    tiles = [
        Tile(_tile(file), found.shown(file), ((finding.severity, finding.kind, ""),))
        for finding, file in chosen
    ]
    draw_sheet(path, f"{found.folder.name}: what to look at first", tiles)


def _tile(path: Path) -> NDArray[Any]:
    try:
        return np.asarray(
            ImageOps.pad(Image.fromarray(load_image(path)), (_SIDE, _SIDE), color="white")
        )
    except DecodeError:
        blank = Image.new("RGB", (_SIDE, _SIDE), "#dddddd")
        drawing = ImageDraw.Draw(blank)
        drawing.line((0, 0, _SIDE, _SIDE), fill="#999999", width=2)
        drawing.line((0, _SIDE, _SIDE, 0), fill="#999999", width=2)
        return np.asarray(blank)

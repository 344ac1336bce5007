"""A sheet of the photos that a smaller variant labels otherwise than PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgetl.device.images import load_image
from edgetl.export.accounting import Flip
from edgetl.report.figures import say_only
from edgetl.report.sheet import SHOWN, Tile, draw_sheet
from edgetl.train.plots import thumbnail


def draw_flips(path: Path, variant: str, flips: Sequence[Flip], total: int) -> None:
    """Draw them as a PNG; where there are none the picture says so."""
    path.parent.mkdir(exist_ok=True)
    if not flips:
        say_only(path, f"{variant}: no label changed", f"All {total} images get PyTorch's label.")
        return
    tiles = [
        Tile(
            thumbnail(load_image(flip.file)),
            flip.file.name,
            (
                *((("true", flip.truth, ""),) if flip.truth else ()),
                ("PyTorch", flip.expected, ""),
                (variant, flip.found, ""),
            ),
        )
        for flip in flips[:SHOWN]
    ]
    shown = f", {SHOWN} of them" if len(flips) > SHOWN else ""
    draw_sheet(
        path,
        f"{variant} labels {len(flips)} of {total} images otherwise than PyTorch{shown}",
        tiles,
    )

"""A sheet of photos with captions."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgetl.report.plots.style import (
    INK,
    escape_mathtext,
    new_figure,
    save_figure,
    save_message_figure,
    shorten_middle,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray


MAX_TILES = 16
"""Most photos on a sheet."""
_MAX_COLUMNS = 4


@dataclass(frozen=True)
class Tile:
    """One photo."""

    image: NDArray[Any]
    """uint8 [side, side, 3]: squares of one size keep the sheet a grid."""
    file_name: str
    """Of the file."""
    caption: Sequence[tuple[str, str, str]]
    """Lines of (what, label, figure): `("true", "cat", "12%")`."""


def save_photo_sheet(path: Path, title: str, tiles: Sequence[Tile]) -> None:
    """Draw the tiles row by row and write a PNG."""
    columns = min(_MAX_COLUMNS, len(tiles))
    rows = -(-len(tiles) // columns)
    figure = new_figure(max(5.5, 2.75 * columns), 0.6 + 3.3 * rows)
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.set(h_pad=0.12)  # type: ignore[call-arg]
    figure.suptitle(title, fontsize=12, color=INK)
    for axes, tile in zip(
        figure.subplots(rows, columns, squeeze=False).flat,
        [*tiles, *[None] * columns],
        strict=False,
    ):
        axes.set_axis_off()
        if tile is None:
            continue
        axes.imshow(tile.image)
        caption = "\n".join(
            f"{what}: {_wrap_label(label)}" + (f"  ({figure})" if figure else "")
            for what, label, figure in tile.caption
        )
        axes.set_title(
            escape_mathtext(caption), loc="left", fontsize=9, color=INK, linespacing=1.25, pad=5
        )
        axes.text(
            0,
            -0.02,
            escape_mathtext(shorten_middle(tile.file_name, 32)),
            transform=axes.transAxes,
            va="top",
            fontsize=7,
            color="#666666",
        )
    save_figure(figure, path)


def _wrap_label(label: str) -> str:
    return "\n".join(textwrap.wrap(shorten_middle(label, 44), 24)) or label


@dataclass(frozen=True)
class Mistake:
    """A validation image that was taken for another class."""

    image: NDArray[Any]
    """uint8 [side, side, 3]: squares of one size keep the sheet a grid."""
    file_name: str
    """Of the file."""
    true: str
    predicted: str
    probability: float
    """Of the predicted class."""
    true_probability: float


def save_mistakes_sheet(path: Path, mistakes: Sequence[Mistake], wrong: int, total: int) -> None:
    """Draw the mistakes that the network was surest of.

    Args:
        wrong: mistakes in all.
        total: validation images; where there are none, or no mistakes, the picture says so.
    """
    if not total:
        save_message_figure(
            path, "No mistakes known", "The run was trained without validation images."
        )
        return
    if not mistakes:
        save_message_figure(path, "No mistakes", f"All {total} validation images were recognised.")
        return
    shown = (
        f"the {len(mistakes)} that the network was surest of"
        if len(mistakes) < wrong
        else "surest first"
    )
    tiles = [
        Tile(
            mistake.image,
            mistake.file_name,
            (
                ("true", mistake.true, f"{mistake.true_probability:.0%}"),
                ("predicted", mistake.predicted, f"{mistake.probability:.0%}"),
            ),
        )
        for mistake in mistakes
    ]
    save_photo_sheet(path, f"{wrong} of {total} validation images wrong; {shown}", tiles)

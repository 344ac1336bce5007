"""Contact sheets: images in a grid with captions."""

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
    from matplotlib.axes import Axes
    from numpy.typing import NDArray


MAX_TILES = 16
"""Maximum number of images on a sheet."""
_MAX_COLUMNS = 4


@dataclass(frozen=True)
class Tile:
    """One image of a contact sheet."""

    image: NDArray[Any]
    """RGB image, uint8 [side, side, 3], of the same side for all images of a sheet."""
    file_name: str
    caption: Sequence[tuple[str, str, str]]
    """Lines of (name, label, value), such as `("true", "cat", "12%")`; the value may be empty."""


def save_photo_sheet(path: Path, title: str, tiles: Sequence[Tile]) -> None:
    """Draw the images row by row and write a PNG file."""
    columns = min(_MAX_COLUMNS, len(tiles))
    rows = -(-len(tiles) // columns)
    figure = new_figure(max(5.5, 2.75 * columns), 0.6 + 3.3 * rows)
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.set(h_pad=0.12)  # type: ignore[call-arg]
    figure.suptitle(title, fontsize=12, color=INK)
    all_axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in all_axes:
        axes.set_axis_off()
    for axes, tile in zip(all_axes, tiles, strict=False):
        _draw_tile(axes, tile)
    save_figure(figure, path)


def _draw_tile(axes: Axes, tile: Tile) -> None:
    axes.imshow(tile.image)
    lines = []
    for name, label, value in tile.caption:
        suffix = f"  ({value})" if value else ""
        lines.append(f"{name}: {_wrap_label(label)}{suffix}")
    axes.set_title(
        escape_mathtext("\n".join(lines)),
        loc="left",
        fontsize=9,
        color=INK,
        linespacing=1.25,
        pad=5,
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


def _wrap_label(label: str) -> str:
    return "\n".join(textwrap.wrap(shorten_middle(label, 44), 24)) or label


@dataclass(frozen=True)
class Mistake:
    """A misclassified validation image."""

    image: NDArray[Any]
    """RGB image, uint8 [side, side, 3], of the same side for all images of a sheet."""
    file_name: str
    true: str
    predicted: str
    probability: float
    """Predicted probability of the predicted class."""
    true_probability: float
    """Predicted probability of the true class."""


def save_mistakes_sheet(path: Path, mistakes: Sequence[Mistake], wrong: int, total: int) -> None:
    """Draw the given mistakes, or a message if there are none.

    Args:
        path: the PNG file to write.
        mistakes: mistakes to draw, most confident first.
        wrong: number of all mistakes.
        total: number of validation images.
    """
    if not total:
        save_message_figure(path, "No mistakes known", "The run had no validation images.")
        return
    if not mistakes:
        save_message_figure(
            path, "No mistakes", f"All {total} validation images were classified correctly."
        )
        return
    selection = "most confident first"
    if len(mistakes) < wrong:
        selection = f"the {len(mistakes)} most confident"
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
    save_photo_sheet(path, f"{wrong} of {total} validation images wrong; {selection}", tiles)

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
_TITLE_INCHES, _TILE_INCHES, _GAP_INCHES = 0.5, 2.5, 0.25
_CAPTION_LINE_INCHES, _FILE_NAME_INCHES = 0.18, 0.35
"""Sizes of the parts of a sheet; a line of the caption is 9 points high, with spacing."""


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
    captions = [_format_caption(tile) for tile in tiles]
    caption_lines = max(caption.count("\n") + 1 for caption in captions)
    caption_height = caption_lines * _CAPTION_LINE_INCHES
    row_height = caption_height + _TILE_INCHES + _FILE_NAME_INCHES
    width = max(5.5, columns * (_TILE_INCHES + _GAP_INCHES) + _GAP_INCHES)
    height = _TITLE_INCHES + rows * row_height
    # Positions are known, and a layout engine would measure every text several times: 2.5 s instead
    # of 0.5 s for 16 images.
    figure = new_figure(width, height, layout=None)
    figure.suptitle(title, fontsize=12, color=INK, y=1 - 0.5 * _TITLE_INCHES / height, va="center")
    margin = (width - columns * (_TILE_INCHES + _GAP_INCHES) + _GAP_INCHES) / 2
    for index, (tile, caption) in enumerate(zip(tiles, captions, strict=True)):
        row, column = divmod(index, columns)
        left = margin + column * (_TILE_INCHES + _GAP_INCHES)
        bottom = height - _TITLE_INCHES - row * row_height - caption_height - _TILE_INCHES
        position = (
            left / width,
            bottom / height,
            _TILE_INCHES / width,
            _TILE_INCHES / height,
        )
        _draw_tile(figure.add_axes(position), tile, caption)
    save_figure(figure, path)


def _format_caption(tile: Tile) -> str:
    lines = []
    for name, label, value in tile.caption:
        suffix = f"  ({value})" if value else ""
        lines.append(f"{name}: {_wrap_label(label)}{suffix}")
    return "\n".join(lines)


def _draw_tile(axes: Axes, tile: Tile, caption: str) -> None:
    axes.set_axis_off()
    axes.imshow(tile.image)
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

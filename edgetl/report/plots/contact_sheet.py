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
_MAX_COLUMNS, _MAX_PAIR_COLUMNS = 4, 3
_TILE_INCHES, _PAIRED_TILE_INCHES = 2.5, 1.75
_TITLE_INCHES, _GAP_INCHES, _PAIR_GAP_INCHES = 0.5, 0.25, 0.04
_TEXT_LINE_INCHES, _FILE_NAME_INCHES = 0.18, 0.35
"""Sizes of the parts of a sheet; a line of a caption or note is 9 points high, with spacing."""
_NOTE_CHARACTERS_PER_INCH = 13


@dataclass(frozen=True)
class Tile:
    """One image of a contact sheet."""

    image: NDArray[Any]
    """RGB image, uint8 [side, side, 3], of the same side for all images of a sheet."""
    file_name: str
    caption: Sequence[tuple[str, str, str]]
    """Lines of (name, label, value), such as `("true", "cat", "12%")`; the value may be empty."""
    second_image: NDArray[Any] | None = None
    """Image to draw on the right of the first, of the same size."""


def save_photo_sheet(path: Path, title: str, tiles: Sequence[Tile], note: str = "") -> None:
    """Draw the images row by row and write a PNG file; `note` stands below the title."""
    has_pairs = any(tile.second_image is not None for tile in tiles)
    columns = min(_MAX_PAIR_COLUMNS if has_pairs else _MAX_COLUMNS, len(tiles))
    rows = -(-len(tiles) // columns)
    side = _PAIRED_TILE_INCHES if has_pairs else _TILE_INCHES
    tile_width = 2 * side + _PAIR_GAP_INCHES if has_pairs else side
    captions = [_format_caption(tile) for tile in tiles]
    caption_lines = max(caption.count("\n") + 1 for caption in captions)
    caption_height = caption_lines * _TEXT_LINE_INCHES
    row_height = caption_height + side + _FILE_NAME_INCHES
    width = max(5.5, columns * (tile_width + _GAP_INCHES) + _GAP_INCHES)
    note_lines = textwrap.wrap(note, int(_NOTE_CHARACTERS_PER_INCH * width))
    top = _TITLE_INCHES + len(note_lines) * _TEXT_LINE_INCHES
    height = top + rows * row_height
    # Positions are known, and a layout engine would measure every text several times: 2.5 s instead
    # of 0.5 s for 16 images.
    figure = new_figure(width, height, layout=None)
    figure.suptitle(title, fontsize=12, color=INK, y=1 - 0.5 * _TITLE_INCHES / height, va="center")
    text_style: dict[str, Any] = {"fontsize": 9, "color": "#666666", "ha": "center", "va": "bottom"}
    for number, line in enumerate(note_lines, 1):
        bottom = height - _TITLE_INCHES - number * _TEXT_LINE_INCHES + _TEXT_LINE_INCHES / 2
        figure.text(0.5, bottom / height, line, **text_style)
    margin = (width - columns * (tile_width + _GAP_INCHES) + _GAP_INCHES) / 2
    for index, (tile, caption) in enumerate(zip(tiles, captions, strict=True)):
        row, column = divmod(index, columns)
        left = margin + column * (tile_width + _GAP_INCHES)
        bottom = height - top - row * row_height - caption_height - side
        size = (side / width, side / height)
        _draw_tile(figure.add_axes((left / width, bottom / height, *size)), tile, caption)
        if tile.second_image is not None:
            right = left + side + _PAIR_GAP_INCHES
            axes = figure.add_axes((right / width, bottom / height, *size))
            axes.set_axis_off()
            axes.imshow(tile.second_image)
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


_EXPLANATION_NOTE = (
    "Right: evidence for the predicted class (Grad-CAM), from blue (a little) to yellow (the most), in the "
    "part of the photo that the network sees"
)


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
    explanation: NDArray[Any] | None = None
    """The image with the evidence for the predicted class in color; None if it is not known."""


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
            mistake.explanation,
        )
        for mistake in mistakes
    ]
    has_explanations = any(mistake.explanation is not None for mistake in mistakes)
    title = f"{wrong} of {total} validation images wrong; {selection}"
    save_photo_sheet(path, title, tiles, _EXPLANATION_NOTE if has_explanations else "")

"""A sheet of the worst mistakes: the photos themselves often tell why."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgetl.report.figures import INK, literal, new_figure, save_figure, say_only, shortened

if TYPE_CHECKING:
    from numpy.typing import NDArray

SHOWN = 16
"""Most mistakes on a sheet."""
_COLUMNS = 4


@dataclass(frozen=True)
class Mistake:
    """A validation image that was taken for another class."""

    image: NDArray[Any]
    """uint8 [side, side, 3]: squares of one size keep the sheet a grid."""
    name: str
    """Of the file."""
    true: str
    predicted: str
    probability: float
    """Of the predicted class."""
    true_probability: float


def draw_mistakes(path: Path, mistakes: Sequence[Mistake], wrong: int, total: int) -> None:
    """Draw the mistakes that the network was surest of.

    Args:
        wrong: mistakes in all.
        total: validation images; where there are none, or no mistakes, the picture says so.
    """
    if not total:
        say_only(path, "No mistakes known", "The run was trained without validation images.")
        return
    if not mistakes:
        say_only(path, "No mistakes", f"All {total} validation images were recognised.")
        return
    columns = min(_COLUMNS, len(mistakes))
    rows = -(-len(mistakes) // columns)
    figure = new_figure(max(5.5, 2.75 * columns), 0.6 + 3.3 * rows)
    shown = f"the {len(mistakes)} that the network was surest of" if len(mistakes) < wrong else "surest first"
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.set(h_pad=0.12)  # type: ignore[call-arg]
    figure.suptitle(f"{wrong} of {total} validation images wrong; {shown}", fontsize=12, color=INK)
    for axes, mistake in zip(figure.subplots(rows, columns, squeeze=False).flat, [*mistakes, *[None] * columns], strict=False):
        axes.set_axis_off()
        if mistake is None:
            continue
        axes.imshow(mistake.image)
        caption = (
            f"true: {_wrapped(mistake.true)}  ({mistake.true_probability:.0%})\n"
            f"predicted: {_wrapped(mistake.predicted)}  ({mistake.probability:.0%})"
        )
        axes.set_title(literal(caption), loc="left", fontsize=9, color=INK, linespacing=1.25, pad=5)
        axes.text(0, -0.02, literal(shortened(mistake.name, 32)), transform=axes.transAxes, va="top", fontsize=7, color="#666666")
    save_figure(figure, path)


def _wrapped(label: str) -> str:
    return "\n".join(textwrap.wrap(shortened(label, 44), 24)) or label

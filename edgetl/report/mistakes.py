"""A sheet of the worst mistakes: the photos themselves often tell why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgetl.report.figures import say_only
from edgetl.report.sheet import Tile, draw_sheet

if TYPE_CHECKING:
    from numpy.typing import NDArray


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
    shown = (
        f"the {len(mistakes)} that the network was surest of"
        if len(mistakes) < wrong
        else "surest first"
    )
    tiles = [
        Tile(
            mistake.image,
            mistake.name,
            (
                ("true", mistake.true, f"{mistake.true_probability:.0%}"),
                ("predicted", mistake.predicted, f"{mistake.probability:.0%}"),
            ),
        )
        for mistake in mistakes
    ]
    draw_sheet(path, f"{wrong} of {total} validation images wrong; {shown}", tiles)

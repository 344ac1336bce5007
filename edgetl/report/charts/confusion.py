"""The confusion matrix drawn in the page's colours, and the pairs of classes that are confused most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from markupsafe import Markup

from edgetl.report.charts.svg import PAPER, render_svg
from edgetl.report.html.blocks import figure
from edgetl.report.plots.style import BLUE, INK, escape_mathtext, shorten_middle

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_DRAWN_CLASSES = 15
"""Most classes whose matrix can be read on a phone."""


@dataclass(frozen=True)
class ConfusedPair:
    """A class that was taken for another."""

    true: str
    predicted: str
    count: int
    true_class_images: int
    """Of the true class."""


def rank_confused_pairs(
    confusion: Sequence[Sequence[int]], labels: Sequence[str]
) -> list[ConfusedPair]:
    """Every pair of classes that was confused, the most frequent first, of equals the larger share of the true class."""
    pairs = [
        ConfusedPair(labels[true], labels[predicted], count, sum(row))
        for true, row in enumerate(confusion)
        for predicted, count in enumerate(row)
        if count and true != predicted
    ]
    return sorted(pairs, key=lambda pair: (-pair.count, -pair.count / pair.true_class_images))


def draw_confusion_matrix(
    title: str, confusion: Sequence[Sequence[int]], labels: Sequence[str]
) -> Markup:
    """Counts [true][predicted], up to DRAWN classes, shaded by the share of the true class."""
    names = [escape_mathtext(shorten_middle(label, 16)) for label in labels]
    places = range(len(labels))

    def paint(drawing: Figure) -> None:
        from matplotlib.patches import Rectangle

        axes = drawing.subplots()
        for true, row in enumerate(confusion):
            for predicted, count in enumerate(row):
                if not count:
                    continue
                share, right = count / sum(row), true == predicted
                # Figures in ink on a pale cell, in paper on a full one: in between neither could be read, in light or dark.
                alpha, colour = (
                    (0.08 + 0.7 * share, INK)
                    if share <= 0.5
                    else (0.8 + 0.4 * (share - 0.5), PAPER)
                )
                axes.add_patch(
                    Rectangle(
                        (predicted - 0.48, true - 0.48),
                        0.96,
                        0.96,
                        facecolor=BLUE,
                        alpha=alpha,
                        linewidth=0,
                    )
                )
                axes.text(
                    predicted,
                    true,
                    str(count),
                    ha="center",
                    va="center",
                    color=colour,
                    weight="bold" if right else "normal",
                )
        axes.set_xlim(-0.5, len(labels) - 0.5)
        axes.set_ylim(len(labels) - 0.5, -0.5)
        upright = len(labels) > 4 or any(len(name) > 9 for name in names)
        axes.set_xticks(
            places,
            names,
            rotation=45 if upright else 0,
            ha="right" if upright else "center",
            rotation_mode="anchor",
        )
        axes.set_yticks(places, names)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")

    hits, total = sum(confusion[index][index] for index in places), sum(map(sum, confusion))
    label = f"Confusion matrix: {hits} of {total} images right; rows are the true classes, columns the predicted"
    caption = f"{hits} of {total} validation images right. Shaded by the share of the true class."
    return figure(title, render_svg(label, 1.3 + 0.34 * max(3, len(labels)), paint), (), caption)

"""Chart of a confusion matrix, and the most confused pairs of classes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from markupsafe import Markup

from edgetl.report.charts.svg import PAPER, render_svg
from edgetl.report.html.blocks import Cell, Column, TableRow, figure, table
from edgetl.report.html.text import count_phrase
from edgetl.report.plots.style import BLUE, INK, escape_mathtext, shorten_middle

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_DRAWN_CLASSES = 15
"""Maximum number of classes whose matrix is readable on a phone."""


@dataclass(frozen=True)
class ConfusedPair:
    """A true class and the class predicted instead."""

    true: str
    predicted: str
    count: int
    true_class_images: int
    """Number of images of the true class."""


def rank_confused_pairs(
    confusion: Sequence[Sequence[int]], labels: Sequence[str]
) -> list[ConfusedPair]:
    """Return the confused pairs, by count and then by share of the true class, descending."""
    pairs = [
        ConfusedPair(labels[true], labels[predicted], count, sum(row))
        for true, row in enumerate(confusion)
        for predicted, count in enumerate(row)
        if count and true != predicted
    ]
    return sort_confused_pairs(pairs)


def sort_confused_pairs(pairs: Iterable[ConfusedPair]) -> list[ConfusedPair]:
    """Return pairs by count and then by share of the true class, descending."""
    return sorted(pairs, key=lambda pair: (-pair.count, -pair.count / pair.true_class_images))


def confused_pairs_table(
    pairs: Sequence[ConfusedPair], max_pairs: int, subject: str = ""
) -> Markup:
    """Render the first pairs as a table; `subject` follows the count in its title."""
    columns = [
        Column("true class"),
        Column("predicted"),
        Column("images", "number"),
        Column("of the true class", "number"),
    ]
    rows = [
        TableRow(
            (
                Cell(pair.true),
                Cell(pair.predicted),
                Cell(str(pair.count)),
                Cell(f"{pair.count / pair.true_class_images:.0%}"),
            )
        )
        for pair in pairs[:max_pairs]
    ]
    count = count_phrase(len(pairs), "pair", max_pairs)
    return table(f"Most confused classes: {count}{subject}", columns, rows)


def draw_confusion_matrix(
    title: str,
    confusion: Sequence[Sequence[int]],
    labels: Sequence[str],
    images: str = "validation images",
) -> Markup:
    """Draw a confusion matrix, shaded by the share of the true class.

    Args:
        title: title of the figure.
        confusion: counts as [true][predicted], up to `MAX_DRAWN_CLASSES` classes.
        labels: class names.
        images: what the images are, for the caption.
    """
    names = [escape_mathtext(shorten_middle(label, 16)) for label in labels]
    indices = range(len(labels))

    def paint(drawing: Figure) -> None:
        axes = drawing.subplots()
        for true, row in enumerate(confusion):
            for predicted, count in enumerate(row):
                if count:
                    _draw_cell(axes, true, predicted, count, count / sum(row))
        axes.set_xlim(-0.5, len(labels) - 0.5)
        axes.set_ylim(len(labels) - 0.5, -0.5)
        rotated = len(labels) > 4 or any(len(name) > 9 for name in names)
        axes.set_xticks(
            indices,
            names,
            rotation=45 if rotated else 0,
            ha="right" if rotated else "center",
            rotation_mode="anchor",
        )
        axes.set_yticks(indices, names)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")

    correct = sum(confusion[index][index] for index in indices)
    total = sum(map(sum, confusion))
    label = (
        f"Confusion matrix: {correct} of {total} {images} correct; "
        "rows are true classes, columns predicted classes"
    )
    caption = f"{correct} of {total} {images} correct. Shaded by the share of the true class."
    height = 1.3 + 0.34 * max(3, len(labels))
    return figure(title, render_svg(label, height, paint), (), caption)


def _draw_cell(axes: Axes, true: int, predicted: int, count: int, share: float) -> None:
    from matplotlib.patches import Rectangle

    # Dark text on pale cells, light text on strong ones. In between, neither would be readable in
    # both the light and the dark theme, so the shading skips alpha 0.43 to 0.8.
    alpha, text_color = 0.08 + 0.7 * share, INK
    if share > 0.5:
        alpha, text_color = 0.8 + 0.4 * (share - 0.5), PAPER
    corner = (predicted - 0.48, true - 0.48)
    axes.add_patch(Rectangle(corner, 0.96, 0.96, facecolor=BLUE, alpha=alpha, linewidth=0))
    axes.text(
        predicted,
        true,
        str(count),
        ha="center",
        va="center",
        color=text_color,
        weight="bold" if true == predicted else "normal",
    )

"""Loss and accuracy over the epochs of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgetl.report.plots.style import (
    BLUE,
    GRAY,
    INK,
    ORANGE,
    escape_mathtext,
    new_figure,
    save_figure,
    save_message_figure,
    shorten_middle,
    simplify_axes,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def save_training_curves(
    path: Path, history: Sequence[Mapping[str, Any]], best_epoch: int | None
) -> None:
    """Draw training and validation loss and accuracy.

    Args:
        history: the lines of history.jsonl.
        best_epoch: the epoch whose weights were kept; it is marked.
    """
    figure = new_figure(9.6, 4.2)
    loss, accuracy = figure.subplots(1, 2)
    _plot_metric(loss, history, "loss", best_epoch)
    _plot_metric(accuracy, history, "accuracy", best_epoch)
    loss.set_title("Loss (cross-entropy)", loc="left", fontsize=11, color=INK)
    accuracy.set_title("Accuracy (top-1)", loc="left", fontsize=11, color=INK)
    loss.set_ylim(bottom=0)
    handles, names = accuracy.get_legend_handles_labels()
    figure.legend(
        handles, names, loc="outside lower center", ncols=len(names), frameon=False, fontsize=9.5
    )
    save_figure(figure, path)


def _plot_metric(
    axes: Axes, history: Sequence[Mapping[str, Any]], what: str, best_epoch: int | None
) -> None:
    from matplotlib.ticker import MaxNLocator

    epochs = [record["epoch"] for record in history]
    axes.plot(
        epochs,
        [record[f"train_{what}"] for record in history],
        "o--",
        color=ORANGE,
        markersize=4,
        label="training (augmented)",
    )
    if any(record[f"val_{what}"] is not None for record in history):
        axes.plot(
            epochs,
            [record[f"val_{what}"] for record in history],
            "s-",
            color=BLUE,
            markersize=4.5,
            label="validation",
        )
        kept = [record[f"val_{what}"] for record in history if record["epoch"] == best_epoch]
        if best_epoch is not None and kept:
            name = f"kept: epoch {best_epoch}"
            axes.plot(
                [float(best_epoch)],
                kept,
                "o",
                mfc="none",
                mec=INK,
                markersize=12,
                markeredgewidth=1.4,
                label=name,
            )
    second = [record["epoch"] for record in history if record["phase"] == 2]
    if second and len(second) < len(history):
        axes.axvline(
            second[0] - 0.5, color=GRAY, linewidth=1, linestyle=":", label="last blocks unfrozen"
        )
    axes.set_xlim(epochs[0] - 0.5, epochs[-1] + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlabel("epoch")
    simplify_axes(axes)


_MAX_CLASSES_WITH_COUNTS = 25
"""Most classes for which counts fit into the cells."""

_MOST_CLASSES = 1000
"""Most classes that are drawn: cells of more would be smaller than a pixel, and take minutes and gigabytes."""


def save_confusion_matrix(
    path: Path, confusion: Sequence[Sequence[int]] | None, labels: Sequence[str]
) -> None:
    """Draw counts[true][predicted], coloured by the share of the true class.

    Args:
        confusion: None where there were no validation images; the picture then says so, as above 1000 classes.
    """
    if confusion is None:
        save_message_figure(
            path, "No confusion matrix", "The run was trained without validation images."
        )
        return
    classes = len(labels)
    if classes > _MOST_CLASSES:
        save_message_figure(
            path,
            "No confusion matrix",
            f"{classes} classes are too many to draw. See predictions.csv.",
        )
        return
    side = (
        min(26.0, max(4.6, 2.6 + 0.5 * classes))
        if classes <= _MAX_CLASSES_WITH_COUNTS
        else min(26.0, 4 + 0.2 * classes)
    )
    figure = new_figure(side + 1.0, side)
    axes = figure.subplots()
    shares = [[count / max(1, sum(row)) for count in row] for row in confusion]
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if classes <= _MAX_CLASSES_WITH_COUNTS:
        for true, row in enumerate(confusion):
            for predicted, count in enumerate(row):
                if count:
                    colour = "white" if shares[true][predicted] > 0.55 else INK
                    weight = "bold" if true == predicted else "normal"
                    axes.text(
                        predicted,
                        true,
                        str(count),
                        ha="center",
                        va="center",
                        color=colour,
                        fontsize=10,
                        weight=weight,
                    )
    # With hundreds of classes only some names fit.
    step = max(1, -(-classes // 110))
    names = [escape_mathtext(shorten_middle(label, 22)) for label in labels][::step]
    size = 10 if classes <= _MAX_CLASSES_WITH_COUNTS else 7
    upright = classes > 4 or any(len(name) > 8 for name in names)
    places = range(0, classes, step)
    axes.set_xticks(
        places,
        names,
        rotation=50 if upright else 0,
        ha="right" if upright else "center",
        rotation_mode="anchor",
        fontsize=size,
    )
    axes.set_yticks(places, names, fontsize=size)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    hits, total = (
        sum(confusion[index][index] for index in range(classes)),
        sum(sum(row) for row in confusion),
    )
    axes.set_title(f"{hits} of {total} validation images right", loc="left", fontsize=11, color=INK)
    bar = figure.colorbar(image, ax=axes, shrink=0.7, aspect=25)
    bar.set_label("share of the true class", fontsize=9)
    save_figure(figure, path)

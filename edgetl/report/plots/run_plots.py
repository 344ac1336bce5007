"""PNG plots of a run: training curves and confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from edgetl.core.artifacts.run import EpochRecord
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
    path: Path, history: Sequence[EpochRecord], best_epoch: int | None
) -> None:
    """Draw training and validation loss and accuracy over the epochs.

    Args:
        path: the PNG file to write.
        history: records of all epochs.
        best_epoch: the epoch to mark, whose weights are saved.
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
    axes: Axes,
    history: Sequence[EpochRecord],
    metric: Literal["accuracy", "loss"],
    best_epoch: int | None,
) -> None:
    from matplotlib.ticker import MaxNLocator

    epochs = [record.epoch for record in history]
    train = [getattr(record, f"train_{metric}") for record in history]
    val = [getattr(record, f"val_{metric}") for record in history]
    axes.plot(
        epochs,
        train,
        "o--",
        color=ORANGE,
        markersize=4,
        label="training (augmented)",
    )
    if any(value is not None for value in val):
        axes.plot(
            epochs,
            val,
            "s-",
            color=BLUE,
            markersize=4.5,
            label="validation",
        )
        best = [value for epoch, value in zip(epochs, val, strict=True) if epoch == best_epoch]
        if best_epoch is not None and best:
            axes.plot(
                [float(best_epoch)],
                best,
                "o",
                mfc="none",
                mec=INK,
                markersize=12,
                markeredgewidth=1.4,
                label=f"best: epoch {best_epoch}",
            )
    second_phase = [record.epoch for record in history if record.phase == 2]
    if second_phase and len(second_phase) < len(history):
        axes.axvline(
            second_phase[0] - 0.5,
            color=GRAY,
            linewidth=1,
            linestyle=":",
            label="last blocks unfrozen",
        )
    axes.set_xlim(epochs[0] - 0.5, epochs[-1] + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlabel("epoch")
    simplify_axes(axes)


_MAX_CLASSES_WITH_COUNTS = 25
"""Maximum number of classes for which counts fit into the cells."""

_MAX_DRAWN_CLASSES = 1000
"""Maximum number of classes drawn: with more, a cell is below a pixel and drawing takes minutes
and gigabytes."""


def save_confusion_matrix(
    path: Path, confusion: Sequence[Sequence[int]] | None, labels: Sequence[str]
) -> None:
    """Draw the confusion matrix, colored by the share of the true class.

    Draws a message instead if there is no matrix or more than 1000 classes.

    Args:
        path: the PNG file to write.
        confusion: counts as [true][predicted]; None without validation images.
        labels: the class names.
    """
    if confusion is None:
        save_message_figure(path, "No confusion matrix", "The run had no validation images.")
        return
    classes = len(labels)
    if classes > _MAX_DRAWN_CLASSES:
        save_message_figure(
            path,
            "No confusion matrix",
            f"{classes} classes are too many to draw. See predictions.csv.",
        )
        return
    with_counts = classes <= _MAX_CLASSES_WITH_COUNTS
    side = max(4.6, 2.6 + 0.5 * classes) if with_counts else 4 + 0.2 * classes
    side = min(26.0, side)
    figure = new_figure(side + 1.0, side)
    axes = figure.subplots()
    shares = [[count / max(1, sum(row)) for count in row] for row in confusion]
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if with_counts:
        _draw_counts(axes, confusion, shares)
    _label_classes(axes, labels, font_size=10 if with_counts else 7)
    correct = sum(confusion[index][index] for index in range(classes))
    total = sum(sum(row) for row in confusion)
    title = f"{correct} of {total} validation images correct"
    axes.set_title(title, loc="left", fontsize=11, color=INK)
    bar = figure.colorbar(image, ax=axes, shrink=0.7, aspect=25)
    bar.set_label("share of the true class", fontsize=9)
    save_figure(figure, path)


def _draw_counts(
    axes: Axes, confusion: Sequence[Sequence[int]], shares: Sequence[Sequence[float]]
) -> None:
    for true, row in enumerate(confusion):
        for predicted, count in enumerate(row):
            if not count:
                continue
            axes.text(
                predicted,
                true,
                str(count),
                ha="center",
                va="center",
                color="white" if shares[true][predicted] > 0.55 else INK,
                fontsize=10,
                weight="bold" if true == predicted else "normal",
            )


def _label_classes(axes: Axes, labels: Sequence[str], font_size: int) -> None:
    classes = len(labels)
    # With more than 110 classes only some names fit.
    step = max(1, -(-classes // 110))
    names = [escape_mathtext(shorten_middle(label, 22)) for label in labels][::step]
    ticks = range(0, classes, step)
    rotated = classes > 4 or any(len(name) > 8 for name in names)
    axes.set_xticks(
        ticks,
        names,
        rotation=50 if rotated else 0,
        ha="right" if rotated else "center",
        rotation_mode="anchor",
        fontsize=font_size,
    )
    axes.set_yticks(ticks, names, fontsize=font_size)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")

"""Loss and accuracy over the epochs of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgetl.report.figures import BLUE, GREY, INK, ORANGE, new_figure, plain_axes, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_curves(path: Path, history: Sequence[Mapping[str, Any]], best_epoch: int | None) -> None:
    """Draw training and validation loss and accuracy.

    Args:
        history: the lines of history.jsonl.
        best_epoch: the epoch whose weights were kept; it is marked.
    """
    figure = new_figure(9.6, 4.2)
    loss, accuracy = figure.subplots(1, 2)
    _curve(loss, history, "loss", best_epoch)
    _curve(accuracy, history, "accuracy", best_epoch)
    loss.set_title("Loss (cross-entropy)", loc="left", fontsize=11, color=INK)
    accuracy.set_title("Accuracy (top-1)", loc="left", fontsize=11, color=INK)
    loss.set_ylim(bottom=0)
    handles, names = accuracy.get_legend_handles_labels()
    figure.legend(
        handles, names, loc="outside lower center", ncols=len(names), frameon=False, fontsize=9.5
    )
    save_figure(figure, path)


def _curve(
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
            second[0] - 0.5, color=GREY, linewidth=1, linestyle=":", label="last blocks unfrozen"
        )
    axes.set_xlim(epochs[0] - 0.5, epochs[-1] + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlabel("epoch")
    plain_axes(axes)

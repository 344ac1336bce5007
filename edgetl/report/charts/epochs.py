"""Charts of a run: accuracy and loss over epochs and over time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from markupsafe import Markup

from edgetl.core.artifacts.run import EpochRecord
from edgetl.core.formatting import format_duration, format_percent
from edgetl.report.charts.svg import (
    GRID_GRAY,
    LINE_STYLES,
    LineStyle,
    format_accuracy_axis,
    legend_patch,
    legend_ring,
    render_svg,
)
from edgetl.report.html.blocks import figure
from edgetl.report.html.text import format_number, join_words
from edgetl.report.plots.style import BLUE, GRAY, INK, ORANGE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_TRAIN_STYLE = LineStyle(ORANGE, (4, 1.2))
_VAL_STYLE = LineStyle(BLUE)
_PHASE_STYLE = LineStyle(GRAY, (1.2, 1.2))
_BEST_EPOCH_MARKER: Any = {
    "marker": "o",
    "markersize": 10,
    "markerfacecolor": "none",
    "markeredgecolor": INK,
    "markeredgewidth": 1.2,
    "linestyle": "none",
}


@dataclass(frozen=True)
class TrainingCurve:
    """The epochs of one run."""

    name: str
    history: tuple[EpochRecord, ...]
    best_epoch: int | None
    """The epoch whose weights are saved."""

    @property
    def second_phase_start(self) -> EpochRecord | None:
        """First epoch of phase 2, if there was a phase 1."""
        if not self.history or self.history[0].phase != 1:
            return None
        return next((epoch for epoch in self.history if epoch.phase == 2), None)

    @property
    def has_times(self) -> bool:
        """Whether every epoch has the time when it ended."""
        return bool(self.history) and all(epoch.elapsed is not None for epoch in self.history)

    @property
    def has_validation(self) -> bool:
        """Whether there were validation images."""
        return any(epoch.val_accuracy is not None for epoch in self.history)


def draw_metric_over_epochs(
    title: str, metric: Literal["accuracy", "loss"], curve: TrainingCurve
) -> Markup:
    """Draw a metric of training and validation over the epochs.

    The start of phase 2 and the best epoch are marked.
    """
    epochs = [epoch.epoch for epoch in curve.history]
    train = [getattr(epoch, f"train_{metric}") for epoch in curve.history]
    val = [getattr(epoch, f"val_{metric}") for epoch in curve.history]
    marked = val if curve.has_validation else train

    def paint(drawing: Figure) -> None:
        from matplotlib.ticker import MaxNLocator

        axes = drawing.subplots()
        axes.plot(epochs, train, marker="o", markersize=3.5, **_TRAIN_STYLE.plot_kwargs)
        if curve.has_validation:
            axes.plot(epochs, val, marker="s", markersize=3.5, **_VAL_STYLE.plot_kwargs)
        axes.plot(*_best_epoch_point(curve, epochs, marked), **_BEST_EPOCH_MARKER)
        if curve.second_phase_start is not None:
            axes.axvline(curve.second_phase_start.epoch - 0.5, **_PHASE_STYLE.plot_kwargs)
        axes.set_xlim(epochs[0] - 0.5, epochs[-1] + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.set_xlabel("epoch")
        _format_y_axis(axes, metric)

    last = format_percent(marked[-1]) if metric == "accuracy" else format_number(marked[-1], 3)
    label = (
        f"{metric.capitalize()} over {len(epochs)} epochs, {last} at the end; "
        "the values are in the table of epochs"
    )
    return figure(title, render_svg(label, 2.9, paint), _legend_entries(curve))


def draw_accuracy_over_time(title: str, curves: Sequence[TrainingCurve]) -> Markup:
    """Draw accuracy over the time since the start of each run.

    A single run has curves of training and validation, several runs one of validation each.

    Args:
        title: title of the figure.
        curves: at most `len(LINE_STYLES)` runs; those without times are skipped.
    """
    timed = [curve for curve in curves if curve.has_times]
    single = timed[0] if len(timed) == 1 else None
    longest_s = max(curve.history[-1].elapsed or 0.0 for curve in timed)
    unit, unit_s = _time_unit(longest_s)

    def paint(drawing: Figure) -> None:
        axes = drawing.subplots()
        if single is None:
            for style, curve in zip(LINE_STYLES, timed, strict=False):
                _plot_over_time(axes, curve, style, unit_s)
        else:
            _plot_single_run(axes, single, unit_s)
        axes.set_xlim(0, 1.03 * longest_s / unit_s)
        axes.set_xlabel(f"{unit} since the start")
        _format_y_axis(axes, "accuracy")

    names = join_words([curve.name for curve in timed])
    label = (
        f"Accuracy over the time since the start, {format_duration(longest_s)} in total: {names}"
    )
    drawing = render_svg(label, 2.9, paint)
    if single is None:
        legend = [
            (style.legend_line, curve.name)
            for style, curve in zip(LINE_STYLES, timed, strict=False)
        ]
        legend.append((legend_ring(), "best epoch"))
        return figure(title, drawing, legend, "Validation accuracy after each epoch.")
    legend = [*_legend_entries(single), (legend_patch(GRID_GRAY), "before the first epoch")]
    before = format_duration(_seconds_before_first_epoch(single))
    caption = (
        f"Gray: reading images and computing cached features before the first epoch, {before}."
    )
    return figure(title, drawing, legend, caption)


def _time_unit(longest_s: float) -> tuple[str, int]:
    """Return a unit for the axis with its length in seconds."""
    if longest_s > 3 * 3600:
        return "hours", 3600
    return ("minutes", 60) if longest_s > 600 else ("seconds", 1)


def _plot_single_run(axes: Axes, curve: TrainingCurve, unit_s: int) -> None:
    """Plot the time before the first epoch, training and validation, and the start of phase 2."""
    axes.axvspan(0, _seconds_before_first_epoch(curve) / unit_s, color=GRID_GRAY, linewidth=0)
    times = [(epoch.elapsed or 0.0) / unit_s for epoch in curve.history]
    train = [epoch.train_accuracy for epoch in curve.history]
    axes.plot(times, train, marker="o", markersize=3.5, **_TRAIN_STYLE.plot_kwargs)
    if curve.has_validation:
        _plot_over_time(axes, curve, _VAL_STYLE, unit_s)
    else:
        axes.plot(*_best_epoch_point(curve, times, train), **_BEST_EPOCH_MARKER)
    second_phase = curve.second_phase_start
    if second_phase is not None:
        start_s = (second_phase.elapsed or 0.0) - second_phase.seconds
        axes.axvline(start_s / unit_s, **_PHASE_STYLE.plot_kwargs)


def _plot_over_time(axes: Axes, curve: TrainingCurve, style: LineStyle, unit_s: int) -> None:
    """Plot validation accuracy, or training accuracy without validation images."""
    times = [(epoch.elapsed or 0.0) / unit_s for epoch in curve.history]
    metric = "val_accuracy" if curve.has_validation else "train_accuracy"
    values: list[Any] = [getattr(epoch, metric) for epoch in curve.history]
    axes.plot(times, values, marker="s", markersize=3.5, **style.plot_kwargs)
    axes.plot(*_best_epoch_point(curve, times, values), **_BEST_EPOCH_MARKER)


def _seconds_before_first_epoch(curve: TrainingCurve) -> float:
    first = curve.history[0]
    return max(0.0, (first.elapsed or 0.0) - first.seconds)


def _best_epoch_point(
    curve: TrainingCurve, x_values: Sequence[float], y_values: Sequence[Any]
) -> tuple[list[float], list[Any]]:
    """Return the coordinates of the best epoch; empty if there is none."""
    points = [
        (x, y)
        for x, y, epoch in zip(x_values, y_values, curve.history, strict=True)
        if epoch.epoch == curve.best_epoch
    ]
    return [x for x, _ in points], [y for _, y in points]


def _legend_entries(curve: TrainingCurve) -> list[tuple[Markup, str]]:
    entries = [(_TRAIN_STYLE.legend_line, "training (augmented)")]
    if curve.has_validation:
        entries.append((_VAL_STYLE.legend_line, "validation"))
    if curve.best_epoch is not None:
        entries.append((legend_ring(), f"best: epoch {curve.best_epoch}"))
    if curve.second_phase_start is not None:
        entries.append((_PHASE_STYLE.legend_line, "last blocks unfrozen: phase 2"))
    return entries


def _format_y_axis(axes: Axes, metric: str) -> None:
    if metric == "accuracy":
        format_accuracy_axis(axes)
    else:
        axes.set_ylim(bottom=0)
    axes.grid(axis="y")

"""A run's course drawn: accuracy and loss over epochs and over time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from markupsafe import Markup

from edgetl.core.artifacts.run import HistoryEpoch
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

_TRAIN_STYLE, _VAL_STYLE, _PHASE_STYLE = (
    LineStyle(ORANGE, (4, 1.2)),
    LineStyle(BLUE),
    LineStyle(GRAY, (1.2, 1.2)),
)
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
    """How one run went."""

    name: str
    history: tuple[HistoryEpoch, ...]
    best_epoch: int | None
    """The epoch whose weights were kept."""

    @property
    def second_phase_start(self) -> HistoryEpoch | None:
        """Its first epoch, where a first phase came before it."""
        return (
            next((epoch for epoch in self.history if epoch.phase == 2), None)
            if self.history and self.history[0].phase == 1
            else None
        )

    @property
    def has_times(self) -> bool:
        """Whether every epoch says when it ended."""
        return bool(self.history) and all(epoch.elapsed is not None for epoch in self.history)

    @property
    def has_validation(self) -> bool:
        """Whether there were validation images."""
        return any(epoch.val_accuracy is not None for epoch in self.history)


def draw_metric_over_epochs(
    title: str, what: Literal["accuracy", "loss"], course: TrainingCurve
) -> Markup:
    """Training and validation accuracy or loss after each epoch; phases and the kept epoch are marked."""
    epochs = [epoch.epoch for epoch in course.history]
    train = [getattr(epoch, f"train_{what}") for epoch in course.history]
    val = [getattr(epoch, f"val_{what}") for epoch in course.history]
    shown = val if course.has_validation else train

    def paint(drawing: Figure) -> None:
        from matplotlib.ticker import MaxNLocator

        axes = drawing.subplots()
        axes.plot(epochs, train, marker="o", markersize=3.5, **_TRAIN_STYLE.plot_kwargs)
        if course.has_validation:
            axes.plot(epochs, val, marker="s", markersize=3.5, **_VAL_STYLE.plot_kwargs)
        axes.plot(*_best_epoch_point(course, epochs, shown), **_BEST_EPOCH_MARKER)
        if course.second_phase_start is not None:
            axes.axvline(course.second_phase_start.epoch - 0.5, **_PHASE_STYLE.plot_kwargs)
        axes.set_xlim(epochs[0] - 0.5, epochs[-1] + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.set_xlabel("epoch")
        _format_y_axis(axes, what)

    last = format_percent(shown[-1]) if what == "accuracy" else format_number(shown[-1], 3)
    label = f"{what.capitalize()} over {len(epochs)} epochs, at the end {last}; the figures are in the table of epochs"
    return figure(title, render_svg(label, 2.9, paint), _legend_entries(course))


def draw_accuracy_over_time(title: str, courses: Sequence[TrainingCurve]) -> Markup:
    """Accuracy over the time since the run's start: of one run training and validation, of several validation alone.

    Args:
        courses: at most as many as there are LINES; those without times are left out.
    """
    timed = [course for course in courses if course.has_times]
    alone = timed[0] if len(timed) == 1 else None
    longest = max(course.history[-1].elapsed or 0.0 for course in timed)
    unit, seconds = (
        ("hours", 3600)
        if longest > 3 * 3600
        else ("minutes", 60)
        if longest > 600
        else ("seconds", 1)
    )
    key = [
        (line.legend_line, course.name) for line, course in zip(LINE_STYLES, timed, strict=False)
    ]

    def paint(drawing: Figure) -> None:
        axes = drawing.subplots()
        for line, course in zip([_VAL_STYLE] if alone else LINE_STYLES, timed, strict=False):
            times = [(epoch.elapsed or 0.0) / seconds for epoch in course.history]
            values: list[Any] = [
                epoch.val_accuracy if course.has_validation else epoch.train_accuracy
                for epoch in course.history
            ]
            if alone:
                axes.axvspan(
                    0, (_seconds_before_first_epoch(course)) / seconds, color=GRID_GRAY, linewidth=0
                )
                axes.plot(
                    times,
                    [epoch.train_accuracy for epoch in course.history],
                    marker="o",
                    markersize=3.5,
                    **_TRAIN_STYLE.plot_kwargs,
                )
            if course.has_validation or not alone:
                axes.plot(times, values, marker="s", markersize=3.5, **line.plot_kwargs)
            axes.plot(*_best_epoch_point(course, times, values), **_BEST_EPOCH_MARKER)
            second = course.second_phase_start
            if alone and second is not None:
                axes.axvline(
                    ((second.elapsed or 0.0) - second.seconds) / seconds, **_PHASE_STYLE.plot_kwargs
                )
        axes.set_xlim(0, 1.03 * longest / seconds)
        axes.set_xlabel(f"{unit} since the start")
        _format_y_axis(axes, "accuracy")

    names = join_words([course.name for course in timed])
    label = f"Accuracy over the time since the start, {format_duration(longest)} in all, of {names}"
    kept = [(legend_ring(), "kept epoch")]
    if alone is None:
        return figure(
            title,
            render_svg(label, 2.9, paint),
            [*key, *kept],
            "Validation accuracy after each epoch.",
        )
    caption = f"Grey: reading images and frozen blocks before the first epoch, {format_duration(_seconds_before_first_epoch(alone))}."
    return figure(
        title,
        render_svg(label, 2.9, paint),
        [*_legend_entries(alone), (legend_patch(GRID_GRAY), "before the first epoch")],
        caption,
    )


def _seconds_before_first_epoch(course: TrainingCurve) -> float:
    first = course.history[0]
    return max(0.0, (first.elapsed or 0.0) - first.seconds)


def _best_epoch_point(
    course: TrainingCurve, places: Sequence[float], values: Sequence[Any]
) -> tuple[list[float], list[Any]]:
    found = [
        (place, value)
        for place, value, epoch in zip(places, values, course.history, strict=True)
        if epoch.epoch == course.best_epoch
    ]
    return [place for place, _ in found], [value for _, value in found]


def _legend_entries(course: TrainingCurve) -> list[tuple[Markup, str]]:
    return [
        (_TRAIN_STYLE.legend_line, "training (augmented)"),
        *([(_VAL_STYLE.legend_line, "validation")] if course.has_validation else []),
        *(
            [(legend_ring(), f"kept: epoch {course.best_epoch}")]
            if course.best_epoch is not None
            else []
        ),
        *(
            [(_PHASE_STYLE.legend_line, "last blocks unfrozen: phase 2")]
            if course.second_phase_start is not None
            else []
        ),
    ]


def _format_y_axis(axes: Axes, what: str) -> None:
    if what == "accuracy":
        format_accuracy_axis(axes)
    else:
        axes.set_ylim(bottom=0)
    axes.grid(axis="y")

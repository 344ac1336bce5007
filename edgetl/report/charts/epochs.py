"""A run's course drawn: accuracy and loss over epochs and over time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from markupsafe import Markup

from edgetl.core.artifacts.run import Epoch
from edgetl.core.formatting import duration, percent
from edgetl.report.charts.svg import LINE, LINES, Line, accuracy_axis, draw, patch_mark, ring_mark
from edgetl.report.html.blocks import figure
from edgetl.report.html.text import joined, number
from edgetl.report.plots.style import BLUE, GREY, INK, ORANGE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_TRAINING, _VALIDATION, _BOUNDARY = Line(ORANGE, (4, 1.2)), Line(BLUE), Line(GREY, (1.2, 1.2))
_KEPT: Any = {
    "marker": "o",
    "markersize": 10,
    "markerfacecolor": "none",
    "markeredgecolor": INK,
    "markeredgewidth": 1.2,
    "linestyle": "none",
}


@dataclass(frozen=True)
class Course:
    """How one run went."""

    name: str
    history: tuple[Epoch, ...]
    kept: int | None
    """The epoch whose weights were kept."""

    @property
    def second_phase(self) -> Epoch | None:
        """Its first epoch, where a first phase came before it."""
        return (
            next((epoch for epoch in self.history if epoch.phase == 2), None)
            if self.history and self.history[0].phase == 1
            else None
        )

    @property
    def timed(self) -> bool:
        """Whether every epoch says when it ended."""
        return bool(self.history) and all(epoch.elapsed is not None for epoch in self.history)

    @property
    def validated(self) -> bool:
        """Whether there were validation images."""
        return any(epoch.val_accuracy is not None for epoch in self.history)


def draw_over_epochs(title: str, what: Literal["accuracy", "loss"], course: Course) -> Markup:
    """Training and validation accuracy or loss after each epoch; phases and the kept epoch are marked."""
    epochs = [epoch.epoch for epoch in course.history]
    train = [getattr(epoch, f"train_{what}") for epoch in course.history]
    val = [getattr(epoch, f"val_{what}") for epoch in course.history]
    shown = val if course.validated else train

    def paint(drawing: Figure) -> None:
        from matplotlib.ticker import MaxNLocator

        axes = drawing.subplots()
        axes.plot(epochs, train, marker="o", markersize=3.5, **_TRAINING.style)
        if course.validated:
            axes.plot(epochs, val, marker="s", markersize=3.5, **_VALIDATION.style)
        axes.plot(*_kept(course, epochs, shown), **_KEPT)
        if course.second_phase is not None:
            axes.axvline(course.second_phase.epoch - 0.5, **_BOUNDARY.style)
        axes.set_xlim(epochs[0] - 0.5, epochs[-1] + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.set_xlabel("epoch")
        _vertical(axes, what)

    last = percent(shown[-1]) if what == "accuracy" else number(shown[-1], 3)
    label = f"{what.capitalize()} over {len(epochs)} epochs, at the end {last}; the figures are in the table of epochs"
    return figure(title, draw(label, 2.9, paint), _key(course))


def draw_over_time(title: str, courses: Sequence[Course]) -> Markup:
    """Accuracy over the time since the run's start: of one run training and validation, of several validation alone.

    Args:
        courses: at most as many as there are LINES; those without times are left out.
    """
    timed = [course for course in courses if course.timed]
    alone = timed[0] if len(timed) == 1 else None
    longest = max(course.history[-1].elapsed or 0.0 for course in timed)
    unit, seconds = (
        ("hours", 3600)
        if longest > 3 * 3600
        else ("minutes", 60)
        if longest > 600
        else ("seconds", 1)
    )
    key = [(line.mark, course.name) for line, course in zip(LINES, timed, strict=False)]

    def paint(drawing: Figure) -> None:
        axes = drawing.subplots()
        for line, course in zip([_VALIDATION] if alone else LINES, timed, strict=False):
            times = [(epoch.elapsed or 0.0) / seconds for epoch in course.history]
            values: list[Any] = [
                epoch.val_accuracy if course.validated else epoch.train_accuracy
                for epoch in course.history
            ]
            if alone:
                axes.axvspan(0, (_before(course)) / seconds, color=LINE, linewidth=0)
                axes.plot(
                    times,
                    [epoch.train_accuracy for epoch in course.history],
                    marker="o",
                    markersize=3.5,
                    **_TRAINING.style,
                )
            if course.validated or not alone:
                axes.plot(times, values, marker="s", markersize=3.5, **line.style)
            axes.plot(*_kept(course, times, values), **_KEPT)
            second = course.second_phase
            if alone and second is not None:
                axes.axvline(
                    ((second.elapsed or 0.0) - second.seconds) / seconds, **_BOUNDARY.style
                )
        axes.set_xlim(0, 1.03 * longest / seconds)
        axes.set_xlabel(f"{unit} since the start")
        _vertical(axes, "accuracy")

    names = joined([course.name for course in timed])
    label = f"Accuracy over the time since the start, {duration(longest)} in all, of {names}"
    kept = [(ring_mark(), "kept epoch")]
    if alone is None:
        return figure(
            title, draw(label, 2.9, paint), [*key, *kept], "Validation accuracy after each epoch."
        )
    caption = f"Grey: reading images and frozen blocks before the first epoch, {duration(_before(alone))}."
    return figure(
        title,
        draw(label, 2.9, paint),
        [*_key(alone), (patch_mark(LINE), "before the first epoch")],
        caption,
    )


def _before(course: Course) -> float:
    first = course.history[0]
    return max(0.0, (first.elapsed or 0.0) - first.seconds)


def _kept(
    course: Course, places: Sequence[float], values: Sequence[Any]
) -> tuple[list[float], list[Any]]:
    found = [
        (place, value)
        for place, value, epoch in zip(places, values, course.history, strict=True)
        if epoch.epoch == course.kept
    ]
    return [place for place, _ in found], [value for _, value in found]


def _key(course: Course) -> list[tuple[Markup, str]]:
    return [
        (_TRAINING.mark, "training (augmented)"),
        *([(_VALIDATION.mark, "validation")] if course.validated else []),
        *([(ring_mark(), f"kept: epoch {course.kept}")] if course.kept is not None else []),
        *(
            [(_BOUNDARY.mark, "last blocks unfrozen: phase 2")]
            if course.second_phase is not None
            else []
        ),
    ]


def _vertical(axes: Axes, what: str) -> None:
    if what == "accuracy":
        accuracy_axis(axes)
    else:
        axes.set_ylim(bottom=0)
    axes.grid(axis="y")

"""Latency and throughput over threads and batches, and over time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from edgetl.core.artifacts.bench_rows import BenchRow
from edgetl.core.artifacts.sustained import LatencyWindow, SustainedResult
from edgetl.core.formatting import format_milliseconds
from edgetl.core.statistics import percentile
from edgetl.report.charts.svg import (
    AMBER,
    LINE_STYLES,
    format_latency_axis,
    legend_patch,
    render_svg,
)
from edgetl.report.html.blocks import figure
from edgetl.report.html.text import join_words
from edgetl.report.plots.style import BLUE, GRAY, INK, ORANGE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def select_sweep_rows(rows: Sequence[BenchRow]) -> list[BenchRow]:
    """The single-stream rows of the scopes in which more than one batch or number of threads was measured."""
    timed = [row for row in rows if row.rounds and row.rate is None]
    swept = {
        scope
        for scope in {row.scope for row in timed}
        if len({(row.batch, row.threads) for row in timed if row.scope == scope}) > 1
    }
    return [row for row in timed if row.scope in swept]


def draw_sweeps(rows: Sequence[BenchRow]) -> list[Markup]:
    """p50 and images/s, for each scope and each value of what is not on the axis."""
    drawn = []
    for scope in dict.fromkeys(row.scope for row in rows):
        own = [row for row in rows if row.scope == scope]
        across = "threads" if len({row.threads for row in own}) > 1 else "batch"
        fixed = "batch" if across == "threads" else "threads"
        for value in sorted({getattr(row, fixed) for row in own}):
            part = [row for row in own if getattr(row, fixed) == value]
            if len({getattr(row, across) for row in part}) > 1:
                where = f"scope {scope}, {fixed} {value}"
                drawn.append(
                    _draw_series(
                        f"p50 over {across} ({where})",
                        part,
                        across,
                        "p50, ms",
                        lambda row: row.percentile_ms(50),
                    )
                )
                drawn.append(
                    _draw_series(
                        f"Images/s over {across} ({where})",
                        part,
                        across,
                        "images/s",
                        lambda row: row.images_per_second,
                    )
                )
    return drawn


def draw_sustained(title: str, run: SustainedResult) -> Markup:
    """p50 of each window with the middle 80% of its runs, the clock and the temperature beneath."""
    windows = run.windows
    beneath = [
        (name, values)
        for name, values in (
            (
                "clock, GHz",
                [
                    None if window.frequency_khz is None else window.frequency_khz / 1e6
                    for window in windows
                ],
            ),
            ("°C", [window.temperature_c for window in windows]),
        )
        if any(value is not None for value in values)
    ]
    settled = run.settled_index

    def paint(drawing: Figure) -> None:
        panels = drawing.subplots(
            1 + len(beneath), 1, sharex=True, squeeze=False, height_ratios=[3, *[1] * len(beneath)]
        )[:, 0]
        _draw_latency_panel(panels[0], windows, settled)
        for axes, (name, values), colour in zip(panels[1:], beneath, (ORANGE, AMBER), strict=False):
            _draw_state_panel(axes, windows, values, name, colour)
        panels[-1].set_xlabel("seconds since the start")

    told = (
        "it never settled" if settled is None else f"settled after {windows[settled].start_s:.0f} s"
    )
    label = f"Latency over {windows[-1].start_s:.0f} s without a pause: {told}, p50 {format_milliseconds(run.steady_percentile_ms(50))} ms"
    key = [
        (LINE_STYLES[1].legend_line, "p50 of a window"),
        (legend_patch(GRAY), "middle 80% of a window's runs"),
    ]
    caption = "Dotted: from here on it is steady." if settled else ""
    return figure(title, render_svg(label, 2.6 + 0.85 * len(beneath), paint), key, caption)


def _draw_latency_panel(axes: Axes, windows: Sequence[LatencyWindow], settled: int | None) -> None:
    times = [window.start_s for window in windows]
    low = [(percentile(window.latencies_ns, 10) or 0) / 1e6 for window in windows]
    # The mirrored 10% is the 90%; it is drawn as a band here, not stated as a figure, so it is not withheld.
    high = [
        -(percentile([-value for value in window.latencies_ns], 10) or 0) / 1e6
        for window in windows
    ]
    medians = [window.median_ns / 1e6 for window in windows]
    axes.fill_between(times, low, high, color=GRAY, alpha=0.35, linewidth=0)
    axes.plot(times, medians, color=BLUE)
    format_latency_axis(axes, min(low), max(high), "y")
    if settled:
        axes.axvline(times[settled], color=INK, linestyle=":", linewidth=1.2)
    axes.set_ylabel("latency, ms")
    axes.grid(axis="y")


def _draw_state_panel(
    axes: Axes,
    windows: Sequence[LatencyWindow],
    values: Sequence[float | None],
    name: str,
    colour: str,
) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.plot(
        [window.start_s for window in windows],
        [float("nan") if value is None else value for value in values],
        color=colour,
    )
    axes.set_ylabel(name)
    axes.yaxis.set_major_locator(MaxNLocator(3, min_n_ticks=2))
    axes.grid(axis="y")
    known = [value for value in values if value is not None]
    middle, reach = (
        (max(known) + min(known)) / 2,
        max((max(known) - min(known)) * 0.6, 0.02 * max(known), 0.01),
    )
    axes.set_ylim(middle - reach, middle + reach)


def _draw_series(
    title: str,
    rows: Sequence[BenchRow],
    across: str,
    what: str,
    value: Callable[[BenchRow], float | None],
) -> Markup:
    several = len({row.provider for row in rows if row.runtime != "pytorch"}) > 1
    series: dict[str, list[BenchRow]] = {}
    for row in rows:
        named = f"{row.runtime} {row.variant}"
        series.setdefault(f"{named}, {row.provider}" if several else named, []).append(row)
    places = sorted({getattr(row, across) for row in rows})

    def paint(drawing: Figure) -> None:
        from matplotlib.ticker import NullLocator

        axes = drawing.subplots()
        for index, own in enumerate(series.values()):
            points = sorted((getattr(row, across), value(row) or 0.0) for row in own)
            style: dict[str, Any] = LINE_STYLES[index % len(LINE_STYLES)].plot_kwargs
            axes.plot(
                [x for x, _ in points], [y for _, y in points], marker="o", markersize=4, **style
            )
        figures = [value(row) or 0.0 for row in rows]
        axes.set_xscale("log", base=2)
        axes.set_xticks(places, [str(place) for place in places])
        axes.xaxis.set_minor_locator(NullLocator())
        format_latency_axis(axes, min(figures), max(figures), "y")
        axes.set_xlabel(across)
        axes.set_ylabel(what)
        axes.grid()

    label = f"{title}: {join_words(list(series))}; the figures are in the table of all results"
    key = [
        (LINE_STYLES[index % len(LINE_STYLES)].legend_line, name)
        for index, name in enumerate(series)
    ]
    return figure(title, render_svg(label, 2.8, paint), key)

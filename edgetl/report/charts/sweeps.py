"""Charts of latency and throughput over threads and batch sizes, and of latency over time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

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
    """Return the single-stream rows of scopes with several batch sizes or numbers of threads."""
    timed = [row for row in rows if row.rounds and row.rate is None]
    configurations: dict[str, set[tuple[int, int]]] = defaultdict(set)
    for row in timed:
        configurations[row.scope].add((row.batch, row.threads))
    return [row for row in timed if len(configurations[row.scope]) > 1]


def draw_sweeps(rows: Sequence[BenchRow]) -> list[Markup]:
    """Draw p50 and images/s over threads or batch size, for each scope.

    The x axis is the number of threads if it varies, otherwise the batch size. There is one pair
    of drawings for each value of the other parameter.
    """
    figures = []
    for scope in dict.fromkeys(row.scope for row in rows):
        scope_rows = [row for row in rows if row.scope == scope]
        x_field, fixed_field = "batch", "threads"
        if len({row.threads for row in scope_rows}) > 1:
            x_field, fixed_field = "threads", "batch"
        for value in sorted({getattr(row, fixed_field) for row in scope_rows}):
            series_rows = [row for row in scope_rows if getattr(row, fixed_field) == value]
            if len({getattr(row, x_field) for row in series_rows}) < 2:
                continue
            suffix = f"(scope {scope}, {fixed_field} {value})"
            figures += [
                _draw_series(
                    f"p50 over {x_field} {suffix}",
                    series_rows,
                    x_field,
                    "p50, ms",
                    lambda row: row.percentile_ms(50),
                ),
                _draw_series(
                    f"Images/s over {x_field} {suffix}",
                    series_rows,
                    x_field,
                    "images/s",
                    lambda row: row.images_per_second,
                ),
            ]
    return figures


def draw_sustained(title: str, run: SustainedResult) -> Markup:
    """Draw the p50 of each window with the middle 80% of its runs, clock and temperature below."""
    windows = run.windows
    frequencies_ghz = [
        None if window.frequency_khz is None else window.frequency_khz / 1e6 for window in windows
    ]
    temperatures_c = [window.temperature_c for window in windows]
    states = [
        (name, values)
        for name, values in (("clock, GHz", frequencies_ghz), ("°C", temperatures_c))
        if any(value is not None for value in values)
    ]
    settled = run.settled_index

    def paint(drawing: Figure) -> None:
        heights = [3, *[1] * len(states)]
        panels = drawing.subplots(
            len(heights), 1, sharex=True, squeeze=False, height_ratios=heights
        )[:, 0]
        _draw_latency_panel(panels[0], windows, settled)
        for axes, (name, values), color in zip(panels[1:], states, (ORANGE, AMBER), strict=False):
            _draw_state_panel(axes, windows, values, name, color)
        panels[-1].set_xlabel("seconds since the start")

    status = "never settled"
    if settled is not None:
        status = f"settled after {windows[settled].start_s:.0f} s"
    p50 = format_milliseconds(run.steady_percentile_ms(50))
    label = f"Latency over {windows[-1].start_s:.0f} s of continuous load: {status}, p50 {p50} ms"
    legend = [
        (LINE_STYLES[1].legend_line, "p50 of a window"),
        (legend_patch(GRAY), "middle 80% of a window's runs"),
    ]
    caption = "Dotted: start of the steady part." if settled else ""
    return figure(title, render_svg(label, 2.6 + 0.85 * len(states), paint), legend, caption)


def _draw_latency_panel(axes: Axes, windows: Sequence[LatencyWindow], settled: int | None) -> None:
    times = [window.start_s for window in windows]
    low = [(percentile(window.latencies_ns, 10) or 0) / 1e6 for window in windows]
    # The p90 is the p10 of the negated latencies. `percentile` would withhold p90 with few runs,
    # but here it is only the edge of a band.
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
    color: str,
) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.plot(
        [window.start_s for window in windows],
        [float("nan") if value is None else value for value in values],
        color=color,
    )
    axes.set_ylabel(name)
    axes.yaxis.set_major_locator(MaxNLocator(3, min_n_ticks=2))
    axes.grid(axis="y")
    measured = [value for value in values if value is not None]
    low, high = min(measured), max(measured)
    center = (high + low) / 2
    margin = max((high - low) * 0.6, 0.02 * high, 0.01)
    axes.set_ylim(center - margin, center + margin)


def _draw_series(
    title: str,
    rows: Sequence[BenchRow],
    x_field: str,
    y_label: str,
    get_value: Callable[[BenchRow], float | None],
) -> Markup:
    """Draw one line per runtime and variant, and per provider if ONNX Runtime used several."""
    several_providers = len({row.provider for row in rows if row.runtime != "pytorch"}) > 1
    series: dict[str, list[BenchRow]] = {}
    for row in rows:
        name = row.name
        if several_providers:
            name += f", {row.provider}"
        series.setdefault(name, []).append(row)
    styles = [LINE_STYLES[index % len(LINE_STYLES)] for index in range(len(series))]
    ticks = sorted({getattr(row, x_field) for row in rows})

    def paint(drawing: Figure) -> None:
        from matplotlib.ticker import NullLocator

        axes = drawing.subplots()
        for style, series_rows in zip(styles, series.values(), strict=True):
            points = sorted((getattr(row, x_field), get_value(row) or 0.0) for row in series_rows)
            x_values, y_values = [x for x, _ in points], [y for _, y in points]
            axes.plot(x_values, y_values, marker="o", markersize=4, **style.plot_kwargs)
        values = [get_value(row) or 0.0 for row in rows]
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.xaxis.set_minor_locator(NullLocator())
        format_latency_axis(axes, min(values), max(values), "y")
        axes.set_xlabel(x_field)
        axes.set_ylabel(y_label)
        axes.grid()

    label = f"{title}: {join_words(list(series))}; the values are in the table of all results"
    legend = [(style.legend_line, name) for style, name in zip(styles, series, strict=True)]
    return figure(title, render_svg(label, 2.8, paint), legend)

"""Charts of latencies: distributions, rounds and stages."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from statistics import median
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from edgetl.core.artifacts.bench_rows import BenchRow
from edgetl.core.formatting import format_milliseconds
from edgetl.core.statistics import percentile
from edgetl.report.charts.runtime_styles import assign_runtime_styles
from edgetl.report.charts.svg import LINE_STYLES, format_latency_axis, legend_patch, render_svg
from edgetl.report.html.blocks import figure
from edgetl.report.html.text import join_words
from edgetl.report.plots.style import GRAY, INK, escape_mathtext, shorten_middle

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MAX_CURVE_POINTS = 500
"""Maximum number of points of a curve, above its width in pixels."""
_MAX_ROWS_PER_DRAWING = 12
"""Maximum number of boxes or bars in one drawing, so that it fits on a screen."""


def draw_distributions(
    title: str, rows: Sequence[BenchRow], names: Mapping[str, str]
) -> list[Markup]:
    """Draw the distributions of the latencies: cumulative curves for few rows, otherwise boxes.

    Many boxes are split into several drawings with the same scale.
    """
    if len(rows) <= len(LINE_STYLES):
        return [_draw_cumulative(title, rows, names)]
    low = min(min(row.latencies_ns) for row in rows) / 1e6
    high = max(max(row.latencies_ns) for row in rows) / 1e6
    return [
        _draw_boxes(f"{title}{suffix}", part, names, (low, high))
        for suffix, part in split_rows(rows)
    ]


def split_rows(rows: Sequence[BenchRow]) -> list[tuple[str, list[BenchRow]]]:
    """Split the rows into drawings, each with a suffix for its title.

    Rows of one batch size and arrival rate stay together if they fit into one drawing.
    """
    ordered = sorted(rows, key=lambda row: (row.rate or 0, row.batch, row.threads))
    parts: list[list[BenchRow]] = [[]]
    for _, grouped in groupby(ordered, key=lambda row: (row.rate, row.batch)):
        group = list(grouped)
        size = math.ceil(len(group) / math.ceil(len(group) / _MAX_ROWS_PER_DRAWING))
        for start in range(0, len(group), size):
            chunk = group[start : start + size]
            if len(parts[-1]) + len(chunk) > _MAX_ROWS_PER_DRAWING:
                parts.append([])
            parts[-1] += chunk
    if len(parts) == 1:
        return [("", parts[0])]
    several_batches = len({row.batch for row in rows}) > 1
    suffixes = [_format_batches(part) if several_batches else "" for part in parts]
    return [
        (f"{suffix} ({number} of {len(parts)})", part)
        for number, (suffix, part) in enumerate(zip(suffixes, parts, strict=True), start=1)
    ]


def _format_batches(rows: Sequence[BenchRow]) -> str:
    batches = sorted({row.batch for row in rows})
    upper = f" to {batches[-1]}" if len(batches) > 1 else ""
    return f", batch {batches[0]}{upper}"


def draw_rounds(title: str, rows: Sequence[BenchRow], names: Mapping[str, str]) -> Markup:
    """Draw the median of each round relative to the row's median, which shows drift and jumps."""
    medians = {row.id: median(row.round_medians_ns) for row in rows}
    changes = {
        row.id: [100 * (value / medians[row.id] - 1) for value in row.round_medians_ns]
        for row in rows
    }
    highlighted = list(rows)
    caption = "Median of each round relative to the median of the row."
    if len(rows) > len(LINE_STYLES):
        highlighted = sorted(rows, key=lambda row: -row.spread)[: len(LINE_STYLES) - 1]
        caption += f" The {len(highlighted)} rows that vary most are colored; the others are gray."
    styles = {row.id: LINE_STYLES[index] for index, row in enumerate(highlighted)}

    def paint(drawing: Figure) -> None:
        from matplotlib.ticker import FuncFormatter, MaxNLocator

        axes = drawing.subplots()
        axes.axhline(0, color=GRAY, linewidth=0.8)
        for row in rows:
            numbers = range(1, len(row.rounds) + 1)
            line: dict[str, Any] = {"color": GRAY, "linewidth": 0.8, "alpha": 0.6}
            if row.id in styles:
                line = {"marker": "o", "markersize": 3.5, "zorder": 3}
                line |= styles[row.id].plot_kwargs
            axes.plot(numbers, changes[row.id], **line)
        limit = max(2.5, *(1.1 * abs(value) for values in changes.values() for value in values))
        axes.set_ylim(-limit, limit)
        axes.yaxis.set_major_formatter(
            FuncFormatter(lambda value, _: f"{value:+g}%" if value else "0")
        )
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.set_xlabel("round")
        axes.grid(axis="y")

    label = (
        "Change of each round's median in percent of the row's median: "
        f"{join_words([names[row.id] for row in rows])}"
    )
    legend = [
        (
            styles[row.id].legend_line,
            f"{names[row.id]}, {format_milliseconds(medians[row.id] / 1e6)} ms",
        )
        for row in highlighted
    ]
    return figure(title, render_svg(label, 2.7, paint), legend, caption)


def draw_stages(
    title: str, rows: Sequence[BenchRow], names: Mapping[str, str], colors: Mapping[str, str]
) -> list[Markup]:
    """Draw the median latency of each stage as stacked bars.

    Many rows are split into several drawings with the same scale.
    """
    limit = 1.12 * max(sum(row.stages_ms.values()) for row in rows)
    return [
        _draw_stage_bars(f"{title}{suffix}", part, names, colors, limit)
        for suffix, part in split_rows(rows)
    ]


def _draw_stage_bars(
    title: str,
    rows: Sequence[BenchRow],
    names: Mapping[str, str],
    colors: Mapping[str, str],
    limit: float,
) -> Markup:
    stages = list(dict.fromkeys(stage for row in rows for stage in row.stages_ms))

    def paint(drawing: Figure) -> None:
        axes = drawing.subplots()
        for y, row in enumerate(rows):
            end = 0.0
            for stage, value in row.stages_ms.items():
                axes.barh(y, value, left=end, height=0.42, color=colors[stage])
                end += value
            name = escape_mathtext(shorten_middle(names[row.id], 60))
            axes.text(0, y - 0.32, name, va="bottom", fontsize=9)
            axes.annotate(
                format_milliseconds(end),
                (end, y),
                (4, 0),
                textcoords="offset points",
                va="center",
                fontsize=9,
            )
        _format_category_axis(axes, len(rows))
        axes.set_xlim(0, limit)
        axes.set_xlabel("median of each stage, ms")

    label = (
        f"Stacked bars: {join_words(stages)} of {join_words([names[row.id] for row in rows])}; "
        "the values are in the table"
    )
    legend = [(legend_patch(colors[stage]), stage) for stage in stages]
    return figure(title, render_svg(label, 0.75 + 0.5 * len(rows), paint), legend)


def _draw_cumulative(title: str, rows: Sequence[BenchRow], names: Mapping[str, str]) -> Markup:
    ordered = {row.id: sorted(row.latencies_ns) for row in rows}
    low = min(values[0] for values in ordered.values()) / 1e6
    high = max(values[-1] for values in ordered.values()) / 1e6

    def paint(drawing: Figure) -> None:
        from matplotlib.ticker import PercentFormatter

        axes = drawing.subplots()
        for style, row in zip(LINE_STYLES, rows, strict=False):
            values = ordered[row.id]
            indices = _curve_indices(len(values))
            axes.step(
                [values[index] / 1e6 for index in indices],
                [(index + 1) / len(values) for index in indices],
                where="post",
                **style.plot_kwargs,
            )
            for percent, marker in ((50, "o"), (90, "s"), (99, "D")):
                value = row.percentile_ms(percent)
                if value is not None:
                    axes.plot([value], [percent / 100], marker, color=style.color, markersize=4.5)
        axes.set_ylim(0, 1.02)
        format_latency_axis(axes, low, high)
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.set_xlabel("latency, ms")
        axes.grid()

    label = (
        f"Cumulative distribution of all latencies, {_format_range(low, high)}: "
        f"{join_words([names[row.id] for row in rows])}"
    )
    legend = [
        (style.legend_line, f"{names[row.id]}, p50 {format_milliseconds(row.percentile_ms(50))} ms")
        for style, row in zip(LINE_STYLES, rows, strict=False)
    ]
    caption = (
        "Share of runs with at most this latency. Markers: p50 ●, p90 ■, p99 ◆, "
        "each if there are enough runs."
    )
    return figure(title, render_svg(label, 3.0, paint), legend, caption)


def _curve_indices(count: int) -> list[int]:
    """Return the indices of the runs to draw: a subset that looks the same, and the whole tail."""
    step = max(1, count // _MAX_CURVE_POINTS)
    return sorted({*range(0, count, step), *range(max(0, count - 60), count)})


def _format_range(low: float, high: float) -> str:
    return f"{format_milliseconds(low)} to {format_milliseconds(high)} ms"


def _draw_boxes(
    title: str, rows: Sequence[BenchRow], names: Mapping[str, str], limits: tuple[float, float]
) -> Markup:
    low, high = limits
    styles = assign_runtime_styles(rows)

    def paint(drawing: Figure) -> None:
        axes = drawing.subplots()
        for y, row in enumerate(rows):
            _draw_box(axes, y, row, styles[row.runtime].color)
            name = escape_mathtext(shorten_middle(names[row.id], 60))
            axes.text(low, y - 0.28, name, va="bottom", fontsize=8.5)
        _format_category_axis(axes, len(rows))
        format_latency_axis(axes, low, high)
        if low > 0:
            margin = max(1.01, (high / low) ** 0.04)
            axes.set_xlim(low / margin, high * margin)
        axes.set_xlabel("latency, ms")

    label = (
        f"{title}: quantiles of all latencies of {len(rows)} rows, "
        f"on a scale of {_format_range(low, high)}; the values are in the table"
    )
    legend = [(legend_patch(style.color), runtime) for runtime, style in styles.items()]
    caption = (
        "Thick: middle half of the runs. Thin: 5% to 95%. Stroke: median. Dot: the slowest run."
    )
    return figure(title, render_svg(label, 0.75 + 0.36 * len(rows), paint), legend, caption)


def _draw_box(axes: Axes, y: int, row: BenchRow, color: str) -> None:
    p5, p25, p50, p75 = (
        (percentile(row.latencies_ns, percent) or 0) / 1e6 for percent in (5, 25, 50, 75)
    )
    p95 = (percentile(row.latencies_ns, 95) or p75 * 1e6) / 1e6
    axes.plot([p5, p95], [y, y], color=color, linewidth=1)
    axes.plot([p25, p75], [y, y], color=color, linewidth=7, solid_capstyle="butt", alpha=0.55)
    axes.plot([p50], [y], "|", color=INK, markersize=11, markeredgewidth=2)
    axes.plot([max(row.latencies_ns) / 1e6], [y], ".", color=color, markersize=4)


def _format_category_axis(axes: Axes, count: int) -> None:
    axes.set_ylim(count - 0.55, -0.75)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")

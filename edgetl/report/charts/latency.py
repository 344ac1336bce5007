"""Latencies drawn: distributions, rounds and stages."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from statistics import median
from typing import TYPE_CHECKING

from markupsafe import Markup

from edgetl.core.artifacts.bench_rows import BenchRow
from edgetl.core.formatting import format_milliseconds
from edgetl.core.statistics import percentile
from edgetl.report.charts.svg import LINE_STYLES, format_latency_axis, legend_patch, render_svg
from edgetl.report.html.blocks import figure
from edgetl.report.html.text import join_words
from edgetl.report.plots.style import BLUE, GRAY, INK, ORANGE, escape_mathtext, shorten_middle

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MAX_CURVE_POINTS = 500
"""Points of a curve: more than its pixels."""


_MAX_BOXES = 12
"""Boxes of one drawing: it still fits on a screen."""


def draw_distributions(
    title: str, rows: Sequence[BenchRow], names: Mapping[str, str]
) -> list[Markup]:
    """Which share of the runs took at most how long; boxes where there are more rows than lines that can be told apart.

    Many boxes are several drawings on one scale.
    """
    if len(rows) <= len(LINE_STYLES):
        return [_draw_cumulative(title, rows, names)]
    reach = (
        min(min(row.latencies_ns) for row in rows) / 1e6,
        max(max(row.latencies_ns) for row in rows) / 1e6,
    )
    return [_draw_boxes(f"{title}{which}", part, names, reach) for which, part in split_rows(rows)]


def split_rows(rows: Sequence[BenchRow]) -> list[tuple[str, list[BenchRow]]]:
    """Rows of one drawing each, after what its title says of them; what is compared with each other stands side by side."""
    ordered = sorted(rows, key=lambda row: (row.rate or 0, row.batch, row.threads))
    parts: list[list[BenchRow]] = [[]]
    for _, found in groupby(ordered, key=lambda row: (row.rate, row.batch)):
        group = list(found)
        size = math.ceil(len(group) / math.ceil(len(group) / _MAX_BOXES))
        for start in range(0, len(group), size):
            piece = group[start : start + size]
            if len(parts[-1]) + len(piece) > _MAX_BOXES:
                parts.append([])
            parts[-1] += piece
    if len(parts) == 1:
        return [("", parts[0])]
    several = len({row.batch for row in rows}) > 1
    return [
        (f"{_format_batches(part) if several else ''} ({number} of {len(parts)})", part)
        for number, part in enumerate(parts, start=1)
    ]


def _format_batches(rows: Sequence[BenchRow]) -> str:
    found = sorted({row.batch for row in rows})
    return f", batch {found[0]}" + (f" to {found[-1]}" if len(found) > 1 else "")


def draw_rounds(title: str, rows: Sequence[BenchRow], names: Mapping[str, str]) -> Markup:
    """Medians round by round, each row against its own median: what drifts or jumps shows."""
    relative = {
        row.id: [100 * (value / median(row.round_medians_ns) - 1) for value in row.round_medians_ns]
        for row in rows
    }
    told = (
        sorted(rows, key=lambda row: -row.spread)[: len(LINE_STYLES) - 1]
        if len(rows) > len(LINE_STYLES)
        else rows
    )
    lines = {row.id: LINE_STYLES[index] for index, row in enumerate(told)}

    def paint(drawing: Figure) -> None:
        from matplotlib.ticker import FuncFormatter, MaxNLocator

        axes = drawing.subplots()
        axes.axhline(0, color=GRAY, linewidth=0.8)
        for row in rows:
            numbers = range(1, len(row.rounds) + 1)
            if row.id in lines:
                axes.plot(
                    numbers,
                    relative[row.id],
                    marker="o",
                    markersize=3.5,
                    zorder=3,
                    **lines[row.id].plot_kwargs,
                )
            else:
                axes.plot(numbers, relative[row.id], color=GRAY, linewidth=0.8, alpha=0.6)
        reach = max(2.5, *(1.1 * abs(value) for values in relative.values() for value in values))
        axes.set_ylim(-reach, reach)
        axes.yaxis.set_major_formatter(
            FuncFormatter(lambda value, _: f"{value:+g}%" if value else "0")
        )
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.set_xlabel("round")
        axes.grid(axis="y")

    label = f"Change of each round's median, in percent of the row's median, for {join_words([names[row.id] for row in rows])}"
    rest = (
        f"The {len(told)} rows that vary most; the others are grey."
        if len(told) < len(rows)
        else ""
    )
    key = [
        (
            lines[row.id].legend_line,
            f"{names[row.id]}, {format_milliseconds(median(row.round_medians_ns) / 1e6)} ms",
        )
        for row in told
    ]
    return figure(
        title,
        render_svg(label, 2.7, paint),
        key,
        f"Each round's median against the row's own. {rest}".strip(),
    )


def draw_stages(
    title: str, rows: Sequence[BenchRow], names: Mapping[str, str], colours: Mapping[str, str]
) -> list[Markup]:
    """Where the latency goes, stage by stage, each in its colour; many rows are several drawings on one scale."""
    reach = 1.12 * max(sum(row.summarize_stages_ms().values()) for row in rows)
    return [
        _draw_stage_bars(f"{title}{which}", part, names, colours, reach)
        for which, part in split_rows(rows)
    ]


def _draw_stage_bars(
    title: str,
    rows: Sequence[BenchRow],
    names: Mapping[str, str],
    colours: Mapping[str, str],
    reach: float,
) -> Markup:
    stages = list(dict.fromkeys(stage for row in rows for stage in row.summarize_stages_ms()))

    def paint(drawing: Figure) -> None:
        axes = drawing.subplots()
        for place, row in enumerate(rows):
            start = 0.0
            for stage, value in row.summarize_stages_ms().items():
                axes.barh(place, value, left=start, height=0.42, color=colours[stage])
                start += value
            axes.text(
                0,
                place - 0.32,
                escape_mathtext(shorten_middle(names[row.id], 60)),
                va="bottom",
                fontsize=9,
            )
            axes.annotate(
                format_milliseconds(start),
                (start, place),
                (4, 0),
                textcoords="offset points",
                va="center",
                fontsize=9,
            )
        _format_category_axis(axes, len(rows))
        axes.set_xlim(0, reach)
        axes.set_xlabel("median of each stage, ms")

    label = f"Stacked bars: {join_words(stages)} of {join_words([names[row.id] for row in rows])}; the figures are in the table"
    key = [(legend_patch(colours[stage]), stage) for stage in stages]
    return figure(title, render_svg(label, 0.75 + 0.5 * len(rows), paint), key)


def _draw_cumulative(title: str, rows: Sequence[BenchRow], names: Mapping[str, str]) -> Markup:
    ordered = {row.id: sorted(row.latencies_ns) for row in rows}
    low, high = (
        min(values[0] for values in ordered.values()) / 1e6,
        max(values[-1] for values in ordered.values()) / 1e6,
    )

    def paint(drawing: Figure) -> None:
        from matplotlib.ticker import PercentFormatter

        axes = drawing.subplots()
        for line, row in zip(LINE_STYLES, rows, strict=False):
            values = ordered[row.id]
            # Every run counts; only points that would fall on the same pixel are left out, and never in the tail.
            step = max(1, len(values) // _MAX_CURVE_POINTS)
            kept = sorted(
                {*range(0, len(values), step), *range(max(0, len(values) - 60), len(values))}
            )
            axes.step(
                [values[at] / 1e6 for at in kept],
                [(at + 1) / len(values) for at in kept],
                where="post",
                **line.plot_kwargs,
            )
            for percent, marker in ((50, "o"), (90, "s"), (99, "D")):
                value = row.percentile_ms(percent)
                if value is not None:
                    axes.plot([value], [percent / 100], marker, color=line.color, markersize=4.5)
        axes.set_ylim(0, 1.02)
        format_latency_axis(axes, low, high)
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.set_xlabel("latency, ms")
        axes.grid()

    reach, told = (
        f"{format_milliseconds(low)} to {format_milliseconds(high)} ms",
        join_words([names[row.id] for row in rows]),
    )
    label = f"Cumulative distribution of all latencies, {reach}, of {told}"
    key = [
        (line.legend_line, f"{names[row.id]}, p50 {format_milliseconds(row.percentile_ms(50))} ms")
        for line, row in zip(LINE_STYLES, rows, strict=False)
    ]
    caption = "Share of runs that took at most so long. Marked: p50 ●, p90 ■, p99 ◆ where enough runs support them."
    return figure(title, render_svg(label, 3.0, paint), key, caption)


def _draw_boxes(
    title: str, rows: Sequence[BenchRow], names: Mapping[str, str], reach: tuple[float, float]
) -> Markup:
    low, high = reach

    def paint(drawing: Figure) -> None:
        axes = drawing.subplots()
        for place, row in enumerate(rows):
            colour = ORANGE if row.runtime == "pytorch" else BLUE
            ends = [
                (percentile(row.latencies_ns, percent) or 0) / 1e6 for percent in (5, 25, 50, 75)
            ]
            upper = (percentile(row.latencies_ns, 95) or ends[-1] * 1e6) / 1e6
            axes.plot([ends[0], upper], [place, place], color=colour, linewidth=1)
            axes.plot(
                [ends[1], ends[3]],
                [place, place],
                color=colour,
                linewidth=7,
                solid_capstyle="butt",
                alpha=0.55,
            )
            axes.plot([ends[2]], [place], "|", color=INK, markersize=11, markeredgewidth=2)
            axes.plot([max(row.latencies_ns) / 1e6], [place], ".", color=colour, markersize=4)
            axes.text(
                low,
                place - 0.28,
                escape_mathtext(shorten_middle(names[row.id], 60)),
                va="bottom",
                fontsize=8.5,
            )
        _format_category_axis(axes, len(rows))
        format_latency_axis(axes, low, high)
        if low > 0:
            margin = max(1.01, (high / low) ** 0.04)
            axes.set_xlim(low / margin, high * margin)
        axes.set_xlabel("latency, ms")

    spanned = f"{format_milliseconds(low)} to {format_milliseconds(high)} ms"
    label = f"{title}: quantiles of all latencies, on a scale of {spanned}, of {len(rows)} rows; the figures stand in the table"
    key = [
        (legend_patch(BLUE), "ONNX Runtime"),
        *(
            [(legend_patch(ORANGE), "PyTorch")]
            if any(row.runtime == "pytorch" for row in rows)
            else []
        ),
    ]
    caption = (
        "Thick: the middle half of the runs. Thin: 5% to 95%. Stroke: median. Dot: the slowest run."
    )
    return figure(title, render_svg(label, 0.75 + 0.36 * len(rows), paint), key, caption)


def _format_category_axis(axes: Axes, count: int) -> None:
    axes.set_ylim(count - 0.55, -0.75)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")

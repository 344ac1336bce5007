"""Latencies drawn: distributions, rounds and stages."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from statistics import median
from typing import TYPE_CHECKING

from markupsafe import Markup

from edgetl.core.artifacts.bench_rows import Row
from edgetl.core.formatting import milliseconds
from edgetl.core.statistics import percentile
from edgetl.report.charts.svg import LINES, draw, latency_axis, patch_mark
from edgetl.report.html.blocks import figure
from edgetl.report.html.text import joined
from edgetl.report.plots.style import BLUE, GREY, INK, ORANGE, literal, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_POINTS = 500
"""Points of a curve: more than its pixels."""


_TOGETHER = 12
"""Boxes of one drawing: it still fits on a screen."""


def draw_distributions(title: str, rows: Sequence[Row], names: Mapping[str, str]) -> list[Markup]:
    """Which share of the runs took at most how long; boxes where there are more rows than lines that can be told apart.

    Many boxes are several drawings on one scale.
    """
    if len(rows) <= len(LINES):
        return [_curves(title, rows, names)]
    reach = (
        min(min(row.latencies_ns) for row in rows) / 1e6,
        max(max(row.latencies_ns) for row in rows) / 1e6,
    )
    return [_boxes(f"{title}{which}", part, names, reach) for which, part in portions(rows)]


def portions(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """Rows of one drawing each, after what its title says of them; what is compared with each other stands side by side."""
    ordered = sorted(rows, key=lambda row: (row.rate or 0, row.batch, row.threads))
    parts: list[list[Row]] = [[]]
    for _, found in groupby(ordered, key=lambda row: (row.rate, row.batch)):
        group = list(found)
        size = math.ceil(len(group) / math.ceil(len(group) / _TOGETHER))
        for start in range(0, len(group), size):
            piece = group[start : start + size]
            if len(parts[-1]) + len(piece) > _TOGETHER:
                parts.append([])
            parts[-1] += piece
    if len(parts) == 1:
        return [("", parts[0])]
    several = len({row.batch for row in rows}) > 1
    return [
        (f"{_batches(part) if several else ''} ({number} of {len(parts)})", part)
        for number, part in enumerate(parts, start=1)
    ]


def _batches(rows: Sequence[Row]) -> str:
    found = sorted({row.batch for row in rows})
    return f", batch {found[0]}" + (f" to {found[-1]}" if len(found) > 1 else "")


def draw_rounds(title: str, rows: Sequence[Row], names: Mapping[str, str]) -> Markup:
    """Medians round by round, each row against its own median: what drifts or jumps shows."""
    relative = {
        row.id: [100 * (value / median(row.medians_ns) - 1) for value in row.medians_ns]
        for row in rows
    }
    told = (
        sorted(rows, key=lambda row: -row.spread)[: len(LINES) - 1]
        if len(rows) > len(LINES)
        else rows
    )
    lines = {row.id: LINES[index] for index, row in enumerate(told)}

    def paint(drawing: Figure) -> None:
        from matplotlib.ticker import FuncFormatter, MaxNLocator

        axes = drawing.subplots()
        axes.axhline(0, color=GREY, linewidth=0.8)
        for row in rows:
            numbers = range(1, len(row.rounds) + 1)
            if row.id in lines:
                axes.plot(
                    numbers,
                    relative[row.id],
                    marker="o",
                    markersize=3.5,
                    zorder=3,
                    **lines[row.id].style,
                )
            else:
                axes.plot(numbers, relative[row.id], color=GREY, linewidth=0.8, alpha=0.6)
        reach = max(2.5, *(1.1 * abs(value) for values in relative.values() for value in values))
        axes.set_ylim(-reach, reach)
        axes.yaxis.set_major_formatter(
            FuncFormatter(lambda value, _: f"{value:+g}%" if value else "0")
        )
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.set_xlabel("round")
        axes.grid(axis="y")

    label = f"Change of each round's median, in percent of the row's median, for {joined([names[row.id] for row in rows])}"
    rest = (
        f"The {len(told)} rows that vary most; the others are grey."
        if len(told) < len(rows)
        else ""
    )
    key = [
        (lines[row.id].mark, f"{names[row.id]}, {milliseconds(median(row.medians_ns) / 1e6)} ms")
        for row in told
    ]
    return figure(
        title,
        draw(label, 2.7, paint),
        key,
        f"Each round's median against the row's own. {rest}".strip(),
    )


def draw_stages(
    title: str, rows: Sequence[Row], names: Mapping[str, str], colours: Mapping[str, str]
) -> list[Markup]:
    """Where the latency goes, stage by stage, each in its colour; many rows are several drawings on one scale."""
    reach = 1.12 * max(sum(row.stages_ms().values()) for row in rows)
    return [
        _stages(f"{title}{which}", part, names, colours, reach) for which, part in portions(rows)
    ]


def _stages(
    title: str,
    rows: Sequence[Row],
    names: Mapping[str, str],
    colours: Mapping[str, str],
    reach: float,
) -> Markup:
    stages = list(dict.fromkeys(stage for row in rows for stage in row.stages_ms()))

    def paint(drawing: Figure) -> None:
        axes = drawing.subplots()
        for place, row in enumerate(rows):
            start = 0.0
            for stage, value in row.stages_ms().items():
                axes.barh(place, value, left=start, height=0.42, color=colours[stage])
                start += value
            axes.text(
                0, place - 0.32, literal(shortened(names[row.id], 60)), va="bottom", fontsize=9
            )
            axes.annotate(
                milliseconds(start),
                (start, place),
                (4, 0),
                textcoords="offset points",
                va="center",
                fontsize=9,
            )
        _categories(axes, len(rows))
        axes.set_xlim(0, reach)
        axes.set_xlabel("median of each stage, ms")

    label = f"Stacked bars: {joined(stages)} of {joined([names[row.id] for row in rows])}; the figures are in the table"
    key = [(patch_mark(colours[stage]), stage) for stage in stages]
    return figure(title, draw(label, 0.75 + 0.5 * len(rows), paint), key)


def _curves(title: str, rows: Sequence[Row], names: Mapping[str, str]) -> Markup:
    ordered = {row.id: sorted(row.latencies_ns) for row in rows}
    low, high = (
        min(values[0] for values in ordered.values()) / 1e6,
        max(values[-1] for values in ordered.values()) / 1e6,
    )

    def paint(drawing: Figure) -> None:
        from matplotlib.ticker import PercentFormatter

        axes = drawing.subplots()
        for line, row in zip(LINES, rows, strict=False):
            values = ordered[row.id]
            # Every run counts; only points that would fall on the same pixel are left out, and never in the tail.
            step = max(1, len(values) // _POINTS)
            kept = sorted(
                {*range(0, len(values), step), *range(max(0, len(values) - 60), len(values))}
            )
            axes.step(
                [values[at] / 1e6 for at in kept],
                [(at + 1) / len(values) for at in kept],
                where="post",
                **line.style,
            )
            for percent, marker in ((50, "o"), (90, "s"), (99, "D")):
                value = row.percentile_ms(percent)
                if value is not None:
                    axes.plot([value], [percent / 100], marker, color=line.colour, markersize=4.5)
        axes.set_ylim(0, 1.02)
        latency_axis(axes, low, high)
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.set_xlabel("latency, ms")
        axes.grid()

    reach, told = (
        f"{milliseconds(low)} to {milliseconds(high)} ms",
        joined([names[row.id] for row in rows]),
    )
    label = f"Cumulative distribution of all latencies, {reach}, of {told}"
    key = [
        (line.mark, f"{names[row.id]}, p50 {milliseconds(row.percentile_ms(50))} ms")
        for line, row in zip(LINES, rows, strict=False)
    ]
    caption = "Share of runs that took at most so long. Marked: p50 ●, p90 ■, p99 ◆ where enough runs support them."
    return figure(title, draw(label, 3.0, paint), key, caption)


def _boxes(
    title: str, rows: Sequence[Row], names: Mapping[str, str], reach: tuple[float, float]
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
                low, place - 0.28, literal(shortened(names[row.id], 60)), va="bottom", fontsize=8.5
            )
        _categories(axes, len(rows))
        latency_axis(axes, low, high)
        if low > 0:
            margin = max(1.01, (high / low) ** 0.04)
            axes.set_xlim(low / margin, high * margin)
        axes.set_xlabel("latency, ms")

    spanned = f"{milliseconds(low)} to {milliseconds(high)} ms"
    label = f"{title}: quantiles of all latencies, on a scale of {spanned}, of {len(rows)} rows; the figures stand in the table"
    key = [
        (patch_mark(BLUE), "ONNX Runtime"),
        *(
            [(patch_mark(ORANGE), "PyTorch")]
            if any(row.runtime == "pytorch" for row in rows)
            else []
        ),
    ]
    caption = (
        "Thick: the middle half of the runs. Thin: 5% to 95%. Stroke: median. Dot: the slowest run."
    )
    return figure(title, draw(label, 0.75 + 0.36 * len(rows), paint), key, caption)


def _categories(axes: Axes, count: int) -> None:
    axes.set_ylim(count - 0.55, -0.75)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")

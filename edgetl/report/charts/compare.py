"""An experiment drawn: accuracy over time, accuracy against latency, and what freezing changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from markupsafe import Markup

from edgetl.core.artifacts.experiment import Experiment
from edgetl.core.artifacts.experiment_runs import StrategyResult
from edgetl.core.config.compare import EQUAL_TIME, FREEZE_SWEEP
from edgetl.core.formatting import format_duration, format_percent
from edgetl.report.charts.svg import (
    LINE_STYLES,
    format_accuracy_axis,
    format_latency_axis,
    render_svg,
)
from edgetl.report.html.blocks import figure
from edgetl.report.plots.style import BLUE, GRAY, ORANGE, escape_mathtext

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FROZEN_PERCENT = dict(zip(FREEZE_SWEEP, (100, 75, 50, 25, 0), strict=True))
"""Percent of the backbone's blocks."""
_TIME_TICKS_S = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 28800)


def draw_strategy_curves(title: str, rows: Sequence[StrategyResult], target: float) -> Markup:
    """Validation accuracy over the time since each run's start: a line for each strategy and seed, an open end where training ended."""
    # More lines cannot be told apart: of all strategies at once the extra run of scratch is in the tables alone.
    shown = [
        row for row in rows if len(rows) <= len(LINE_STYLES) or row.first_run.strategy != EQUAL_TIME
    ][: len(LINE_STYLES)]
    lines = dict(zip((row.name for row in shown), LINE_STYLES, strict=False))
    times = [epoch.elapsed for row in shown for run in row.runs for epoch in run.epochs]

    def paint(drawing: Figure) -> None:
        axes = drawing.subplots()
        axes.axhline(target, color=GRAY, linewidth=0.9, linestyle=(0, (2, 2)))
        for row in shown:
            line = lines[row.name]
            for run in row.runs:
                elapsed = [epoch.elapsed for epoch in run.epochs]
                accuracy = [epoch.val_accuracy for epoch in run.epochs]
                axes.plot(elapsed, accuracy, marker="o", markersize=2.6, **line.plot_kwargs)
                axes.plot(
                    elapsed[-1:],
                    accuracy[-1:],
                    "o",
                    color=line.color,
                    markersize=7,
                    markerfacecolor="none",
                )
        _format_time_axis(axes, min(times), max(times))
        format_accuracy_axis(axes)
        axes.set_xlabel("time since the run's start")
        axes.grid()

    ends = "; ".join(
        f"{row.first_run.strategy} ends at {format_percent(row.val_accuracy)} after {format_duration(row.seconds)}"
        for row in shown
    )
    key = [
        (
            lines[row.name].legend_line,
            f"{row.first_run.strategy}, {format_percent(row.val_accuracy)} in {format_duration(row.seconds)}",
        )
        for row in shown
    ]
    caption = f"After each epoch; everything since the images were read is counted. Dashed: the target, {target:.0%}. Ring: the last epoch."
    return figure(
        title, render_svg(f"Validation accuracy over time: {ends}", 3.2, paint), key, caption
    )


def draw_trade_off(title: str, found: Experiment) -> Markup | None:
    """Accuracy of each network's recommended run against its latency as exported, with both intervals; None for fewer than two."""
    places = []
    for network in found.networks:
        row, one = found.recommend_strategy(network), found.find_deployed_model(network)
        if row is not None and one is not None and one.p50_ms is not None:
            places.append((network, row, one.p50_ms, one.ci95_ms or (one.p50_ms, one.p50_ms)))
    if len(places) < 2:
        return None

    def paint(drawing: Figure) -> None:
        axes = drawing.subplots()
        for line, (_, row, p50_ms, (low, high)) in zip(LINE_STYLES, places, strict=False):
            axes.plot([low, high], [row.val_accuracy] * 2, color=line.color, linewidth=1.4)
            axes.plot([p50_ms] * 2, row.ci95, color=line.color, linewidth=1.4)
            axes.plot([p50_ms], [row.val_accuracy], "o", color=line.color, markersize=7)
        format_latency_axis(
            axes, min(low for *_, (low, _) in places), max(high for *_, (_, high) in places)
        )
        axes.set_xmargin(0.15)
        format_accuracy_axis(axes)
        axes.set_xlabel("p50, ms for an image")
        axes.grid()

    told = "; ".join(
        f"{network}: {format_percent(row.val_accuracy)} at {p50_ms:.2f} ms"
        for network, row, p50_ms, _ in places
    )
    key = [
        (
            line.legend_line,
            f"{network} ({row.first_run.strategy}), {format_percent(row.val_accuracy)} at {p50_ms:.2f} ms",
        )
        for line, (network, row, p50_ms, _) in zip(LINE_STYLES, places, strict=False)
    ]
    caption = "Up and to the left is better. Bars: 95% intervals, of accuracy for other images, of latency over rounds."
    return figure(title, render_svg(f"Accuracy against latency. {told}", 2.9, paint), key, caption)


def draw_freeze_sweep(title: str, rows: Sequence[StrategyResult]) -> Markup | None:
    """Accuracy and time against the share of frozen blocks; None for fewer than three shares."""
    swept = sorted(
        (row for row in rows if row.first_run.strategy in _FROZEN_PERCENT),
        key=lambda row: _FROZEN_PERCENT[row.first_run.strategy],
    )
    if len(swept) < 3:
        return None
    shares = [_FROZEN_PERCENT[row.first_run.strategy] for row in swept]

    def paint(drawing: Figure) -> None:
        upper, lower = drawing.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        for row, share in zip(swept, shares, strict=True):
            upper.plot([share] * 2, row.ci95, color=BLUE, linewidth=1.4)
            upper.plot(
                [share] * len(row.runs),
                [run.val_accuracy for run in row.runs],
                ".",
                color=BLUE,
                markersize=5,
            )
        upper.plot(
            shares, [row.val_accuracy for row in swept], color=BLUE, marker="o", markersize=5
        )
        format_accuracy_axis(upper)
        upper.grid(axis="y")
        lower.bar(shares, [row.seconds for row in swept], width=9, color=ORANGE)
        lower.set_ylabel("seconds")
        lower.set_xticks(shares, [f"{share}%" for share in shares])
        lower.set_xlabel("frozen blocks")

    told = "; ".join(
        f"{share}% frozen: {format_percent(row.val_accuracy)} in {format_duration(row.seconds)}"
        for share, row in zip(shares, swept, strict=True)
    )
    caption = "Upper: validation accuracy, mean and seeds, with its 95% interval. Lower: the time of the whole run. 100% is the head alone."
    return figure(title, render_svg(f"What freezing changes. {told}", 3.4, paint), (), caption)


def _format_time_axis(axes: Axes, low: float, high: float) -> None:
    from matplotlib.ticker import NullLocator

    if high / low >= 4:
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
        ticks = [seconds for seconds in _TIME_TICKS_S if low / 1.3 <= seconds <= high * 1.3]
        while len(ticks) > 7:
            ticks = ticks[::2]
        axes.set_xticks(
            ticks,
            [
                escape_mathtext(
                    format_duration(tick).replace(".0 s", " s").replace(" min 0 s", " min")
                )
                for tick in ticks
            ],
        )
    else:
        axes.set_xlim(left=0)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g} s")

"""Charts of an experiment: accuracy over time, accuracy against latency, effect of freezing."""

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
"""Percentage of frozen backbone blocks by strategy."""
_TIME_TICKS_S = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 28800)


def draw_strategy_curves(title: str, rows: Sequence[StrategyResult], target: float) -> Markup:
    """Draw validation accuracy over the time since the start of each run.

    One line per strategy and seed; a ring marks the last epoch.
    """
    visible = list(rows)
    if len(rows) > len(LINE_STYLES):
        # More lines could not be told apart. With all strategies, the second scratch run is only
        # in the tables.
        visible = [row for row in rows if row.first_run.strategy != EQUAL_TIME]
        visible = visible[: len(LINE_STYLES)]
    styles = dict(zip((row.name for row in visible), LINE_STYLES, strict=False))
    times = [epoch.elapsed for row in visible for run in row.runs for epoch in run.epochs]

    def paint(drawing: Figure) -> None:
        axes = drawing.subplots()
        axes.axhline(target, color=GRAY, linewidth=0.9, linestyle=(0, (2, 2)))
        for row in visible:
            style = styles[row.name]
            for run in row.runs:
                elapsed = [epoch.elapsed for epoch in run.epochs]
                accuracy = [epoch.val_accuracy for epoch in run.epochs]
                axes.plot(elapsed, accuracy, marker="o", markersize=2.6, **style.plot_kwargs)
                axes.plot(
                    elapsed[-1:],
                    accuracy[-1:],
                    "o",
                    color=style.color,
                    markersize=7,
                    markerfacecolor="none",
                )
        _format_time_axis(axes, min(times), max(times))
        format_accuracy_axis(axes)
        axes.set_xlabel("time since the start of the run")
        axes.grid()

    final = {
        row.name: f"{format_percent(row.val_accuracy)} in {format_duration(row.seconds)}"
        for row in visible
    }
    endings = "; ".join(f"{row.first_run.strategy}: {final[row.name]}" for row in visible)
    legend = [
        (styles[row.name].legend_line, f"{row.first_run.strategy}, {final[row.name]}")
        for row in visible
    ]
    caption = (
        "After each epoch; times include reading the images. "
        f"Dashed: the target, {target:.0%}. Ring: the last epoch."
    )
    drawing = render_svg(f"Validation accuracy over time. {endings}", 3.2, paint)
    return figure(title, drawing, legend, caption)


def draw_trade_off(title: str, experiment: Experiment) -> Markup | None:
    """Draw accuracy against latency of each network's recommended run, with 95% intervals.

    None for fewer than two networks.
    """
    points = []
    for network in experiment.networks:
        row = experiment.recommend_strategy(network)
        deployed = experiment.find_deployed_model(network)
        if row is None or deployed is None or deployed.p50_ms is None:
            continue
        interval = deployed.ci95_ms or (deployed.p50_ms, deployed.p50_ms)
        points.append((network, row, deployed.p50_ms, interval))
    if len(points) < 2:
        return None

    def paint(drawing: Figure) -> None:
        axes = drawing.subplots()
        for style, (_, row, p50_ms, interval) in zip(LINE_STYLES, points, strict=False):
            color = style.color
            axes.plot(interval, [row.val_accuracy] * 2, color=color, linewidth=1.4)
            axes.plot([p50_ms] * 2, row.ci95, color=color, linewidth=1.4)
            axes.plot([p50_ms], [row.val_accuracy], "o", color=color, markersize=7)
        lowest = min(low for *_, (low, _) in points)
        format_latency_axis(axes, lowest, max(high for *_, (_, high) in points))
        axes.set_xmargin(0.15)
        format_accuracy_axis(axes)
        axes.set_xlabel("p50 latency per image, ms")
        axes.grid()

    values = {
        network: f"{format_percent(row.val_accuracy)} at {p50_ms:.2f} ms"
        for network, row, p50_ms, _ in points
    }
    label = "; ".join(f"{network}: {value}" for network, value in values.items())
    legend = [
        (style.legend_line, f"{network} ({row.first_run.strategy}), {values[network]}")
        for style, (network, row, _, _) in zip(LINE_STYLES, points, strict=False)
    ]
    caption = (
        "Up and to the left is better. Bars: 95% intervals, of accuracy over images, "
        "of latency over rounds."
    )
    drawing = render_svg(f"Accuracy against latency. {label}", 2.9, paint)
    return figure(title, drawing, legend, caption)


def draw_freeze_sweep(title: str, rows: Sequence[StrategyResult]) -> Markup | None:
    """Draw accuracy and time against the share of frozen blocks; None for fewer than 3 shares."""
    sweep = sorted(
        (row for row in rows if row.first_run.strategy in _FROZEN_PERCENT),
        key=lambda row: _FROZEN_PERCENT[row.first_run.strategy],
    )
    if len(sweep) < 3:
        return None
    shares = [_FROZEN_PERCENT[row.first_run.strategy] for row in sweep]

    def paint(drawing: Figure) -> None:
        upper, lower = drawing.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        for row, share in zip(sweep, shares, strict=True):
            upper.plot([share] * 2, row.ci95, color=BLUE, linewidth=1.4)
            upper.plot(
                [share] * len(row.runs),
                [run.val_accuracy for run in row.runs],
                ".",
                color=BLUE,
                markersize=5,
            )
        upper.plot(
            shares, [row.val_accuracy for row in sweep], color=BLUE, marker="o", markersize=5
        )
        format_accuracy_axis(upper)
        upper.grid(axis="y")
        lower.bar(shares, [row.seconds for row in sweep], width=9, color=ORANGE)
        lower.set_ylabel("seconds")
        lower.set_xticks(shares, [f"{share}%" for share in shares])
        lower.set_xlabel("frozen blocks")

    values = "; ".join(
        f"{share}% frozen: {format_percent(row.val_accuracy)} in {format_duration(row.seconds)}"
        for share, row in zip(shares, sweep, strict=True)
    )
    caption = (
        "Top: validation accuracy, mean and seeds, with 95% interval. Bottom: total time of the run. "
        "At 100% only the head is trained."
    )
    drawing = render_svg(f"Effect of freezing. {values}", 3.4, paint)
    return figure(title, drawing, (), caption)


def _format_time_axis(axes: Axes, low: float, high: float) -> None:
    from matplotlib.ticker import NullLocator

    if high / low >= 4:
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
        ticks = [seconds for seconds in _TIME_TICKS_S if low / 1.3 <= seconds <= high * 1.3]
        while len(ticks) > 7:
            ticks = ticks[::2]
        labels = [
            format_duration(tick).replace(".0 s", " s").replace(" min 0 s", " min")
            for tick in ticks
        ]
        axes.set_xticks(ticks, [escape_mathtext(label) for label in labels])
    else:
        axes.set_xlim(left=0)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g} s")

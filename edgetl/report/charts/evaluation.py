"""Charts of an evaluation: reliability diagram, risk-coverage curve, accuracy under corruptions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from markupsafe import Markup

from edgetl.core.artifacts.evaluation import (
    CalibrationEvaluation,
    CorruptionEvaluation,
    Estimate,
    RiskCoverage,
    average_over_corruptions,
)
from edgetl.core.formatting import format_percent
from edgetl.report.charts.svg import (
    LINE_STYLES,
    LineStyle,
    format_accuracy_axis,
    render_svg,
)
from edgetl.report.html.blocks import figure
from edgetl.report.plots.style import BLUE, GRAY

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_VARIANTS = len(LINE_STYLES)
"""Maximum number of variants in a chart."""
_DIAGONAL = LineStyle(GRAY, (2, 2))
_BAND_ALPHA = 0.15


def draw_reliability_diagram(title: str, calibration: CalibrationEvaluation) -> Markup:
    """Draw accuracy over confidence by bin, and the number of images in each bin."""
    bins = calibration.bins
    images = sum(entry.images for entry in bins)

    def paint(drawing: Figure) -> None:
        upper, lower = drawing.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        upper.plot([0, 1], [0, 1], **_DIAGONAL.plot_kwargs)
        for entry in bins:
            upper.plot([entry.confidence] * 2, entry.accuracy_interval, color=BLUE, linewidth=1.4)
        upper.plot(
            [entry.confidence for entry in bins],
            [entry.accuracy for entry in bins],
            color=BLUE,
            marker="o",
            markersize=5,
            linestyle="none",
        )
        upper.set_ylabel("accuracy")
        upper.set_xlim(0, 1.02)
        upper.set_ylim(-0.02, 1.02)
        upper.grid()
        for entry in bins:
            lower.bar(
                (entry.low + entry.high) / 2,
                entry.images / images,
                width=0.9 * (entry.high - entry.low),
                color=BLUE,
            )
        lower.set_ylabel("images")
        lower.set_xlabel("confidence: highest probability of an image")
        _format_percent_axes(upper, "xy")
        _format_percent_axes(lower, "y")

    error = calibration.calibration_error
    label = f"Reliability diagram. Calibration error {error.value:.3f}. " + "; ".join(
        f"confidence {entry.confidence:.2f}: accuracy {entry.accuracy:.2f} on {entry.images} images"
        for entry in bins
    )
    caption = (
        f"Expected calibration error {error.value:.3f} (95% interval {error.low:.3f} to "
        f"{error.high:.3f}). Bars: 95% intervals of the accuracy. Below the dashed line the model "
        "is overconfident."
    )
    return figure(title, render_svg(label, 3.6, paint), (), caption)


def draw_risk_coverage(title: str, curves: Mapping[str, RiskCoverage]) -> Markup:
    """Draw the error rate over the share of images that are answered, most confident first."""
    styles = dict(zip(curves, LINE_STYLES, strict=False))

    def paint(drawing: Figure) -> None:
        axes = drawing.subplots()
        for name, style in styles.items():
            points = curves[name].points
            coverages = [point.coverage for point in points]
            _draw_band(axes, coverages, [point.interval for point in points], style)
            axes.plot(coverages, [point.risk for point in points], **style.plot_kwargs)
        # The intervals of the first few images are wide and would flatten the curves.
        highest = max(curves[name].points[-1].interval[1] for name in styles)
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1.6 * highest)
        _format_percent_axes(axes, "xy")
        axes.set_xlabel("answered images, the most confident first")
        axes.set_ylabel("error rate")
        axes.grid()

    legend = []
    for name, style in styles.items():
        area = curves[name].aurc
        legend.append((style.legend_line, f"{name}, area {_format_estimate(area)}"))
    label = f"{title}: " + "; ".join(
        f"{name}, area {curves[name].aurc.value:.4f}" for name in styles
    )
    caption = (
        "Lower is better: a model that knows its mistakes has few errors among the images that it "
        "is sure of. Bands: 95% intervals of the error rate."
    )
    return figure(title, render_svg(label, 2.9, paint), legend, caption)


def draw_accuracy_by_severity(
    title: str,
    clean: Mapping[str, Estimate],
    corruptions: Mapping[str, Sequence[CorruptionEvaluation]],
) -> Markup:
    """Draw the mean accuracy over all kinds of corruption by severity; 0 is uncorrupted.

    Args:
        title: title of the figure.
        clean: accuracy on uncorrupted images by variant.
        corruptions: results by variant.
    """
    styles = dict(zip(corruptions, LINE_STYLES, strict=False))
    series: dict[str, dict[int, Estimate]] = {}
    for name in styles:
        severities = sorted({entry.severity for entry in corruptions[name]})
        series[name] = {0: clean[name]} | {
            severity: average_over_corruptions(
                [entry for entry in corruptions[name] if entry.severity == severity]
            )
            for severity in severities
        }

    def paint(drawing: Figure) -> None:
        axes = drawing.subplots()
        for name, style in styles.items():
            severities = list(series[name])
            estimates = list(series[name].values())
            _draw_band(axes, severities, [entry.interval for entry in estimates], style)
            values = [entry.value for entry in estimates]
            axes.plot(severities, values, marker="o", markersize=4, **style.plot_kwargs)
        ticks = sorted({severity for values in series.values() for severity in values})
        axes.set_xticks(ticks, ["none" if tick == 0 else str(tick) for tick in ticks])
        axes.set_xlabel("severity")
        axes.set_ylabel("accuracy")
        format_accuracy_axis(axes)
        axes.grid()

    legend = [(style.legend_line, name) for name, style in styles.items()]
    label = f"{title}. " + "; ".join(
        f"{name}: "
        + ", ".join(f"{severity} {format_percent(entry.value)}" for severity, entry in line.items())
        for name, line in series.items()
    )
    kinds = len({entry.kind for entries in corruptions.values() for entry in entries})
    caption = f"Mean over {kinds} kinds of corruption. Bands: 95% intervals, at most this wide."
    return figure(title, render_svg(label, 2.8, paint), legend, caption)


def draw_accuracy_by_kind(
    title: str,
    clean: Mapping[str, Estimate],
    corruptions: Mapping[str, Sequence[CorruptionEvaluation]],
) -> Markup:
    """Draw the mean accuracy over all severities by kind of corruption, with 95% intervals."""
    styles = dict(zip(corruptions, LINE_STYLES, strict=False))
    kinds = list(dict.fromkeys(entry.kind for name in styles for entry in corruptions[name]))
    means = {
        name: [
            average_over_corruptions([entry for entry in corruptions[name] if entry.kind == kind])
            for kind in kinds
        ]
        for name in styles
    }

    def paint(drawing: Figure) -> None:
        axes = drawing.subplots()
        for index, (name, style) in enumerate(styles.items()):
            offset = 0.6 * ((index + 0.5) / len(styles) - 0.5)
            axes.axvline(clean[name].value, color=style.color, linewidth=0.9, linestyle=(0, (2, 2)))
            for row, estimate in enumerate(means[name]):
                axes.plot(estimate.interval, [row + offset] * 2, color=style.color, linewidth=1.4)
                axes.plot([estimate.value], [row + offset], "o", color=style.color, markersize=4.5)
        axes.set_yticks(range(len(kinds)), [kind.replace("_", " ") for kind in kinds])
        axes.set_ylim(len(kinds) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        _format_percent_axes(axes, "x")
        axes.set_xlabel("accuracy")
        axes.grid(axis="x")

    legend = [(style.legend_line, name) for name, style in styles.items()]
    label = f"{title}. " + "; ".join(
        f"{name}: "
        + ", ".join(
            f"{kind} {format_percent(estimate.value)}"
            for kind, estimate in zip(kinds, means[name], strict=True)
        )
        for name in styles
    )
    caption = "Mean over the severities. Dashed: uncorrupted images. Bars: 95% intervals, at most this wide."
    height = 0.9 + 0.22 * len(kinds)
    return figure(title, render_svg(label, height, paint), legend, caption)


def _draw_band(
    axes: Axes,
    positions: Sequence[float],
    intervals: Sequence[tuple[float, float]],
    style: LineStyle,
) -> None:
    low, high = zip(*intervals, strict=True)
    axes.fill_between(positions, low, high, color=style.color, alpha=_BAND_ALPHA, linewidth=0)


def _format_percent_axes(axes: Axes, names: str) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    for name in names:
        axis = axes.xaxis if name == "x" else axes.yaxis
        axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}%"))


def _format_estimate(estimate: Estimate) -> str:
    return f"{estimate.value:.4f} [{estimate.low:.4f}, {estimate.high:.4f}]"

"""Chart of accuracy against latency: runtimes, precisions and the best trade-offs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from markupsafe import Markup

from edgetl.core.artifacts.bench_rows import BenchRow
from edgetl.core.artifacts.runtime_comparison import (
    select_pareto_rows,
)
from edgetl.core.formatting import format_milliseconds, format_percent
from edgetl.report.charts.runtime_styles import assign_runtime_styles
from edgetl.report.charts.svg import (
    PAPER,
    LineStyle,
    MarkerStyle,
    format_latency_axis,
    legend_ring,
    render_svg,
)
from edgetl.report.html.blocks import figure
from edgetl.report.plots.style import GRAY, INK, escape_mathtext, shorten_middle

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FRONT = LineStyle(GRAY, (4, 2))
_MARKER_SIZE, _RING_SIZE = 7, 13
_MAX_LABEL_CHARACTERS = 30
_MAX_AXIS_MARGIN = 1.5
"""Factor by which intervals widen the axis beyond the fastest and the slowest p50, at most."""
_LINE_INCHES = 0.16
"""Height of a line of labels."""


@dataclass(frozen=True)
class RuntimePanel:
    """Rows that are measured under the same conditions on one device."""

    title: str
    rows: tuple[BenchRow, ...]
    """Rows with latency and accuracy."""
    recommended_rows: tuple[BenchRow, ...] = ()


def draw_runtimes(title: str, panels: Sequence[RuntimePanel]) -> Markup:
    """Draw accuracy against p50, one panel below the other with common axes.

    Runtimes differ in color and shape, precisions in how the shape is filled, so that the drawing
    is readable without color.
    """
    rows = [row for panel in panels for row in panel.rows]
    styles = assign_runtime_styles(rows)
    label_lines = max(len(_labeled_rows(panel)) for panel in panels)
    axes_height = 1.75 + label_lines * _LINE_INCHES
    line_share = _LINE_INCHES / axes_height

    def paint(drawing: Figure) -> None:
        column = drawing.subplots(len(panels), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
        _set_limits(column[0], rows, label_lines * line_share)
        for axes, panel in zip(column, panels, strict=True):
            _draw_panel(axes, panel, styles, line_share)
        column[-1].set_xlabel("p50, ms")
        drawing.supylabel("top-1 accuracy", fontsize=9.5)

    description = "; ".join(f"{panel.title}: {_describe_rows(panel.rows)}" for panel in panels)
    legend = [(style.legend_marker, name) for name, style in styles.items()]
    legend.append((_FRONT.legend_line, "best accuracy up to this latency"))
    if any(panel.recommended_rows for panel in panels):
        legend.append((legend_ring(), "recommended"))
    caption = (
        f"Up and to the left is better. {_describe_fills(rows)}Bars: 95% intervals of accuracy "
        "and p50. The variants of a model are evaluated on the same images, so differences between "
        "them are more certain than the bars suggest; the column of flips counts the answers that "
        "differ from PyTorch's."
    )
    height = 0.4 + (axes_height + 0.4) * len(panels)
    return figure(title, render_svg(f"{title}. {description}", height, paint), legend, caption)


def _set_limits(axes: Axes, rows: Sequence[BenchRow], label_share: float) -> None:
    """Set the limits of both axes, with a share of the height for labels at the top."""
    from matplotlib.ticker import FixedLocator, MaxNLocator, PercentFormatter

    intervals = [_accuracy_interval(row) for row in rows]
    bottom, top = min(low for low, _ in intervals), max(high for _, high in intervals)
    padding = 0.06 * (top - bottom) or 0.01
    bottom, top = bottom - padding, top + padding
    axes.set_ylim(bottom, bottom + (top - bottom) / (1 - label_share))
    # Only ticks at whole percents: the formatter would round 92.5% to 92%.
    ticks = MaxNLocator(6, steps=[1, 2, 5, 10]).tick_values(100 * bottom, 100 * top)
    axes.yaxis.set_major_locator(
        FixedLocator([tick / 100 for tick in ticks if 100 * bottom <= tick <= min(100, 100 * top)])
    )
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    latencies = [value for row in rows for value in (row.p50_interval_ms or (_point(row)[0],))]
    fastest, slowest = min(x for x, _ in map(_point, rows)), max(x for x, _ in map(_point, rows))
    # Two or three rounds can give intervals so wide that the points could not be told apart.
    low = max(min(latencies), fastest / _MAX_AXIS_MARGIN)
    high = min(max(latencies), slowest * _MAX_AXIS_MARGIN)
    format_latency_axis(axes, low, high)
    if axes.get_xscale() == "log":
        margin = (high / low) ** 0.06
        axes.set_xlim(low / margin, high * margin)
    else:
        margin = 0.06 * (high - low) or 0.1 * high
        axes.set_xlim(low - margin, high + margin)


def _draw_panel(
    axes: Axes, panel: RuntimePanel, styles: Mapping[str, MarkerStyle], line_share: float
) -> None:
    front = select_pareto_rows(panel.rows)
    points = [_point(row) for row in front]
    points.append((axes.get_xlim()[1], points[-1][1]))
    axes.step(
        [x for x, _ in points], [y for _, y in points], where="post", linewidth=1.2, zorder=1,
        **_FRONT.plot_kwargs,
    )  # fmt: skip
    for row in panel.rows:
        _draw_row(axes, row, styles[row.runtime])
    for row in panel.recommended_rows:
        axes.plot(*_point(row), "o", markersize=_RING_SIZE, markerfacecolor="none",
                  markeredgecolor=INK, markeredgewidth=1.2, zorder=4)  # fmt: skip
    _label_rows(axes, _labeled_rows(panel), line_share)
    axes.set_title(escape_mathtext(panel.title), loc="left")
    axes.grid()


def _labeled_rows(panel: RuntimePanel) -> list[BenchRow]:
    """Return the rows of the front and the recommended ones, fastest first."""
    rows = {row.id: row for row in (*select_pareto_rows(panel.rows), *panel.recommended_rows)}
    return sorted(rows.values(), key=_point)


def _label_rows(axes: Axes, rows: Sequence[BenchRow], line_share: float) -> None:
    """Write the names of rows at the top, one on a line, with lines to their points.

    The names stand on the side with more space. Their order keeps lines and names from crossing.
    """
    to_share = axes.transData + axes.transAxes.inverted()
    is_left = all(to_share.transform(_point(row))[0] < 0.6 for row in rows)
    for index, row in enumerate(rows if is_left else reversed(rows)):
        axes.annotate(
            escape_mathtext(shorten_middle(row.name, _MAX_LABEL_CHARACTERS)),
            (_point(row)[0], _accuracy_interval(row)[1]),
            (_point(row)[0], 1 - (index + 1) * line_share),
            textcoords=axes.get_xaxis_transform(),
            ha="left" if is_left else "right",
            va="bottom",
            fontsize=8.5,
            arrowprops={
                "arrowstyle": "-",
                "color": GRAY,
                "linewidth": 0.8,
                "relpos": (0 if is_left else 1, 0),
                "shrinkA": 0,
                "shrinkB": 0,
            },
        )


def _draw_row(axes: Axes, row: BenchRow, style: MarkerStyle) -> None:
    x, y = _point(row)
    bars: dict[str, Any] = {"color": style.color, "linewidth": 1, "alpha": 0.5, "zorder": 2}
    axes.plot([x, x], _accuracy_interval(row), **bars)
    if row.p50_interval_ms is not None:
        axes.plot(row.p50_interval_ms, [y, y], **bars)
    axes.plot(
        x, y, style.marker, color=style.color, markersize=_MARKER_SIZE,
        fillstyle=_fill_style(row), markerfacecoloralt=PAPER, markeredgewidth=1.4, zorder=3,
    )  # fmt: skip


def _point(row: BenchRow) -> tuple[float, float]:
    assert row.p50_ms is not None
    assert row.accuracy is not None
    return row.p50_ms, row.accuracy.top1


def _accuracy_interval(row: BenchRow) -> tuple[float, float]:
    assert row.accuracy is not None
    return row.accuracy.interval


def _fill_style(row: BenchRow) -> Literal["full", "left", "none"]:
    bits = row.precision_bits
    if bits is None or bits > 16:
        return "none"
    return "left" if bits == 16 else "full"


def _describe_fills(rows: Iterable[BenchRow]) -> str:
    names = {"none": "open: 32-bit", "left": "half: 16-bit", "full": "filled: 8-bit"}
    fills = {_fill_style(row) for row in rows}
    if len(fills) == 1:
        return ""
    return f"Markers are {', '.join(names[fill] for fill in names if fill in fills)}. "


def _describe_rows(rows: Iterable[BenchRow]) -> str:
    return ", ".join(
        f"{row.name} {format_percent(_point(row)[1])} in {format_milliseconds(row.p50_ms)} ms"
        for row in rows
    )

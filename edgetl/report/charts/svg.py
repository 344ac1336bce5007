"""Inline SVG charts by matplotlib, with CSS colors that follow the light or dark theme."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

from edgetl.report.plots.style import BLUE, GRAY, INK, ORANGE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GREEN, PURPLE, SKY, AMBER = "#009E73", "#CC79A7", "#56B4E9", "#E69F00"
GRID_GRAY, PAPER = "#E3E3E3", "#FEFEFE"
_CSS_VARIABLES = {
    BLUE: "blue", ORANGE: "orange", GREEN: "green", PURPLE: "purple", SKY: "sky", AMBER: "amber",
    GRAY: "gray", INK: "ink", GRID_GRAY: "line", PAPER: "paper",
}  # fmt: skip
"""CSS variable of the page by the matplotlib color that it replaces."""
_RC_PARAMS: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "edgetl",
    "font.size": 9.5,
    "axes.titlesize": 9.5,
    "axes.labelsize": 9.5,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.edgecolor": GRAY,
    "axes.linewidth": 0.8,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "grid.color": GRID_GRAY,
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": False,
    "lines.linewidth": 1.7,
}
FIGURE_WIDTH_INCHES = 5.2
"""Width of a drawing in inches, narrow enough to be readable on a phone."""


@dataclass(frozen=True)
class LineStyle:
    """Color and dashes of a series; the dashes distinguish series without color."""

    color: str
    dashes: tuple[float, ...] = ()

    @property
    def plot_kwargs(self) -> dict[str, Any]:
        """Keyword arguments for `Axes.plot`."""
        return {"color": self.color, "linestyle": (0, self.dashes) if self.dashes else "-"}

    @property
    def legend_line(self) -> Markup:
        """Sample of the line for the legend."""
        dashes = Markup("")
        if self.dashes:
            lengths = " ".join(f"{2 * length:g}" for length in self.dashes)
            dashes = Markup(' stroke-dasharray="{}"').format(lengths)
        return Markup(
            '<svg viewBox="0 0 30 10" aria-hidden="true"><path d="M0 5h30" fill="none" style="{}"{}/></svg>'
        ).format(f"stroke: {_css_variable(self.color)}; stroke-width: 3", dashes)


LINE_STYLES = (
    LineStyle(ORANGE),
    LineStyle(BLUE),
    LineStyle(GREEN, (4, 1.2)),
    LineStyle(PURPLE, (1.2, 1.2)),
    LineStyle(AMBER, (6, 1.5, 1.2, 1.5)),
    LineStyle(SKY),
    LineStyle(GRAY, (3, 2)),
)
"""Styles of the lines of one drawing; more lines could not be told apart."""
FILL_COLORS = (BLUE, ORANGE, SKY, GREEN, AMBER, PURPLE, GRAY)
"""Colors of the segments of a stacked bar, in order."""


@dataclass(frozen=True)
class MarkerStyle:
    """Color and shape of the points of a series; the shapes distinguish series without color."""

    color: str
    marker: str
    """Shape in matplotlib's notation."""

    @property
    def legend_marker(self) -> Markup:
        """Marker for the legend."""
        shape = Markup(
            '<svg viewBox="0 0 30 10" aria-hidden="true"><path d="{}" style="fill: {}"/></svg>'
        )
        return shape.format(_MARKER_PATHS[self.marker], _css_variable(self.color))


_MARKER_PATHS = {
    "o": "M10.5 5a4.5 4.5 0 0 0 9 0a4.5 4.5 0 0 0-9 0z",
    "s": "M11 1h8v8h-8z",
    "^": "M15 0l5 9.5h-10z",
    "D": "M15 0l5 5l-5 5l-5-5z",
    "v": "M15 10l5-9.5h-10z",
    "P": "M13 0h4v3h3v4h-3v3h-4v-3h-3v-4h3z",
    "X": "M12 0l3 3l3-3l2 2l-3 3l3 3l-2 2l-3-3l-3 3l-2-2l3-3l-3-3z",
}
"""Outlines of the markers for legends, by matplotlib's notation."""
MARKER_STYLES = tuple(
    MarkerStyle(color, marker)
    for color, marker in zip(
        (BLUE, GREEN, PURPLE, AMBER, SKY, GRAY, ORANGE), _MARKER_PATHS, strict=True
    )
)
"""Styles of the points of one drawing; more series could not be told apart."""


def legend_patch(color: str) -> Markup:
    """Return a filled patch for the legend."""
    return Markup(
        '<svg viewBox="0 0 30 10" aria-hidden="true"><path d="M4 0h22v10h-22z" style="{}"/></svg>'
    ).format(f"fill: {_css_variable(color)}")


def legend_ring() -> Markup:
    """Return an open circle for the legend."""
    circle = Markup(
        '<svg viewBox="0 0 30 10" aria-hidden="true"><circle cx="15" cy="5" r="4" fill="none" style="{}"/></svg>'
    )
    return circle.format(f"stroke: {_css_variable(INK)}; stroke-width: 1.2")


def render_svg(label: str, height: float, paint: Callable[[Figure], None]) -> Markup:
    """Render a drawing as inline SVG. The output is deterministic.

    Args:
        label: description for screen readers.
        height: height in inches.
        paint: draws on the empty figure.
    """
    import matplotlib
    from matplotlib.figure import Figure

    buffer = io.StringIO()
    with matplotlib.rc_context(_RC_PARAMS), warnings.catch_warnings():
        # Glyphs missing in matplotlib's font are drawn with the fonts of the browser.
        warnings.filterwarnings("ignore", message=".*[Gg]lyph.*")
        figure = Figure(figsize=(FIGURE_WIDTH_INCHES, height), layout="constrained")
        paint(figure)
        figure.savefig(
            buffer,
            format="svg",
            transparent=True,
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )
    return Markup(_to_inline_svg(buffer.getvalue(), label))


def format_latency_axis(axes: Axes, low: float, high: float, axis_name: str = "x") -> None:
    """Format an axis of latencies in milliseconds: logarithmic if `high / low` is at least 4."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    axis = axes.xaxis if axis_name == "x" else axes.yaxis
    if low > 0 and high / low >= 4:
        set_scale = axes.set_xscale if axis_name == "x" else axes.set_yscale
        set_scale("log")
        subs = (1.0, 2.0, 5.0) if high / low < 300 else (1.0,)
        axis.set_major_locator(LogLocator(subs=subs, numticks=12))
        axis.set_minor_locator(NullLocator())
    else:
        axis.set_major_locator(MaxNLocator(6))
    axis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value:g}" if value < 1e5 else f"{value:.0e}")
    )


def format_accuracy_axis(axes: Axes) -> None:
    """Format the y axis for shares, in percent."""
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    # Only ticks at whole percents: the formatter would round 92.5% to 92%.
    axes.yaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_ylim(top=min(1.02, axes.get_ylim()[1] + 0.01))


def _css_variable(color: str) -> str:
    return f"var(--{_CSS_VARIABLES[color]})"


def _to_inline_svg(text: str, label: str) -> str:
    text = re.sub(
        r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->",
        "",
        text[text.index("<svg") :],
        flags=re.DOTALL,
    )
    for color in _CSS_VARIABLES:
        text = re.sub(re.escape(color), _css_variable(color), text, flags=re.IGNORECASE)
    # A page contains many drawings: prefix the ids to make them unique, and drop unused ones.
    references = re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', text)
    used = {name for pair in references for name in pair if name}
    prefix = "d" + sha256((label + text).encode()).hexdigest()[:8]

    def rename_id(match: re.Match[str]) -> str:
        return f' id="{prefix}-{match[1]}"' if match[1] in used else ""

    text = re.sub(r' id="([^"]*)"', rename_id, text)
    text = re.sub(r'(url\(#|href="#)', rf"\g<1>{prefix}-", text)
    text = re.sub(r"font-family: [^;\"]*;? ?", "", text)
    match = re.search(r'viewBox="[^"]*"', text)
    view_box = match[0] if match else ""
    opening = (
        f'<svg {view_box} role="img" aria-label="{escape(label)}"><title>{escape(label)}</title>'
    )
    return opening + re.sub(r"\n\s*", "\n", text[text.index(">") + 1 :]).strip()

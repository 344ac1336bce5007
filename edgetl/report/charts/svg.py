"""Drawings inside a page: SVG by matplotlib, its colours the page's, so that they follow light and dark."""

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

GREEN, PURPLE, SKY, AMBER, GRID_GRAY, PAPER = (
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#E69F00",
    "#E3E3E3",
    "#FEFEFE",
)
_CSS_VARIABLES = {
    BLUE: "blue", ORANGE: "orange", GREEN: "green", PURPLE: "purple", SKY: "sky", AMBER: "amber",
    GRAY: "grey", INK: "ink", GRID_GRAY: "line", PAPER: "paper",
}  # fmt: skip
"""What matplotlib draws with, and the page's own colour that takes its place."""
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
"""Inches: narrow enough that text stays readable on a phone, where the drawing is as wide as the screen."""


@dataclass(frozen=True)
class LineStyle:
    """How one series is told from the others: by colour, and by its dashes for those who see no colour."""

    color: str
    dashes: tuple[float, ...] = ()

    @property
    def plot_kwargs(self) -> dict[str, Any]:
        """As matplotlib's keyword arguments."""
        return {"color": self.color, "linestyle": (0, self.dashes) if self.dashes else "-"}

    @property
    def legend_line(self) -> Markup:
        """A short piece of it for the key."""
        dashes = (
            Markup(' stroke-dasharray="{}"').format(
                " ".join(f"{2 * part:g}" for part in self.dashes)
            )
            if self.dashes
            else ""
        )
        return Markup(
            '<svg viewBox="0 0 30 10" aria-hidden="true"><path d="M0 5h30" fill="none" style="{}"{}/></svg>'
        ).format(f"stroke: {_css_variable(self.color)}; stroke-width: 3", dashes)


LINE_STYLES = (
    LineStyle(ORANGE), LineStyle(BLUE), LineStyle(GREEN, (4, 1.2)), LineStyle(PURPLE, (1.2, 1.2)), LineStyle(AMBER, (6, 1.5, 1.2, 1.5)),
    LineStyle(SKY), LineStyle(GRAY, (3, 2)),
)  # fmt: skip
"""Lines of one drawing; more than these cannot be told apart."""
FILL_COLORS = (BLUE, ORANGE, SKY, GREEN, AMBER, PURPLE, GRAY)
"""Neighbours in a stacked bar."""


def legend_patch(colour: str) -> Markup:
    """A filled piece for the key."""
    return Markup(
        '<svg viewBox="0 0 30 10" aria-hidden="true"><path d="M4 0h22v10h-22z" style="{}"/></svg>'
    ).format(f"fill: {_css_variable(colour)}")


def legend_ring() -> Markup:
    """An open circle for the key."""
    circle = Markup(
        '<svg viewBox="0 0 30 10" aria-hidden="true"><circle cx="15" cy="5" r="4" fill="none" style="{}"/></svg>'
    )
    return circle.format(f"stroke: {_css_variable(INK)}; stroke-width: 1.2")


def render_svg(label: str, height: float, paint: Callable[[Figure], None]) -> Markup:
    """The drawing as inline SVG; the same drawing is the same text every time.

    Args:
        label: what it shows, for those who cannot see it.
        height: inches.
        paint: draws on the empty figure.
    """
    import matplotlib
    from matplotlib.figure import Figure

    written = io.StringIO()
    with matplotlib.rc_context(_RC_PARAMS), warnings.catch_warnings():
        # A script that the measuring font lacks is drawn by the browser's own fonts.
        warnings.filterwarnings("ignore", message=".*[Gg]lyph.*")
        figure = Figure(figsize=(FIGURE_WIDTH_INCHES, height), layout="constrained")
        paint(figure)
        figure.savefig(
            written,
            format="svg",
            transparent=True,
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )
    return Markup(_to_inline_svg(written.getvalue(), label))


def format_latency_axis(axes: Axes, low: float, high: float, which: str = "x") -> None:
    """Milliseconds: logarithmic where the range is wide, with plain numbers on it either way."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    axis = axes.xaxis if which == "x" else axes.yaxis
    if low > 0 and high / low >= 4:
        (axes.set_xscale if which == "x" else axes.set_yscale)("log")
        axis.set_major_locator(
            LogLocator(subs=(1.0, 2.0, 5.0) if high / low < 300 else (1.0,), numticks=12)
        )
        axis.set_minor_locator(NullLocator())
    else:
        axis.set_major_locator(MaxNLocator(6))
    axis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value:g}" if value < 1e5 else f"{value:.0e}")
    )


def format_accuracy_axis(axes: Axes) -> None:
    """Shares upwards, as percent."""
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    # Whole percents only: the formatter would round 92.5% to 92%.
    axes.yaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_ylim(top=min(1.02, axes.get_ylim()[1] + 0.01))


def _css_variable(colour: str) -> str:
    return f"var(--{_CSS_VARIABLES[colour]})"


def _to_inline_svg(text: str, label: str) -> str:
    text = re.sub(
        r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->",
        "",
        text[text.index("<svg") :],
        flags=re.DOTALL,
    )
    for colour in _CSS_VARIABLES:
        text = re.sub(re.escape(colour), _css_variable(colour), text, flags=re.IGNORECASE)
    # One page holds many drawings: an id must be its drawing's alone, and only what is referred to needs one.
    referred = set(re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', text))
    used = {name for pair in referred for name in pair if name}
    mark = "d" + sha256((label + text).encode()).hexdigest()[:8]
    text = re.sub(
        r' id="([^"]*)"', lambda found: f' id="{mark}-{found[1]}"' if found[1] in used else "", text
    )
    text = re.sub(r'(url\(#|href="#)', rf"\g<1>{mark}-", text)
    text = re.sub(r"font-family: [^;\"]*;? ?", "", text)
    view = re.search(r'viewBox="[^"]*"', text)
    opening = f'<svg {view[0] if view else ""} role="img" aria-label="{escape(label)}"><title>{escape(label)}</title>'
    return opening + re.sub(r"\n\s*", "\n", text[text.index(">") + 1 :]).strip()

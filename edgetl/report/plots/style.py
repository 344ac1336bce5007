"""A figure's look and its file; matplotlib without a display and without its global state."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgetl.core.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GRAY, INK = "#0072B2", "#D55E00", "#8A8A8A", "#222222"
"""From the palette of Okabe and Ito (2008), which colour-blind readers can tell apart."""


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, inches, that lays itself out without overlaps."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=144, layout="constrained")


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG atomically."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")


def simplify_axes(axes: Axes) -> None:
    """Only the lines that carry meaning."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#E3E3E3", linewidth=0.8)
    axes.set_axisbelow(True)


def shorten_middle(name: str, length: int) -> str:
    """At most `length` characters, the middle left out."""
    if len(name) <= length:
        return name
    head = (length - 1 + 1) // 2
    return f"{name[:head]}…{name[len(name) - (length - 1 - head) :]}"


def escape_mathtext(text: str) -> str:
    """`text` as matplotlib shows it, not as it would read it: a dollar sign starts no formula."""
    return text.replace("$", r"\$")


def save_message_figure(path: Path, title: str, text: str) -> None:
    """A picture that says in words why there is nothing to draw."""
    figure = new_figure(6, 2.4)
    figure.text(
        0.5,
        0.62,
        escape_mathtext(title),
        ha="center",
        va="center",
        fontsize=13,
        color=INK,
        weight="bold",
    )
    figure.text(
        0.5, 0.38, escape_mathtext(text), ha="center", va="center", fontsize=10.5, color=INK
    )
    save_figure(figure, path)

"""Shared style of the PNG plots, drawn by matplotlib without a display or global state."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edgetl.core.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GRAY, INK = "#0072B2", "#D55E00", "#8A8A8A", "#222222"
"""Colors of the color-blind safe palette of Okabe and Ito (2008), with gray and ink."""


def new_figure(
    width: float, height: float, layout: Literal["constrained"] | None = "constrained"
) -> Figure:
    """Return an empty figure of the given size in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=144, layout=layout)


def save_figure(figure: Figure, path: Path) -> None:
    """Write the figure to a PNG file atomically."""
    with atomic_path(path) as temporary:
        # Compressing photos harder takes four times as long and saves a tenth of the file.
        figure.savefig(temporary, format="png", pil_kwargs={"compress_level": 1})


def simplify_axes(axes: Axes) -> None:
    """Remove the top and right spines and draw a light horizontal grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#E3E3E3", linewidth=0.8)
    axes.set_axisbelow(True)


def shorten_middle(name: str, length: int) -> str:
    """Shorten the name to at most `length` characters by replacing the middle with an ellipsis."""
    if len(name) <= length:
        return name
    head = length // 2
    tail = length - 1 - head
    return f"{name[:head]}…{name[len(name) - tail :]}"


def escape_mathtext(text: str) -> str:
    """Escape dollar signs, which matplotlib would parse as math."""
    return text.replace("$", r"\$")


def save_message_figure(path: Path, title: str, text: str) -> None:
    """Write a figure with a message instead of a plot."""
    figure = new_figure(6, 2.4)
    style: dict[str, Any] = {"ha": "center", "va": "center", "color": INK}
    figure.text(0.5, 0.62, escape_mathtext(title), fontsize=13, weight="bold", **style)
    figure.text(0.5, 0.38, escape_mathtext(text), fontsize=10.5, **style)
    save_figure(figure, path)

"""Drawings of an experiment's page as files of their own, for documents: SVG that follows light and dark, with the key below.

python -m tools.repo.experiment_images EXPERIMENT... -o docs
"""

from __future__ import annotations

import argparse
import re
from html import unescape
from pathlib import Path

from markupsafe import Markup, escape

from edgetl.core.artifacts.experiment import read_experiment
from edgetl.core.files import write_text
from edgetl.core.paths import ExperimentDirectory
from edgetl.report.charts.compare import draw_freeze_sweep, draw_strategy_curves, draw_trade_off
from edgetl.report.html import blocks

WIDTH, LINE, MARGIN = 560, 18, 10
"""Pixels."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("experiments", type=Path, nargs="+")
    parser.add_argument("-o", "--output", type=Path, default=Path("docs"))
    arguments = parser.parse_args()
    for folder in arguments.experiments:
        found = read_experiment(ExperimentDirectory(folder).result)
        for network in found.networks:
            rows = found.select_rows(network)
            _write(
                arguments.output / f"experiment-{folder.name}-{network}-time.svg",
                draw_strategy_curves(network, rows, found.target_accuracy),
            )
            _write(
                arguments.output / f"experiment-{folder.name}-{network}-freezing.svg",
                draw_freeze_sweep(network, rows),
            )
        _write(
            arguments.output / f"experiment-{folder.name}-latency.svg",
            draw_trade_off("Networks", found),
        )


def _write(path: Path, figure: Markup | None) -> None:
    if figure is not None:
        write_text(path, standalone(figure))
        print(path)


def standalone(figure: Markup) -> str:
    """A page's figure as one SVG: the drawing, its key and its caption, in the page's colours."""
    drawing = re.search(r"<svg .*?</svg>", figure, re.DOTALL)
    assert drawing is not None
    view = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', drawing[0])
    assert view is not None
    height = WIDTH * float(view[2]) / float(view[1])
    parts = [drawing[0].replace("<svg ", f'<svg width="{WIDTH}" height="{height:.0f}" ', 1)]
    below = height + LINE
    for mark, name in re.findall(r"<li>(<svg .*?</svg>)(.*?)</li>", figure, re.DOTALL):
        parts.append(
            mark.replace(
                "<svg ", f'<svg x="{MARGIN}" y="{below - 9:.0f}" width="30" height="10" ', 1
            )
        )
        parts.append(_text(MARGIN + 38, below, unescape(name)))
        below += LINE
    style = (
        (Path(blocks.__file__).parent / "templates" / "page.css")
        .read_text(encoding="utf-8")
        .partition("* {")[0]
    )
    text = "text { font-family: system-ui, sans-serif; fill: var(--ink); } .paper { fill: var(--paper); }"
    opening = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {below:.0f}" width="{WIDTH}" height="{below:.0f}">'
    paper = '<rect class="paper" width="100%" height="100%"/>'
    # Inside HTML a browser knows the old prefix; a file of its own would have to declare it.
    return (
        "\n".join([opening, f"<style>{style}{text}</style>", paper, *parts, "</svg>"]).replace(
            "xlink:href", "href"
        )
        + "\n"
    )


def _text(left: float, baseline: float, text: str) -> str:
    return f'<text x="{left:.0f}" y="{baseline:.0f}" font-size="12">{escape(text)}</text>'


if __name__ == "__main__":
    main()

"""Write the figures of experiment pages as standalone SVG files for documents.

    python -m tools.repo.experiment_images EXPERIMENT... -o docs

The files follow the light or dark color scheme of the reader; the legend is below the drawing.
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
"""Width of the image, height of a legend line and left margin, in pixels."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("experiments", type=Path, nargs="+", help="experiment folders")
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("docs"), help="folder of the images [docs]"
    )
    arguments = parser.parse_args()
    for folder in arguments.experiments:
        _write_experiment(folder, arguments.output)


def _write_experiment(folder: Path, output: Path) -> None:
    experiment = read_experiment(ExperimentDirectory(folder).result)
    prefix = f"experiment-{folder.name}"
    for network in experiment.networks:
        rows = experiment.select_rows(network)
        curves = draw_strategy_curves(network, rows, experiment.target_accuracy)
        _write(output / f"{prefix}-{network}-time.svg", curves)
        _write(output / f"{prefix}-{network}-freezing.svg", draw_freeze_sweep(network, rows))
    _write(output / f"{prefix}-latency.svg", draw_trade_off("Networks", experiment))


def _write(path: Path, figure: Markup | None) -> None:
    if figure is not None:
        write_text(path, standalone(figure))
        print(path)


def standalone(figure: Markup) -> str:
    """Return a figure of a page as one SVG: the drawing and its legend, in the page's colors."""
    drawing = re.search(r"<svg .*?</svg>", figure, re.DOTALL)
    assert drawing is not None
    view_box = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', drawing[0])
    assert view_box is not None
    height = WIDTH * float(view_box[2]) / float(view_box[1])
    parts = [drawing[0].replace("<svg ", f'<svg width="{WIDTH}" height="{height:.0f}" ', 1)]
    baseline = height + LINE
    for mark, name in re.findall(r"<li>(<svg .*?</svg>)(.*?)</li>", figure, re.DOTALL):
        position = f'x="{MARGIN}" y="{baseline - 9:.0f}" width="30" height="10"'
        parts.append(mark.replace("<svg ", f"<svg {position} ", 1))
        parts.append(_text(MARGIN + 38, baseline, unescape(name)))
        baseline += LINE
    css = Path(blocks.__file__).parent / "templates" / "page.css"
    # The part before the first rule for elements defines the colors.
    style = css.read_text(encoding="utf-8").partition("* {")[0]
    text = "text { font-family: system-ui, sans-serif; fill: var(--ink); } .paper { fill: var(--paper); }"
    size = f'viewBox="0 0 {WIDTH} {baseline:.0f}" width="{WIDTH}" height="{baseline:.0f}"'
    opening = f'<svg xmlns="http://www.w3.org/2000/svg" {size}>'
    paper = '<rect class="paper" width="100%" height="100%"/>'
    lines = [opening, f"<style>{style}{text}</style>", paper, *parts, "</svg>"]
    # Browsers know the prefix `xlink` inside HTML; a standalone file would have to declare it.
    return "\n".join(lines).replace("xlink:href", "href") + "\n"


def _text(left: float, baseline: float, text: str) -> str:
    return f'<text x="{left:.0f}" y="{baseline:.0f}" font-size="12">{escape(text)}</text>'


if __name__ == "__main__":
    main()

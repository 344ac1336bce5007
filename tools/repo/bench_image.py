"""Draw the terminal output of `edgetl bench` for a result file as SVG.

python -m tools.repo.bench_image RESULT.json IMAGE.svg
"""

from __future__ import annotations

import io
import re
import sys
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

from rich.console import Console

from edgetl.cli import bench_tables
from edgetl.core.artifacts.bench_json import read_result

WIDTH = 116
"""Width of the terminal, in columns."""


def main() -> None:
    source, target = map(Path, sys.argv[1:3])
    console = recording_console(WIDTH)
    result = read_result(source)
    with patch.object(bench_tables, "out", console):
        bench_tables.show_bench_result(replace(result, path=Path("bench") / source.name))
    svg = console_svg(console, f"edgetl bench {result.target}", "bench")
    target.write_text(svg, encoding="utf-8")


def recording_console(width: int) -> Console:
    """Return a console `width` columns wide that records its output."""
    return Console(
        record=True, width=width, force_terminal=True, highlight=False, file=io.StringIO()
    )


def console_svg(console: Console, title: str, name: str) -> str:
    """Return the recorded output as SVG.

    Args:
        console: created by `recording_console`.
        title: title bar of the terminal window.
        name: prefix of the identifiers in the SVG; must be unique on a page.
    """
    svg = console.export_svg(title=title, unique_id=name)
    # Remove the web fonts: each view would download them, and any monospace font will do.
    return re.sub(r"@font-face \{.*?\}\s*|<!--.*?-->", "", svg, flags=re.DOTALL)


if __name__ == "__main__":
    main()

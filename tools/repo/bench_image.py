"""Draw what `edgetl bench` prints for a result: python -m tools.repo.bench_image RESULT.json PICTURE.svg."""

from __future__ import annotations

import io
import re
import sys
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

from rich.console import Console

from edgetl.cli import bench_tables
from edgetl.core.artifacts.bench_json import read_bench_result

WIDTH = 116


def main() -> None:
    source, target = map(Path, sys.argv[1:3])
    recorder = recording(WIDTH)
    result = read_bench_result(source)
    with patch.object(bench_tables, "out", recorder):
        bench_tables.show_bench_result(replace(result, path=Path("bench") / source.name))
    target.write_text(screen(recorder, f"edgetl bench {result.target}", "bench"), encoding="utf-8")


def recording(width: int) -> Console:
    """A terminal of so many columns that keeps what is printed on it."""
    return Console(
        record=True, width=width, force_terminal=True, highlight=False, file=io.StringIO()
    )


def screen(recorder: Console, title: str, name: str) -> str:
    """The terminal's picture as SVG.

    Args:
        name: for the identifiers in it: unique on a page.
    """
    drawn = recorder.export_svg(title=title, unique_id=name)
    # The fonts would be fetched from a server at every look; the reader's own monospace font does as well.
    return re.sub(r"@font-face \{.*?\}\s*|<!--.*?-->", "", drawn, flags=re.DOTALL)


if __name__ == "__main__":
    main()

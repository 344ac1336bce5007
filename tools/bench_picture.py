"""Draw what `edgetl bench` prints for a result: python -m tools.bench_picture RESULT.json PICTURE.svg."""

from __future__ import annotations

import io
import re
import sys
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

from rich.console import Console

from edgetl.cli import bench_tables
from edgetl.core.results import read_result

WIDTH = 116


def main() -> None:
    source, target = map(Path, sys.argv[1:3])
    recorder = Console(record=True, width=WIDTH, force_terminal=True, highlight=False, file=io.StringIO())
    result = read_result(source)
    with patch.object(bench_tables, "out", recorder):
        bench_tables.show(replace(result, path=Path("bench") / source.name))
    drawn = recorder.export_svg(title=f"edgetl bench {result.target}", unique_id="bench")
    # The fonts would be fetched from a server at every look; the reader's own monospace font does as well.
    target.write_text(re.sub(r"@font-face \{.*?\}\s*|<!--.*?-->", "", drawn, flags=re.DOTALL), encoding="utf-8")


if __name__ == "__main__":
    main()

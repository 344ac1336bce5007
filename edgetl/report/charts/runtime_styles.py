"""Colors and markers of runtimes, the same in all drawings of a page."""

from __future__ import annotations

from collections.abc import Iterable

from edgetl.core.artifacts.bench_rows import BenchRow
from edgetl.core.artifacts.runtime_comparison import PLAIN_RUNTIME, list_runtimes
from edgetl.report.charts.svg import MARKER_STYLES, MarkerStyle


def assign_runtime_styles(rows: Iterable[BenchRow]) -> dict[str, MarkerStyle]:
    """Return a style for each runtime; ONNX Runtime and PyTorch have the same on every page."""
    rows = list(rows)
    *styles, torch_style = MARKER_STYLES
    runtimes = sorted(list_runtimes(rows), key=lambda name: name != PLAIN_RUNTIME)
    by_name = {name: styles[index % len(styles)] for index, name in enumerate(runtimes)}
    if any(row.runtime == "pytorch" for row in rows):
        by_name["pytorch"] = torch_style
    return by_name

"""What results, devices, rows and verdicts are called on the page, and how their figures are written."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from edgetl.core.artifacts.bench import BenchResult
from edgetl.core.artifacts.bench_rows import BenchRow
from edgetl.core.artifacts.comparison import RowComparison
from edgetl.core.formatting import MISSING_VALUE, describe_device, pluralize
from edgetl.report.html.blocks import Badge, Cell, Tone

VERDICT_TONES: Mapping[str, Tone] = {
    "faster": "good",
    "slower": "bad",
    "inconclusive": "warn",
    "noisy": "warn",
}
OUTCOME_TONES: Mapping[str, Tone] = {"held": "good", "broken": "bad", "undecided": "warn"}


def model_name(result: BenchResult) -> str:
    """What was measured."""
    return str(result.model.get("name") or result.target)


def device_and_host(device: Mapping[str, Any]) -> str:
    """The device as people call it, with its host: of several devices some may be alike."""
    named, host = describe_device(device), device.get("host")
    return f"{named} ({host})" if host not in (None, "", named) else named


def is_same_device(one: BenchResult, other: BenchResult) -> bool:
    """Whether both were measured on the same device, as far as it tells."""
    return all(
        one.device.get(name) == other.device.get(name)
        for name in ("host", "board", "cpu", "machine", "cores")
    )


def result_titles(results: Sequence[BenchResult]) -> list[str]:
    """One title a result, numbered where there are several."""
    named = [f"{model_name(result)} on {device_and_host(result.device)}" for result in results]
    return (
        named if len(named) == 1 else [f"{number}. {name}" for number, name in enumerate(named, 1)]
    )


def model_key(result: BenchResult, row: BenchRow) -> str:
    """Rows with the same key hold the same network."""
    return str(result.model.get("run_id") or row.file_sha256)


def input_shape(row: BenchRow) -> str:
    """The row's input without its batch, which is told apart."""
    return re.sub(rf"\b{row.batch}x", "Nx", row.input, count=1)


def row_names(rows: Sequence[BenchRow]) -> dict[str, str]:
    """Id to a short name: runtime, variant, and of the rest what is not the same for all."""
    parts = {
        "scope": lambda row: f"scope {row.scope}",
        "provider": lambda row: str(row.provider),
        "batch": lambda row: f"batch {row.batch}",
        "threads": lambda row: pluralize(row.threads, "thread"),
        "rate": lambda row: "" if row.rate is None else f"{row.rate:g}/s",
    }
    # PyTorch's provider differs from ONNX Runtime's even where both are the same processor.
    telling = [
        name
        for name in parts
        if len(
            {getattr(row, name) for row in rows if name != "provider" or row.runtime != "pytorch"}
        )
        > 1
    ]
    return {
        row.id: ", ".join(
            filter(None, [f"{row.runtime} {row.variant}", *(parts[name](row) for name in telling)])
        )
        for row in rows
    }


def full_row_name(row: BenchRow) -> str:
    """A row with everything that tells it from others."""
    rate = "" if row.rate is None else f", {row.rate:g} arrivals/s"
    return f"{row.runtime} {row.variant}, {row.provider}, batch {row.batch}, {pluralize(row.threads, 'thread')}{rate}"


def find_baseline_comparison(result: BenchResult, row_id: str) -> RowComparison | None:
    """The row against eager PyTorch, or where that was not measured against another baseline of the same run."""
    beside = (
        pair for pair in result.comparisons if pair.candidate == row_id and pair.earlier_row is None
    )
    return result.find_eager_comparison(row_id) or next(beside, None)


def speedup_cell(pair: RowComparison) -> Cell:
    """Ratio, interval and verdict."""
    ratio = f"{pair.speedup.ratio:.2f}×"
    return Cell(
        ratio,
        small=format_interval(pair.speedup.low, pair.speedup.high, 2),
        badges=(verdict_badge(pair.verdict),),
    )


def verdict_badge(verdict: str) -> Badge:
    """In its tone."""
    return Badge(verdict, VERDICT_TONES.get(verdict, ""))


def noise_badge(result: BenchResult) -> Badge:
    """Quiet or noisy."""
    return Badge("noisy device", "warn") if result.noise.is_noisy else Badge("quiet device", "good")


def format_interval(low: float, high: float, digits: int) -> str:
    """A 95% interval."""
    return f"[{low:.{digits}f}, {high:.{digits}f}]"


def format_number(value: float | None, digits: int = 1) -> str:
    """A figure, or the dash."""
    return MISSING_VALUE if value is None else f"{value:.{digits}f}"


def format_rate(value: float | None) -> str:
    """Images a second."""
    return MISSING_VALUE if value is None else f"{value:.1f}" if value < 1000 else f"{value:,.0f}"


def format_mib(value: float | None, digits: int = 0) -> str:
    """Bytes as MiB."""
    return MISSING_VALUE if value is None else f"{value / 2**20:.{digits}f}"


def join_words(parts: Sequence[str], last: str = "and") -> str:
    """`a, b and c`."""
    return (
        parts[0]
        if len(parts) == 1
        else f"{', '.join(parts[:-1])} {last} {parts[-1]}"
        if parts
        else ""
    )


def value_cell(value: Any) -> Cell:
    """A recorded value, or the dash where it was not told."""
    return (
        Cell(MISSING_VALUE, tooltip="not told")
        if value is None or value in ("", [], {})
        else Cell(format_value(value))
    )


def format_value(value: Any) -> str:
    """A value out of a JSON file, as people read it."""
    if value is None:
        return MISSING_VALUE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    if isinstance(value, list | tuple):
        return ", ".join(map(format_value, value))
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {format_value(entry)}" for name, entry in value.items())
    return str(value)

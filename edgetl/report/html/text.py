"""Names of results, devices and rows on a page, and formatting of values."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from edgetl.core.artifacts.bench import BenchResult
from edgetl.core.artifacts.bench_rows import BenchRow
from edgetl.core.artifacts.bundle import AccuracyRecord
from edgetl.core.artifacts.comparison import RowComparison
from edgetl.core.artifacts.device import DeviceInfo
from edgetl.core.formatting import MISSING_VALUE, format_milliseconds, format_percent, pluralize
from edgetl.report.html.blocks import Badge, Cell, Tone

ResultRowPair = tuple[BenchResult, BenchRow]
VERDICT_TONES: Mapping[str, Tone] = {
    "faster": "good",
    "slower": "bad",
    "better": "good",
    "worse": "bad",
    "inconclusive": "warn",
    "noisy": "warn",
}
OTHER_DEVICE_BADGE = Badge("another device")
OUTCOME_TONES: Mapping[str, Tone] = {"held": "good", "broken": "bad", "undecided": "warn"}


def model_name(result: BenchResult) -> str:
    """Return the name of the benchmarked model, or the target if it has none."""
    return result.model.name or result.target


def device_and_host(device: DeviceInfo) -> str:
    """Return the device's description with its host name, since several devices may be alike."""
    description = device.description
    return (
        description if device.host in (None, "", description) else f"{description} ({device.host})"
    )


def result_titles(results: Sequence[BenchResult]) -> list[str]:
    """Return one title per result, numbered if there are several."""
    titles = [f"{model_name(result)} on {device_and_host(result.device)}" for result in results]
    if len(titles) == 1:
        return titles
    return [f"{number}. {title}" for number, title in enumerate(titles, 1)]


def model_key(result: BenchResult, row: BenchRow) -> str:
    """Return the identity of the row's model; rows with the same key are of the same model."""
    return result.model.run_id or row.file_sha256


def input_shape(row: BenchRow) -> str:
    """Return the row's input shape with `N` for the batch size."""
    return re.sub(rf"\b{row.batch}x", "Nx", row.input, count=1)


def row_names(rows: Sequence[BenchRow]) -> dict[str, str]:
    """Return short names by row id: runtime, variant, and the parameters that differ."""
    formats = {
        "scope": lambda row: f"scope {row.scope}",
        "provider": lambda row: str(row.provider),
        "batch": lambda row: f"batch {row.batch}",
        "threads": lambda row: pluralize(row.threads, "thread"),
        "rate": lambda row: "" if row.rate is None else f"{row.rate:g}/s",
    }
    varying = []
    for field in formats:
        # PyTorch's provider name differs from ONNX Runtime's even for the same processor.
        values = {
            getattr(row, field) for row in rows if field != "provider" or row.runtime != "pytorch"
        }
        if len(values) > 1:
            varying.append(field)
    names = {}
    for row in rows:
        parts = [row.name, *(formats[field](row) for field in varying)]
        names[row.id] = ", ".join(part for part in parts if part)
    return names


def full_row_name(row: BenchRow) -> str:
    """Return the row's name with all parameters except its scope and input."""
    rate = "" if row.rate is None else f", {row.rate:g} arrivals/s"
    threads = pluralize(row.threads, "thread")
    return f"{row.name}, {row.provider}, batch {row.batch}, {threads}{rate}"


def find_baseline_comparison(result: BenchResult, row_id: str) -> RowComparison | None:
    """Return the comparison with eager PyTorch, else with another baseline of the same run."""
    eager = result.find_eager_comparison(row_id)
    if eager:
        return eager
    same_run = (
        pair for pair in result.comparisons if pair.candidate == row_id and pair.earlier_row is None
    )
    return next(same_run, None)


def speedup_cell(pair: RowComparison) -> Cell:
    """Return a cell with the speed-up, its interval and the verdict."""
    return Cell(
        f"{pair.speedup.ratio:.2f}×",
        small=format_interval(pair.speedup.low, pair.speedup.high, 2),
        badges=(verdict_badge(pair.verdict),),
    )


def format_p50_interval(row: BenchRow) -> str:
    """Format the 95% interval of p50, or an empty string for fewer than two rounds."""
    interval = row.p50_interval_ms
    return "" if interval is None else format_interval(*interval, _decimals(interval[0]))


def p50_cell(row: BenchRow, unit: str = "") -> Cell:
    """Return a cell with p50 and its interval in milliseconds."""
    p50 = format_milliseconds(row.p50_ms)
    return Cell(f"{p50}{unit}", small=format_p50_interval(row))


def accuracy_cell(accuracy: AccuracyRecord | None) -> Cell:
    """Return a cell with top-1 accuracy and its interval."""
    if accuracy is None:
        return Cell(MISSING_VALUE, tooltip="not recorded")
    low, high = (100 * bound for bound in accuracy.interval)
    return Cell(format_percent(accuracy.top1), small=format_interval(low, high, 1))


def verdict_badge(verdict: str) -> Badge:
    """Return a badge for a verdict, in its tone."""
    return Badge(verdict, VERDICT_TONES.get(verdict, ""))


def noise_badge(result: BenchResult) -> Badge:
    """Return a badge for the noise of the device: quiet or noisy."""
    return Badge("noisy device", "warn") if result.noise.is_noisy else Badge("quiet device", "good")


def format_interval(low: float, high: float, digits: int) -> str:
    """Format a 95% interval with `digits` decimals."""
    return f"[{low:.{digits}f}, {high:.{digits}f}]"


def format_number(value: float | None, digits: int = 1) -> str:
    """Format a number with `digits` decimals, or `MISSING_VALUE` for None."""
    return MISSING_VALUE if value is None else f"{value:.{digits}f}"


def format_rate(value: float | None) -> str:
    """Format images per second, or `MISSING_VALUE` for None."""
    if value is None:
        return MISSING_VALUE
    return f"{value:.1f}" if value < 1000 else f"{value:,.0f}"


def format_mib(value: float | None, digits: int = 0) -> str:
    """Format a number of bytes in MiB, or `MISSING_VALUE` for None."""
    return MISSING_VALUE if value is None else f"{value / 2**20:.{digits}f}"


def join_words(parts: Sequence[str]) -> str:
    """Join the parts as in `a, b and c`."""
    if len(parts) < 2:
        return "".join(parts)
    return f"{', '.join(parts[:-1])} and {parts[-1]}"


def count_phrase(count: int, noun: str, listed: int) -> str:
    """Return `3 pairs`, or `20 of 35 pairs` if only the first `listed` are shown."""
    total = pluralize(count, noun)
    return f"{listed} of {total}" if count > listed else total


def value_cell(value: object) -> Cell:
    """Return a cell with a recorded value, or `MISSING_VALUE` if it is None or empty."""
    if value is None or value in ("", [], (), {}):
        return Cell(MISSING_VALUE, tooltip="not reported")
    return Cell(format_value(value))


def format_value(value: object) -> str:
    """Format a JSON value for reading."""
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


def _decimals(value: float) -> int:
    if value < 1:
        return 3
    return 2 if value < 100 else 0

"""Terminal output of a bench result of several runtimes: tables, refusals, recommendation."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from rich.markup import escape

from edgetl.cli.console import out, plain_table, verdict_markup
from edgetl.core.artifacts.runtime_comparison import (
    PLAIN_NAME,
    compare_with_plain,
    is_plain,
    list_runtimes,
)
from edgetl.core.formatting import (
    MISSING_VALUE,
    format_milliseconds,
    format_percent,
    format_speedup,
    pluralize,
)
from edgetl.core.runtimes import ONNXRUNTIME, RUNTIMES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from edgetl.core.artifacts.bench import BenchResult
    from edgetl.core.artifacts.bench_rows import BenchRow


def compares_runtimes(result: BenchResult) -> bool:
    """Return whether a runtime other than ONNX Runtime and PyTorch was measured or refused."""
    return any(runtime != ONNXRUNTIME for runtime in list_runtimes(result.rows))


def show_runtimes(result: BenchResult) -> None:
    """Print a table for each scope, batch size and number of threads, fastest row first."""
    groups: dict[str, list[BenchRow]] = {}
    for row in result.rows:
        if row.rounds:
            groups.setdefault(_describe_conditions(row), []).append(row)
    for conditions, rows in groups.items():
        if len(groups) > 1:
            out.print(conditions, style="bold", markup=False)
        out.print(_runtime_table(result, rows))
        out.print()
    notes = [f"* recommended. Speed-up: over {PLAIN_NAME} under the same conditions."]
    images = {row.accuracy.images for row in result.rows if row.accuracy is not None}
    if images:
        counts = " or ".join(map(str, sorted(images)))
        notes.append(f"Accuracy: top-1 on {counts} validation images, measured at export.")
    out.print(" ".join(notes), style="dim", soft_wrap=True)
    for name, reason in result.list_refusals():
        out.print(f"[bold red]Refused[/]  {escape(name)}: {escape(reason)}", soft_wrap=True)
    out.print()


def show_recommended_runtime(result: BenchResult) -> None:
    """Print the recommendation as a sentence, with the command that follows it."""
    recommendation = result.recommendation
    if recommendation is None:
        return
    choice = recommendation.latency
    row = result.get_row(choice.row)
    facts = [f"{format_milliseconds(row.p50_ms)} ms"]
    comparison = compare_with_plain(result, row)
    if comparison is not None:
        verdict = "" if comparison.verdict == "faster" else f" ({comparison.verdict})"
        facts.append(f"{format_speedup(comparison.speedup)} as fast as {PLAIN_NAME}{verdict}")
    if row.accuracy is not None:
        pytorch = format_percent(row.accuracy.top1 + row.accuracy.drop / 100)
        facts.append(f"accuracy {format_percent(row.accuracy.top1)} (PyTorch {pytorch})")
    provider = "" if row.provider == "cpu" else f" on {row.provider}"
    subject = (
        f"{RUNTIMES[row.runtime].title}{provider} with variant {choice.options.variant} "
        f"and {pluralize(row.threads, 'thread')}"
    )
    text = f"Fastest  {subject}: {', '.join(facts)}."
    if choice.as_fast:
        names = "; ".join(_name_with_threads(result.get_row(row_id)) for row_id in choice.as_fast)
        text += f" Not shown to be slower: {names}."
    if result.is_emulated:
        text += " The CPU is emulated: measure on the device before choosing."
    out.print(text, markup=False, soft_wrap=True)
    if result.model.run_id is not None:
        out.print(f"         {_predict_command(result, row)}", markup=False, soft_wrap=True)
    throughput = recommendation.throughput
    if throughput.row != choice.row:
        name = _name_with_threads(result.get_row(throughput.row))
        out.print(
            f"Most/s   {name}, batch {throughput.options.batch}: "
            f"{throughput.images_per_second:.0f} images/s",
            markup=False,
            soft_wrap=True,
        )


def _predict_command(result: BenchResult, row: BenchRow) -> str:
    assert result.recommendation is not None
    variant = result.recommendation.latency.options.variant
    provider = "" if row.provider == "cpu" else f" --provider {row.provider}"
    return (
        f"edgetl predict {shlex.quote(result.target)} IMAGE --runtime {row.runtime} "
        f"--variant {variant} --threads {row.threads}{provider}"
    )


def _name_with_threads(row: BenchRow) -> str:
    return f"{row.name}, {pluralize(row.threads, 'thread')}"


def _describe_conditions(row: BenchRow) -> str:
    rate = "" if row.rate is None else f", {row.rate:g} arrivals/s"
    threads = pluralize(row.threads, "thread")
    return f"Scope {row.scope}, batch {row.batch}, {threads}{rate}"


def _runtime_table(result: BenchResult, rows: Sequence[BenchRow]) -> Table:
    several_providers = len({row.provider for row in rows if row.runtime != "pytorch"}) > 1
    table = plain_table()
    for heading in ("runtime", "variant", "precision"):
        table.add_column(heading)
    for heading in ("p50 ms", "±", "speed-up [95%]"):
        table.add_column(escape(heading), justify="right")
    table.add_column("verdict")
    for heading in ("accuracy", "MB"):
        table.add_column(heading, justify="right")
    for row in sorted(rows, key=lambda row: row.p50_ms or 0.0):
        provider = f" {row.provider}" if several_providers else ""
        accuracy = MISSING_VALUE
        if row.accuracy is not None:
            accuracy = format_percent(row.accuracy.top1)
        is_recommended = result.is_recommended(row)
        table.add_row(
            escape(f"{row.runtime}{provider}"),
            escape(row.variant) + (" *" if is_recommended else ""),
            escape(row.precision or MISSING_VALUE),
            format_milliseconds(row.p50_ms),
            half_width_markup(row),
            *_speedup_cells(result, row),
            accuracy,
            f"{row.file_bytes / 1e6:.1f}",
            style="bold" if is_recommended else None,
        )
    return table


def half_width_markup(row: BenchRow) -> str:
    """Return half the width of the interval of p50 in percent, or an empty string without one."""
    if row.p50_interval_ms is None:
        return ""
    low, high = row.p50_interval_ms
    return f"[dim]{(high - low) / (high + low):.0%}[/]"


def _speedup_cells(result: BenchResult, row: BenchRow) -> tuple[str, str]:
    if is_plain(row):
        return "[dim]1[/]", "[dim]baseline[/]"
    comparison = compare_with_plain(result, row)
    if comparison is None:
        return MISSING_VALUE, ""
    return escape(format_speedup(comparison.speedup)), verdict_markup(comparison.verdict)

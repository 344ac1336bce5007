"""`edgetl report`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgetl.cli.console import err, out, print_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgetl.core.results import BenchResult
    from edgetl.core.rows import Row


def report(
    results: Annotated[
        list[Path], typer.Argument(metavar="RESULT.json...", help="Results of `edgetl bench`, of one or many devices, or folders of them.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The page to write.")] = Path("report.html"),
    force: Annotated[bool, typer.Option("--force", help="Overwrite a file that edgetl did not write.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as one JSON object, and nothing else.")] = False,
) -> None:
    """Show bench results side by side: one table here, and one page that needs no network.

    The page holds distributions, rounds, stages, sweeps, latency over time, and what the figures rest on.
    """
    from edgetl.report.bench_files import read_results, write_page

    read = read_results(results)
    from edgetl.report.bench_page import bench_report

    write_page(output, lambda: bench_report(read), force)
    if as_json:
        content = {"schema": 1, "kind": "report", "page": str(output), "results": [_summary(result) for result in read]}
        print_json(content)
        return
    show(read)
    err.print(f"Page  {output}", markup=False, soft_wrap=True)


def show(results: Sequence[BenchResult]) -> None:
    """Print one table over all results, and each one's noise."""
    from rich.markup import escape

    from edgetl.cli.bench_tables import plain_table
    from edgetl.core.wording import milliseconds
    from edgetl.report.bench_words import full_name, interval, speedup_of, titles

    table = plain_table()
    for heading in ("result", "row", "scope"):
        table.add_column(heading)
    for heading in ("p50 ms", "p99 ms", "images/s", "speed-up [95%]"):
        table.add_column(escape(heading), justify="right")
    table.add_column("verdict")
    named = titles(results)
    for title, result in zip(named, results, strict=True):
        for number, row in enumerate(result.rows):
            pair = speedup_of(result, row.id)
            ratio = "" if pair is None else f"{pair.speedup.ratio:.2f}× {interval(pair.speedup.low, pair.speedup.high, 2)}"
            told = "[bold red]failed[/]" if row.failed else _verdict(pair.verdict) if pair else _baseline(result, row)
            rate = "" if row.images_per_second is None else f"{row.images_per_second:.1f}"
            cells = ("" if number else escape(title), escape(full_name(row)), escape(row.scope))
            table.add_row(*cells, milliseconds(row.percentile_ms(50)), milliseconds(row.percentile_ms(99)), rate, escape(ratio), told)
    out.print(table)
    for title, result in zip(named, results, strict=True):
        if result.noise.noisy:
            out.print(f"[yellow]Noisy[/]  {escape(title)}: {escape('; '.join(result.noise.reasons))}", soft_wrap=True)
        if result.interrupted:
            out.print(f"[yellow]Interrupted[/]  {escape(title)}", soft_wrap=True)
    models = {str(result.model.get("run_id") or result.target) for result in results}
    if len(models) > 1:
        out.print("The results hold different models: their latencies are not comparable with each other.", style="yellow")


def _verdict(verdict: str) -> str:
    from edgetl.cli.bench_tables import VERDICT_STYLE

    return f"[{VERDICT_STYLE[verdict]}]{verdict}[/]"


def _baseline(result: BenchResult, row: Row) -> str:
    return "[dim]baseline[/]" if any(pair.baseline == row.id and pair.earlier is None for pair in result.comparisons) else ""


def _summary(result: BenchResult) -> dict[str, Any]:
    """The result's object without the raw latencies, which its own file holds."""
    content = result.to_json()
    rows = [{name: value for name, value in row.items() if name != "rounds"} for row in content["rows"]]
    sustained = content["sustained"]
    if sustained is not None:
        sustained = {name: value for name, value in sustained.items() if name != "windows"}
    return {**content, "path": None if result.path is None else str(result.path), "rows": rows, "sustained": sustained}

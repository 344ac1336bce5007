"""`edgetl report`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgetl.cli.console import err, out, plain_table, print_json, verdict_markup

if TYPE_CHECKING:
    from edgetl.core.artifacts.bench import BenchResult
    from edgetl.core.artifacts.bench_rows import BenchRow
    from edgetl.report.report import Report


def report(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN|BUNDLE|EXPERIMENT|RESULT.json...",
            help="Run, bundle, experiment of `edgetl compare`, or result of `edgetl evaluate`; or "
            "results of `edgetl bench` from one or several devices: files, folders or several runs.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Page to write, in HTML; a name that ends in .md writes bench results or an "
            "experiment in Markdown.",
            show_default="report.html in the RUN or EXPERIMENT, otherwise in the current folder",
        ),
    ] = None,
    force: Annotated[
        bool,
        typer.Option("--force", help="Overwrite a file that was not written by edgetl."),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the content of the page as one JSON object.")
    ] = False,
) -> None:
    """Report on a run, a bundle, an experiment, an evaluation or bench results.

    Prints a summary and writes a self-contained HTML page. The page of a run shows accuracy,
    curves, confusion matrix, mistakes, data, recipe, and its bundle and bench results; of a bundle,
    its variants, parity and preprocessing; of an experiment, the gains and costs of each strategy;
    of an evaluation, accuracy, confusion, calibration, unknown images and corruptions; of bench
    results, latencies, comparisons and measurement conditions.
    """
    from edgetl.report.report import write_report

    written = write_report(paths, output, force)
    if as_json:
        print_json(written.to_json())
        return
    _print_summary(written)
    err.print(f"Page  {written.page}", markup=False, soft_wrap=True)


def _print_summary(report: Report) -> None:
    from edgetl.cli.compare import show_experiment
    from edgetl.report.bundle.page import bundle_sentences, bundle_title
    from edgetl.report.evaluation.text import evaluation_sentences, evaluation_title
    from edgetl.report.run.text import run_sentences, run_title

    if report.run is not None:
        _print_sentences(run_title(report.run), run_sentences(report.run))
    elif report.bundle is not None:
        _print_sentences(bundle_title(report.bundle), bundle_sentences(report.bundle))
    elif report.experiment is not None:
        show_experiment(report.experiment)
    elif report.kind == "evaluation":
        (evaluation,) = report.evaluations
        _print_sentences(evaluation_title(evaluation), evaluation_sentences(evaluation))
    else:
        show_bench_results(report.results)


def _print_sentences(title: str, sentences: Sequence[str]) -> None:
    out.print(title, style="bold", markup=False, soft_wrap=True)
    for sentence in sentences:
        out.print(sentence, markup=False, soft_wrap=True)


def show_bench_results(results: Sequence[BenchResult]) -> None:
    """Print one table of all results, followed by noise and interruptions."""
    from rich.markup import escape

    from edgetl.core.artifacts.runtime_comparison import (
        PLAIN_NAME,
        compare_with_plain,
        is_plain,
        list_runtimes,
    )
    from edgetl.core.formatting import format_milliseconds, format_percent, format_speedup
    from edgetl.report.html.text import (
        find_baseline_comparison,
        full_row_name,
        result_titles,
    )

    several_runtimes = len(list_runtimes(row for result in results for row in result.rows)) > 1
    has_accuracy = any(row.accuracy is not None for result in results for row in result.rows)
    table = plain_table()
    for heading in ("result", "row", "scope"):
        table.add_column(heading)
    baseline = f"over {PLAIN_NAME}" if several_runtimes else "speed-up"
    for heading in ("p50 ms", "p99 ms", "images/s", *(["accuracy"] if has_accuracy else [])):
        table.add_column(heading, justify="right")
    table.add_column(escape(f"{baseline} [95%]"), justify="right")
    table.add_column("verdict")
    titles = result_titles(results)
    for title, result in zip(titles, results, strict=True):
        for index, row in enumerate(result.rows):
            pair = find_baseline_comparison(result, row.id)
            if several_runtimes:
                pair = compare_with_plain(result, row, results)
            speedup = "" if pair is None else format_speedup(pair.speedup)
            if row.has_failed_gate:
                verdict = "[bold red]failed[/]"
            elif pair is not None:
                verdict = verdict_markup(pair.verdict)
            else:
                is_baseline = is_plain(row) if several_runtimes else _is_baseline(result, row)
                verdict = "[dim]baseline[/]" if is_baseline else ""
            accuracy = format_percent(None if row.accuracy is None else row.accuracy.top1)
            table.add_row(
                escape(title) if index == 0 else "",
                escape(full_row_name(row)),
                escape(row.scope),
                format_milliseconds(row.percentile_ms(50)),
                format_milliseconds(row.percentile_ms(99)),
                "" if row.images_per_second is None else f"{row.images_per_second:.1f}",
                *([accuracy] if has_accuracy else []),
                escape(speedup),
                verdict,
            )
    out.print(table)
    for title, result in zip(titles, results, strict=True):
        for name, reason in result.list_refusals():
            out.print(
                f"[bold red]Refused[/]  {escape(title)}: {escape(name)}: {escape(reason)}",
                soft_wrap=True,
            )
        if result.noise.is_noisy:
            out.print(
                f"[yellow]Noisy[/]  {escape(title)}: {escape('; '.join(result.noise.reasons))}",
                soft_wrap=True,
            )
        if result.interrupted:
            out.print(f"[yellow]Interrupted[/]  {escape(title)}", soft_wrap=True)
    models = {result.model.run_id or result.target for result in results}
    if len(models) > 1:
        out.print(
            "The results are of different models, so their latencies are not comparable.",
            style="yellow",
        )


def _is_baseline(result: BenchResult, row: BenchRow) -> bool:
    return any(pair.baseline == row.id and pair.earlier_row is None for pair in result.comparisons)

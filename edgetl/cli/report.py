"""`edgetl report`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from edgetl.cli.console import err, out, print_json
from edgetl.core.errors import ConfigError
from edgetl.core.paths import BundleDirectory, ExperimentDirectory, RunDirectory

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgetl.core.artifacts.bench import BenchResult
    from edgetl.core.artifacts.bench_rows import BenchRow


ReportSubject = Literal["bench", "run", "bundle", "experiment"]


_SINGLE_PAGE_SUBJECTS: dict[ReportSubject, str] = {
    "bundle": "a bundle",
    "experiment": "an experiment",
}


def detect_subject(path: Path) -> ReportSubject:
    """What lies at one path; whatever is no run or bundle is looked into for bench results."""
    if BundleDirectory.exists_at(path):
        return "bundle"
    if RunDirectory.exists_at(path):
        return "run"
    if ExperimentDirectory.exists_at(path):
        return "experiment"
    return "bench"


def detect_common_subject(paths: Sequence[Path]) -> ReportSubject:
    """What one page can show of all paths: a run, a bundle or an experiment where it is alone, else bench results, which runs keep too.

    Raises:
        ConfigError: a bundle or an experiment is not alone.
    """
    subjects = {path: detect_subject(path) for path in paths}
    if len(subjects) == 1:
        return next(iter(subjects.values()))
    for path, subject in subjects.items():
        if subject in _SINGLE_PAGE_SUBJECTS:
            raise ConfigError(
                f"{path} is {_SINGLE_PAGE_SUBJECTS[subject]}, which has a page of its own: give it alone, `edgetl report {path}`."
            )
    return "bench"


_DEFAULT_OUTPUT = Path("report.html")
"""Beside nothing of the user's: a bundle is what is copied to a device, and stays as it is."""


def report(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN|BUNDLE|EXPERIMENT|RESULT.json...",
            help="A run, a bundle or the folder of `edgetl compare`; or results of `edgetl bench`, of one or many devices: files, "
            "folders, or several runs.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="The page to write.",
            show_default="in the RUN or EXPERIMENT, else here",
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Overwrite a file that edgetl did not write.")
    ] = False,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", help="Print what the page shows as one JSON object, and nothing else."
        ),
    ] = False,
) -> None:
    """Show a run, a bundle, an experiment, or bench results: a summary here, and one page that needs no network.

    The page of a run holds accuracy, curves, confusion matrix, mistakes, data and recipe, and the bundle and bench results that are in it;
    that of a bundle its variants, their proof and the preprocessing contract; that of an experiment what each strategy gains and costs;
    that of bench results what they are and what they rest on.
    """
    _REPORT_FUNCTIONS[detect_common_subject(paths)](paths, output, force, as_json)


def _report_bench(paths: Sequence[Path], output: Path | None, force: bool, as_json: bool) -> None:
    from edgetl.core.artifacts.bench_json import read_results
    from edgetl.report.bench.page import render_bench_report

    results = read_results(paths)
    page = _write_page(output or _DEFAULT_OUTPUT, lambda: render_bench_report(results), force)
    _print_report(
        page,
        as_json,
        {"results": [_result_without_latencies(result) for result in results]},
        lambda: show_bench_results(results),
    )


def _report_run(paths: Sequence[Path], output: Path | None, force: bool, as_json: bool) -> None:
    from edgetl.core.artifacts.bench_json import read_run_results
    from edgetl.core.artifacts.run import read_run_record
    from edgetl.report.run.page import render_run_report
    from edgetl.report.run.text import run_sentences, run_title

    run = read_run_record(paths[0])
    results = read_run_results(run.directory)
    page = _write_page(
        output or run.directory.report, lambda: render_run_report(run, results), force
    )
    content = {
        "run": run.to_json(),
        "results": [_result_without_latencies(result) for result in results],
    }
    _print_report(
        page, as_json, content, lambda: _print_sentences(run_title(run), run_sentences(run))
    )


def _report_bundle(paths: Sequence[Path], output: Path | None, force: bool, as_json: bool) -> None:
    from edgetl.core.artifacts.bundle import read_bundle_manifest
    from edgetl.report.bundle.page import bundle_sentences, bundle_title, render_bundle_report

    bundle = read_bundle_manifest(paths[0])
    page = _write_page(output or _DEFAULT_OUTPUT, lambda: render_bundle_report(bundle), force)
    _print_report(
        page,
        as_json,
        {"bundle": bundle.to_json()},
        lambda: _print_sentences(bundle_title(bundle), bundle_sentences(bundle)),
    )


def _report_experiment(
    paths: Sequence[Path], output: Path | None, force: bool, as_json: bool
) -> None:
    from edgetl.cli.compare import show_experiment as show_experiment
    from edgetl.core.artifacts.experiment import read_experiment
    from edgetl.core.paths import ExperimentDirectory
    from edgetl.report.compare.page import render_compare_report

    folder = ExperimentDirectory(paths[0])
    found = read_experiment(folder.result)
    page = _write_page(output or folder.report, lambda: render_compare_report(found), force)
    _print_report(page, as_json, {"experiment": found.to_json()}, lambda: show_experiment(found))


_REPORT_FUNCTIONS = {
    "bench": _report_bench,
    "run": _report_run,
    "bundle": _report_bundle,
    "experiment": _report_experiment,
}


def _write_page(path: Path, page: Callable[[], str], force: bool) -> Path:
    from edgetl.report.html.blocks import write_page

    write_page(path, page, force)
    return path


def _print_report(
    page: Path, as_json: bool, content: dict[str, Any], in_words: Callable[[], None]
) -> None:
    if as_json:
        print_json({"schema": 1, "kind": "report", "page": str(page), **content})
        return
    in_words()
    err.print(f"Page  {page}", markup=False, soft_wrap=True)


def _print_sentences(title: str, sentences: Sequence[str]) -> None:
    out.print(title, style="bold", markup=False, soft_wrap=True)
    for sentence in sentences:
        out.print(sentence, markup=False, soft_wrap=True)


def show_bench_results(results: Sequence[BenchResult]) -> None:
    """Print one table over all results, and each one's noise."""
    from rich.markup import escape

    from edgetl.cli.bench_tables import plain_table
    from edgetl.core.formatting import format_milliseconds
    from edgetl.report.html.text import (
        find_baseline_comparison,
        format_interval,
        full_row_name,
        result_titles,
    )

    table = plain_table()
    for heading in ("result", "row", "scope"):
        table.add_column(heading)
    for heading in ("p50 ms", "p99 ms", "images/s", "speed-up [95%]"):
        table.add_column(escape(heading), justify="right")
    table.add_column("verdict")
    named = result_titles(results)
    for title, result in zip(named, results, strict=True):
        for number, row in enumerate(result.rows):
            pair = find_baseline_comparison(result, row.id)
            ratio = (
                ""
                if pair is None
                else f"{pair.speedup.ratio:.2f}× {format_interval(pair.speedup.low, pair.speedup.high, 2)}"
            )
            told = (
                "[bold red]failed[/]"
                if row.has_failed_gate
                else _verdict_markup(pair.verdict)
                if pair
                else _baseline_markup(result, row)
            )
            rate = "" if row.images_per_second is None else f"{row.images_per_second:.1f}"
            cells = ("" if number else escape(title), escape(full_row_name(row)), escape(row.scope))
            table.add_row(
                *cells,
                format_milliseconds(row.percentile_ms(50)),
                format_milliseconds(row.percentile_ms(99)),
                rate,
                escape(ratio),
                told,
            )
    out.print(table)
    for title, result in zip(named, results, strict=True):
        if result.noise.is_noisy:
            out.print(
                f"[yellow]Noisy[/]  {escape(title)}: {escape('; '.join(result.noise.reasons))}",
                soft_wrap=True,
            )
        if result.interrupted:
            out.print(f"[yellow]Interrupted[/]  {escape(title)}", soft_wrap=True)
    models = {str(result.model.get("run_id") or result.target) for result in results}
    if len(models) > 1:
        out.print(
            "The results hold different models: their latencies are not comparable with each other.",
            style="yellow",
        )


def _verdict_markup(verdict: str) -> str:
    from edgetl.cli.bench_tables import VERDICT_STYLES

    return f"[{VERDICT_STYLES[verdict]}]{verdict}[/]"


def _baseline_markup(result: BenchResult, row: BenchRow) -> str:
    return (
        "[dim]baseline[/]"
        if any(pair.baseline == row.id and pair.earlier_row is None for pair in result.comparisons)
        else ""
    )


def _result_without_latencies(result: BenchResult) -> dict[str, Any]:
    """The result's object without the raw latencies, which its own file holds."""
    content = result.to_json()
    rows = [
        {name: value for name, value in row.items() if name != "rounds"} for row in content["rows"]
    ]
    sustained = content["sustained"]
    if sustained is not None:
        sustained = {name: value for name, value in sustained.items() if name != "windows"}
    return {
        **content,
        "path": None if result.path is None else str(result.path),
        "rows": rows,
        "sustained": sustained,
    }

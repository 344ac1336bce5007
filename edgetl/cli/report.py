"""`edgetl report`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from edgetl.cli.console import err, out, plain_table, print_json
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
_DEFAULT_OUTPUT = Path("report.html")
"""Default page of bundles and bench results. Bundles are copied to devices and stay unchanged."""


def detect_subject(path: Path) -> ReportSubject:
    """Return the kind of directory at `path`; "bench" if it is no run, bundle or experiment."""
    if BundleDirectory.exists_at(path):
        return "bundle"
    if RunDirectory.exists_at(path):
        return "run"
    if ExperimentDirectory.exists_at(path):
        return "experiment"
    return "bench"


def detect_common_subject(paths: Sequence[Path]) -> ReportSubject:
    """Return what one page can show for all paths.

    A single path is shown by its kind. Several paths are searched for bench results, which runs
    contain as well.

    Raises:
        ConfigError: a bundle or an experiment is not the only path.
    """
    subjects = {path: detect_subject(path) for path in paths}
    if len(subjects) == 1:
        return next(iter(subjects.values()))
    for path, subject in subjects.items():
        if subject in _SINGLE_PAGE_SUBJECTS:
            raise ConfigError(
                f"{path} is {_SINGLE_PAGE_SUBJECTS[subject]} and cannot share a page with other "
                f"paths. Use `edgetl report {path}`."
            )
    return "bench"


def report(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN|BUNDLE|EXPERIMENT|RESULT.json...",
            help="Run, bundle, or experiment of `edgetl compare`; or results of `edgetl bench` "
            "from one or several devices: files, folders or several runs.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="HTML page to write.",
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
    """Report on a run, a bundle, an experiment or bench results.

    Prints a summary and writes a self-contained HTML page. The page of a run shows accuracy,
    curves, confusion matrix, mistakes, data, recipe, and its bundle and bench results; of a bundle,
    its variants, parity and preprocessing; of an experiment, the gains and costs of each strategy;
    of bench results, latencies, comparisons and measurement conditions.
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
    from edgetl.cli.compare import show_experiment
    from edgetl.core.artifacts.experiment import read_experiment
    from edgetl.core.paths import ExperimentDirectory
    from edgetl.report.compare.page import render_compare_report

    folder = ExperimentDirectory(paths[0])
    experiment = read_experiment(folder.result)
    page = _write_page(output or folder.report, lambda: render_compare_report(experiment), force)
    _print_report(
        page,
        as_json,
        {"experiment": experiment.to_json()},
        lambda: show_experiment(experiment),
    )


_REPORT_FUNCTIONS = {
    "bench": _report_bench,
    "run": _report_run,
    "bundle": _report_bundle,
    "experiment": _report_experiment,
}


def _write_page(path: Path, render: Callable[[], str], force: bool) -> Path:
    from edgetl.report.html.blocks import write_page

    write_page(path, render, force)
    return path


def _print_report(
    page: Path, as_json: bool, content: dict[str, Any], print_summary: Callable[[], None]
) -> None:
    if as_json:
        print_json({"schema": 1, "kind": "report", "page": str(page), **content})
        return
    print_summary()
    err.print(f"Page  {page}", markup=False, soft_wrap=True)


def _print_sentences(title: str, sentences: Sequence[str]) -> None:
    out.print(title, style="bold", markup=False, soft_wrap=True)
    for sentence in sentences:
        out.print(sentence, markup=False, soft_wrap=True)


def show_bench_results(results: Sequence[BenchResult]) -> None:
    """Print one table of all results, followed by noise and interruptions."""
    from rich.markup import escape

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
    titles = result_titles(results)
    for title, result in zip(titles, results, strict=True):
        for index, row in enumerate(result.rows):
            pair = find_baseline_comparison(result, row.id)
            speedup = ""
            if pair is not None:
                interval = format_interval(pair.speedup.low, pair.speedup.high, 2)
                speedup = f"{pair.speedup.ratio:.2f}× {interval}"
            if row.has_failed_gate:
                verdict = "[bold red]failed[/]"
            elif pair is not None:
                verdict = _verdict_markup(pair.verdict)
            else:
                verdict = _baseline_markup(result, row)
            table.add_row(
                escape(title) if index == 0 else "",
                escape(full_row_name(row)),
                escape(row.scope),
                format_milliseconds(row.percentile_ms(50)),
                format_milliseconds(row.percentile_ms(99)),
                "" if row.images_per_second is None else f"{row.images_per_second:.1f}",
                escape(speedup),
                verdict,
            )
    out.print(table)
    for title, result in zip(titles, results, strict=True):
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
            "The results are of different models, so their latencies are not comparable.",
            style="yellow",
        )


def _verdict_markup(verdict: str) -> str:
    from edgetl.cli.bench_tables import VERDICT_STYLES

    return f"[{VERDICT_STYLES[verdict]}]{verdict}[/]"


def _baseline_markup(result: BenchResult, row: BenchRow) -> str:
    is_baseline = any(
        pair.baseline == row.id and pair.earlier_row is None for pair in result.comparisons
    )
    return "[dim]baseline[/]" if is_baseline else ""


def _result_without_latencies(result: BenchResult) -> dict[str, Any]:
    """Return the JSON object of a result without raw latencies, which are in the result file."""
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

"""`edgetl report`: write pages of runs, bundles, experiments, evaluations and bench results."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from edgetl import __version__
from edgetl.core.artifacts.bench import BenchResult
from edgetl.core.artifacts.bench_json import read_results, read_run_results
from edgetl.core.artifacts.bundle import BundleRecord, read_bundle_record
from edgetl.core.artifacts.evaluation import (
    EvaluationResult,
    read_evaluation,
    read_run_evaluations,
)
from edgetl.core.artifacts.experiment import Experiment, read_experiment
from edgetl.core.artifacts.run import RunRecord, read_run_record
from edgetl.core.errors import ConfigError
from edgetl.core.files import SCHEMA, read_json_of_kind
from edgetl.core.paths import BundleDirectory, ExperimentDirectory, RunDirectory, StrPath
from edgetl.core.typed_json import JsonObject, to_json
from edgetl.report.bench.markdown import render_bench_markdown
from edgetl.report.bench.page import render_bench_report
from edgetl.report.bundle.page import render_bundle_report
from edgetl.report.compare.page import render_compare_report
from edgetl.report.compare.tables import render_compare_markdown
from edgetl.report.evaluation.page import render_evaluation_report
from edgetl.report.html.blocks import MARKDOWN_GENERATOR, write_page
from edgetl.report.run.page import render_run_report

ReportKind = Literal["bench", "run", "bundle", "experiment", "evaluation"]

_SINGLE_PAGE_KINDS: dict[ReportKind, str] = {
    "bundle": "a bundle",
    "experiment": "an experiment",
    "evaluation": "an evaluation",
}
_DEFAULT_PAGE = Path("report.html")
"""Default page of bundles, evaluations and bench results.

Bundles are copied to devices and stay unchanged.
"""


@dataclass(frozen=True)
class Report:
    """A page that was written, with its content."""

    page: Path
    """The HTML or Markdown file."""
    run: RunRecord | None = None
    bundle: BundleRecord | None = None
    experiment: Experiment | None = None
    evaluations: tuple[EvaluationResult, ...] = ()
    """Evaluations on the page, those of the run if it shows a run."""
    results: tuple[BenchResult, ...] = ()
    """Bench results on the page, those of the run if it shows a run."""

    @property
    def kind(self) -> ReportKind:
        """Kind of the subject."""
        if self.run is not None:
            return "run"
        if self.bundle is not None:
            return "bundle"
        if self.evaluations:
            return "evaluation"
        return "bench" if self.experiment is None else "experiment"

    def __repr__(self) -> str:
        return f"Report({str(self.page)!r}, kind={self.kind!r}, {len(self.results)} results)"

    def to_json(self) -> JsonObject:
        """Return the output of `edgetl report --json`."""
        content: JsonObject = {"schema": SCHEMA, "kind": "report", "page": str(self.page)}
        for name, subject in (
            ("run", self.run),
            ("bundle", self.bundle),
            ("experiment", self.experiment),
        ):
            if subject is not None:
                content[name] = subject.to_json()
        if self.kind in ("run", "evaluation"):
            content["evaluations"] = [evaluation.to_json() for evaluation in self.evaluations]
        if self.kind in ("run", "bench"):
            content["results"] = [_result_without_latencies(result) for result in self.results]
        return content


def write_report(
    subjects: StrPath | BenchResult | EvaluationResult | Iterable[StrPath | BenchResult],
    output: StrPath | None = None,
    force: bool = False,
) -> Report:
    """Write a self-contained page of one subject, or of several bench results.

    Args:
        subjects: a run, a bundle, an experiment, an evaluation or its file, or one or several bench
            results: their files, folders of them, runs that were benchmarked, or results of `bench`
            and `read_result`.
        output: the page; None writes report.html into the run or experiment, for bundles,
            evaluations and bench results into the current folder. A page of an experiment or of
            bench results whose name ends in .md is written in Markdown, without drawings.
        force: overwrite a file that was not written by edgetl.

    Raises:
        ConfigError: the page cannot be written, the subject has no Markdown version, or a bundle,
            an experiment or an evaluation is not alone.
        RunError, BundleError, BenchError: a file is missing or broken.
    """
    if isinstance(subjects, EvaluationResult):
        report, render = _show_evaluation(subjects)
    else:
        if isinstance(subjects, str | os.PathLike | BenchResult):
            subjects = [subjects]
        entries = list(subjects)
        paths = [Path(entry) for entry in entries if not isinstance(entry, BenchResult)]
        results = [entry for entry in entries if isinstance(entry, BenchResult)]
        report, render = _read_subject(paths, results)
    if output is not None:
        report = replace(report, page=Path(output))
    if report.page.suffix.lower() == ".md":
        render = _select_markdown_renderer(report)
    write_page(report.page, render, force)
    return report


def _select_markdown_renderer(report: Report) -> Callable[[], str]:
    """Return the function that renders the Markdown version.

    Raises:
        ConfigError: there is none.
    """
    if report.experiment is not None:
        render = partial(render_compare_markdown, report.experiment)
    elif report.kind == "bench":
        render = partial(render_bench_markdown, report.results)
    else:
        raise ConfigError(
            "Only bench results and experiments can be written in Markdown, got --output "
            f"{report.page}. Choose a name that ends in .html."
        )
    return lambda: f"{MARKDOWN_GENERATOR}{__version__} -->\n{render()}"


def _read_subject(
    paths: Sequence[Path], results: Sequence[BenchResult]
) -> tuple[Report, Callable[[], str]]:
    """Return the content of the page, with its default path, and the function that renders it."""
    kind = "bench" if results else detect_common_kind(paths)
    if kind == "run":
        run = read_run_record(paths[0])
        run_results = tuple(read_run_results(run.directory))
        evaluations = tuple(read_run_evaluations(run.directory))
        report = Report(run.directory.report, run=run, evaluations=evaluations, results=run_results)
        return report, partial(render_run_report, run, run_results, evaluations)
    if kind == "bundle":
        bundle = read_bundle_record(paths[0])
        return Report(_DEFAULT_PAGE, bundle=bundle), partial(render_bundle_report, bundle)
    if kind == "experiment":
        folder = ExperimentDirectory(paths[0])
        experiment = read_experiment(folder.result)
        report = Report(folder.report, experiment=experiment)
        return report, partial(render_compare_report, experiment)
    if kind == "evaluation":
        return _show_evaluation(read_evaluation(paths[0]))
    all_results = (*read_results(paths), *results)
    return Report(_DEFAULT_PAGE, results=all_results), partial(render_bench_report, all_results)


def _show_evaluation(evaluation: EvaluationResult) -> tuple[Report, Callable[[], str]]:
    report = Report(_DEFAULT_PAGE, evaluations=(evaluation,))
    return report, partial(render_evaluation_report, evaluation)


def detect_kind(path: Path) -> ReportKind:
    """Return what is at `path`; "bench" if it is no run, bundle, experiment or evaluation."""
    if BundleDirectory.exists_at(path):
        return "bundle"
    if RunDirectory.exists_at(path):
        return "run"
    if ExperimentDirectory.exists_at(path):
        return "experiment"
    is_evaluation = path.is_file() and read_json_of_kind(path, "evaluation") is not None
    return "evaluation" if is_evaluation else "bench"


def detect_common_kind(paths: Sequence[Path]) -> ReportKind:
    """Return what one page can show for all paths.

    A single path is shown by its kind. Several paths are searched for bench results, which runs
    contain as well.

    Raises:
        ConfigError: there is no path, or a bundle, an experiment or an evaluation is not the only
            one.
    """
    kinds = {path: detect_kind(path) for path in paths}
    if not kinds:
        raise ConfigError(
            "Nothing to report on. Give a run, a bundle, an experiment, an evaluation or results."
        )
    if len(kinds) == 1:
        return next(iter(kinds.values()))
    for path, kind in kinds.items():
        if kind in _SINGLE_PAGE_KINDS:
            raise ConfigError(
                f"{path} is {_SINGLE_PAGE_KINDS[kind]} and cannot share a page with other "
                f"paths. Use `edgetl report {path}`."
            )
    return "bench"


def _result_without_latencies(result: BenchResult) -> JsonObject:
    """Return the JSON object of a result without raw latencies, which are in the result file."""
    rows = [to_json(row) for row in result.rows]
    for row in rows:
        del row["rounds"]
    sustained = None if result.sustained is None else to_json(result.sustained)
    if sustained is not None:
        del sustained["windows"]
    return {
        **result.to_json(),
        "path": None if result.path is None else str(result.path),
        "rows": rows,
        "sustained": sustained,
    }

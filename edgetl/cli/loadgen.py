"""`edgetl loadgen`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgetl.cli.config_options import config_options
from edgetl.cli.console import err, out
from edgetl.cli.exit_codes import ExitCode
from edgetl.cli.progress import measure_and_show
from edgetl.core.config.loadgen import LoadgenConfig
from edgetl.core.formatting import format_milliseconds, format_percent, pluralize

if TYPE_CHECKING:
    from edgetl.core.artifacts.loadgen import LoadgenAccuracy, LoadgenPerformance, LoadgenResult

_MAX_MISTAKES_SHOWN = 5


@config_options(LoadgenConfig)
def loadgen(
    target: Annotated[
        Path,
        typer.Argument(metavar="RUN|BUNDLE", help="Run directory or bundle.", show_default=False),
    ],
    options: dict[str, Any],
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as one JSON object.")
    ] = False,
) -> None:
    """Run a bundle under MLPerf LoadGen.

    The variant is checked on the golden images first, and edgetl's own loop measures it as well.
    LoadGen's verdict and log files are kept. Requires the extra `loadgen`.

    Exit code 4 if the accuracy is below --min-accuracy.
    """
    from edgetl.device.loadgen.loadgen import loadgen as run_loadgen

    result = measure_and_show(
        partial(run_loadgen, LoadgenConfig(target, **options)), show_loadgen_result, as_json
    )
    accuracy = result.accuracy
    if accuracy is not None and not accuracy.passed:
        err.print(
            f"LoadGen's accuracy run failed: {accuracy.correct_images} of {accuracy.images} images "
            f"correct, at least {format_percent(accuracy.least)} required. Use another --variant, "
            "or lower --min-accuracy.",
            markup=False,
            soft_wrap=True,
        )
        raise typer.Exit(ExitCode.FAILED_CHECK)


def show_loadgen_result(result: LoadgenResult) -> None:
    """Print a result; LoadGen's own messages are printed verbatim."""
    setup = result.configuration
    name = f"[bold]{result.model.name or result.target}[/] {setup.variant}"
    device = result.device.description
    threads = pluralize(setup.threads, "thread")
    batch = f", batch {setup.batch}" if setup.batch > 1 else ""
    out.print(
        f"{name} on {device}, {setup.provider}, {threads}, scope {setup.scope}{batch}",
        highlight=False,
    )
    _print_line("LoadGen", f"{result.loadgen}, {result.scenario}, {result.samples.description}")
    gate = setup.gate
    difference = gate.max_logit_difference or 0.0
    _print_line("Gate", f"{gate.top1_agreement}/{gate.images} agree, max |Δlogit| {difference:.2g}")
    if result.accuracy is not None:
        _show_accuracy(result.accuracy)
    if result.performance is not None:
        _show_performance(result.performance)
    _print_line("Official", "no: " + "; ".join(result.unofficial_reasons))
    noise = "noisy: " + "; ".join(result.noise.reasons) if result.noise.is_noisy else "quiet"
    _print_line("Noise", noise)
    for note in result.notes:
        _print_line("Note", note)
    if result.path is not None:
        _print_line("Result", str(result.path))
        _print_line("Logs", f"{result.path.parent / str(result.logs)} (LoadGen's own files)")


def _show_accuracy(accuracy: LoadgenAccuracy) -> None:
    reference = "their labels" if accuracy.against == "labels" else "PyTorch's predictions"
    text = f"{accuracy.correct_images} of {accuracy.images} images match {reference}"
    text += f" ({format_percent(accuracy.accuracy)})"
    if accuracy.least is not None:
        outcome = "passed" if accuracy.passed else "FAILED"
        text += f", at least {format_percent(accuracy.least)} required: {outcome}"
    _print_line("Accuracy", text)
    for mistake in accuracy.wrong[:_MAX_MISTAKES_SHOWN]:
        _print_line("", f"{mistake.file}: {mistake.answer}, expected {mistake.expected}")
    if len(accuracy.wrong) > _MAX_MISTAKES_SHOWN:
        hidden_count = len(accuracy.wrong) - _MAX_MISTAKES_SHOWN
        _print_line("", f"and {hidden_count} more in the result file")


def _show_performance(performance: LoadgenPerformance) -> None:
    summary = performance.summary
    _print_line("Verdict", f"Result is : {summary.result} (reported by LoadGen)")
    main_metrics = {
        "single-stream": "90.0th percentile latency (ns)",
        "multi-stream": "99.0th percentile latency (ns)",
    }
    metric = main_metrics.get(performance.scenario, "Samples per second")
    _print_line("", f"{metric} : {summary.figures.get(metric, '')}")
    for message in (*summary.remarks, *summary.messages):
        _print_line("", message)
    loadgen, edgetl, callback, inference = (
        f"{1e9 / ns:.1f} samples/s"
        if performance.is_throughput
        else f"{format_milliseconds(ns / 1e6)} ms"
        for ns in (
            performance.loadgen_ns,
            performance.edgetl_ns,
            performance.callback_ns,
            performance.inference_ns,
        )
    )
    percentile = "" if performance.is_throughput else "p50 "
    _print_line(
        "Compared",
        f"LoadGen {percentile}{loadgen}, edgetl {edgetl} ({performance.ratio:.2f})",
    )
    _print_line("", f"timed by edgetl inside LoadGen: {callback}, the model alone {inference}")
    if not performance.is_within_tolerance:
        _print_line("", f"The two differ by more than 5%: {performance.disagreement}.")
    if not performance.steady:
        _print_line("", "edgetl's measurement started before the latency was steady.")


def _print_line(heading: str, text: str) -> None:
    out.print(f"{heading:<9}{text}", markup=False, soft_wrap=True)

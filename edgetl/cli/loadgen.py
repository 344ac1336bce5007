"""`edgetl bench --loadgen`: run a bundle under MLPerf LoadGen and print LoadGen's result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from edgetl.cli.console import err, out
from edgetl.cli.exit_codes import ExitCode
from edgetl.cli.progress import measure_and_show
from edgetl.core.formatting import describe_device, format_milliseconds, format_percent, pluralize

if TYPE_CHECKING:
    from edgetl.core.artifacts.loadgen import LoadgenAccuracy, LoadgenPerformance, LoadgenResult

_MAX_MISTAKES_SHOWN = 5


def reject_loadgen_only_options(options: Mapping[str, Any]) -> None:
    """Reject options of LoadGen if --loadgen is not set.

    Raises:
        ConfigError: an option has a value.
    """
    from edgetl.core.errors import ConfigError

    options_set = [option for option, value in options.items() if value]
    if options_set:
        raise ConfigError(
            f"{', '.join(options_set)} can only be used with --loadgen. Add --loadgen "
            "single-stream, multi-stream or offline, or remove it."
        )


def run_loadgen(
    scenario: str,
    targets: Sequence[str],
    unsupported_options: Mapping[str, Any],
    lists: Mapping[str, Sequence[Any]],
    mode: Sequence[str],
    data: Path | None,
    min_duration: str | None,
    min_accuracy: str | None,
    output: Path | None,
    as_json: bool,
    force: bool,
) -> None:
    """Run LoadGen and print its result.

    Args:
        scenario: LoadGen scenario in lower case, such as `single-stream`.
        targets: arguments of the command.
        unsupported_options: values of bench options that cannot be combined with LoadGen, by name.
        lists: values of scope, batch, threads, provider and variant; at most one each.
        mode: LoadGen modes; empty for both.
        data: folder of labelled images, one folder per label.
        min_duration: LoadGen's min_duration, such as `10s` or `10m`.
        min_accuracy: lowest acceptable accuracy, such as `90%`.
        output: result file.
        as_json: print the result as one JSON object.
        force: allow more threads than available cores.

    Raises:
        ConfigError: the options are invalid or cannot be combined.
        BenchError: the gate failed.
        Exit: the accuracy is too low. The result is printed before.
    """
    from edgetl.core.config.loadgen import LoadgenConfig
    from edgetl.core.config.parsers import parse_duration, parse_share
    from edgetl.core.errors import ConfigError

    conflicts = [option for option, value in unsupported_options.items() if value]
    if conflicts:
        raise ConfigError(
            f"--loadgen cannot be combined with {', '.join(conflicts)}: it measures one "
            "configuration by the MLPerf rules."
        )
    lists_too_long = [option for option, values in lists.items() if len(values) > 1]
    if lists_too_long:
        raise ConfigError(
            "--loadgen measures one configuration: give only one value for "
            f"{', '.join(lists_too_long)}."
        )
    if len(targets) != 1:
        raise ConfigError(f"--loadgen requires one RUN or BUNDLE, got {len(targets)}.")
    configuration = {
        option.removeprefix("--"): values[0] for option, values in lists.items() if values
    }
    if configuration.get("variant") == "all":
        raise ConfigError(
            "--loadgen measures one variant, got --variant all. Name a variant, or remove "
            "--variant to use the recommended one."
        )
    config = LoadgenConfig(
        target=Path(targets[0]),
        scenario=scenario,  # type: ignore[arg-type]
        output=output,
        data=data,
        force=force,
        **({"modes": tuple(mode)} if mode else {}),  # type: ignore[arg-type]
        **({} if min_duration is None else {"min_duration_s": parse_duration(min_duration)}),  # type: ignore[arg-type]
        **({} if min_accuracy is None else {"min_accuracy": parse_share(min_accuracy)}),  # type: ignore[arg-type]
        **configuration,
    )
    from edgetl.device.loadgen.loadgen import loadgen

    result = measure_and_show(partial(loadgen, config), show_loadgen_result, as_json)
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
    name = f"[bold]{result.model.get('name') or result.target}[/] {setup['variant']}"
    device = describe_device(result.device)
    threads = pluralize(setup["threads"], "thread")
    batch = f", batch {setup['batch']}" if setup["batch"] > 1 else ""
    out.print(
        f"{name} on {device}, {setup['provider']}, {threads}, scope {setup['scope']}{batch}",
        highlight=False,
    )
    _print_line("LoadGen", f"{result.loadgen}, {result.scenario}, {result.samples['description']}")
    gate = setup["gate"]
    _print_line(
        "Gate",
        f"{gate['top1_agreement']}/{gate['images']} agree, "
        f"max |Δlogit| {gate['max_logit_difference']:.2g}",
    )
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
        _print_line("", f"{mistake['file']}: {mistake['answer']}, expected {mistake['wanted']}")
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

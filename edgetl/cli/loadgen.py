"""`edgetl bench --loadgen`: MLPerf LoadGen drives a bundle; what it says, as it says it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgetl.cli.console import out
from edgetl.cli.progress import measure_and_show
from edgetl.core.formatting import describe_device, format_milliseconds, format_percent, pluralize

if TYPE_CHECKING:
    from edgetl.core.artifacts.loadgen import LoadgenAccuracy, LoadgenPerformance, LoadgenResult

_MAX_MISTAKES_SHOWN = 5


def reject_loadgen_only_options(options: Mapping[str, Any]) -> None:
    """Options that say how LoadGen is to drive mean nothing without it.

    Raises:
        ConfigError: one was given.
    """
    from edgetl.core.errors import ConfigError

    given = [option for option, value in options.items() if value]
    if given:
        raise ConfigError(
            f"{', '.join(given)} belongs to --loadgen: add --loadgen single-stream, multi-stream or offline, or leave it out."
        )


def run_loadgen(
    scenario: str,
    targets: Sequence[str],
    others: Mapping[str, Any],
    lists: Mapping[str, Sequence[Any]],
    mode: Sequence[str],
    data: Path | None,
    min_duration: str | None,
    min_accuracy: str | None,
    output: Path | None,
    as_json: bool,
    force: bool,
) -> None:
    """Run LoadGen and print what it found.

    Args:
        scenario: as LoadGen's, in small letters.
        targets: the arguments of the command.
        others: options of the bench that make no sense here, to their values; those that were given are refused.
        lists: scope, batch, threads, provider and variant as given; each may hold one.
        mode: LoadGen's modes; none takes both.
        data: a labelled folder.
        min_duration: `10s`, `10m`.
        min_accuracy: `90%`.
        output: the result file.
        as_json: print the result as one JSON object, and nothing else.
        force: measure with more threads than there are cores.

    Raises:
        ConfigError: options that do not fit.
        BenchError: the gate is closed, or the accuracy run fell short; its result has been printed.
    """
    from edgetl.core.config.loadgen import LoadgenConfig
    from edgetl.core.config.options import parse_duration, parse_share
    from edgetl.core.errors import BenchError, ConfigError

    given = [option for option, value in others.items() if value]
    if given:
        raise ConfigError(
            f"--loadgen measures one configuration by MLPerf's rules, for which {', '.join(given)} has no meaning: leave it out."
        )
    several = [option for option, values in lists.items() if len(values) > 1]
    if several:
        raise ConfigError(
            f"--loadgen measures one configuration: give one {', one '.join(several)}."
        )
    if len(targets) != 1:
        raise ConfigError("--loadgen drives one RUN or BUNDLE: give one.")
    one = {option.removeprefix("--"): values[0] for option, values in lists.items() if values}
    if one.get("variant") == "all":
        raise ConfigError(
            "--loadgen drives one variant: name it, or leave --variant out for the recommended one."
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
        **one,
    )
    from edgetl.device.loadgen.loadgen import loadgen

    result = measure_and_show(partial(loadgen, config), show_loadgen_result, as_json)
    accuracy = result.accuracy
    if accuracy is not None and not accuracy.passed:
        raise BenchError(
            f"LoadGen's accuracy run fell short: {accuracy.correct_images} of {accuracy.images} right, {format_percent(accuracy.least)} must be. "
            "Take another --variant, or say with --min-accuracy what is enough for these images."
        )


def show_loadgen_result(result: LoadgenResult) -> None:
    """Print a result for people; what LoadGen says stands as it says it."""
    setup = result.configuration
    name = f"[bold]{result.model.get('name') or result.target}[/] {setup['variant']} on {describe_device(result.device)}"
    threads, batch = (
        pluralize(setup["threads"], "thread"),
        f", batch {setup['batch']}" if setup["batch"] > 1 else "",
    )
    out.print(
        f"{name}, {setup['provider']}, {threads}, scope {setup['scope']}{batch}", highlight=False
    )
    _print_line("LoadGen", f"{result.loadgen}, {result.scenario}, {result.samples['description']}")
    gate = setup["gate"]
    _print_line(
        "Gate",
        f"{gate['top1_agreement']}/{gate['images']} agree, max |Δlogit| {gate['max_logit_difference']:.2g}",
    )
    if result.accuracy is not None:
        _show_accuracy(result.accuracy)
    if result.performance is not None:
        _show_performance(result.performance)
    _print_line("Official", "no: " + "; ".join(result.unofficial_reasons))
    quiet = "quiet" if not result.noise.is_noisy else "noisy: " + "; ".join(result.noise.reasons)
    _print_line("Noise", quiet)
    for note in result.notes:
        _print_line("Note", note)
    if result.path is not None:
        _print_line("Result", str(result.path))
        _print_line("Logs", f"{result.path.parent / str(result.logs)} (LoadGen's own files)")


def _show_accuracy(accuracy: LoadgenAccuracy) -> None:
    against = "their labels" if accuracy.against == "labels" else "PyTorch's answers"
    least = (
        ""
        if accuracy.least is None
        else f", at least {format_percent(accuracy.least)} must be: {'passed' if accuracy.passed else 'FAILED'}"
    )
    _print_line(
        "Accuracy",
        f"{accuracy.correct_images} of {accuracy.images} as {against} ({format_percent(accuracy.accuracy)}){least}",
    )
    for mistake in accuracy.wrong[:_MAX_MISTAKES_SHOWN]:
        _print_line("", f"{mistake['file']}: {mistake['answer']}, not {mistake['wanted']}")
    if len(accuracy.wrong) > _MAX_MISTAKES_SHOWN:
        _print_line("", f"and {len(accuracy.wrong) - _MAX_MISTAKES_SHOWN} more, in the result")


def _show_performance(performance: LoadgenPerformance) -> None:
    summary = performance.summary
    _print_line("Verdict", f"Result is : {summary.result} (LoadGen's words)")
    main = {
        "single-stream": "90.0th percentile latency (ns)",
        "multi-stream": "99.0th percentile latency (ns)",
    }
    figure = main.get(performance.scenario, "Samples per second")
    told = summary.figures.get(figure, "")
    _print_line("", f"{figure} : {told}")
    for words in (*summary.remarks, *summary.messages):
        _print_line("", words)
    times = (
        performance.loadgen_ns,
        performance.edgetl_ns,
        performance.callback_ns,
        performance.inference_ns,
    )
    kind, unit = ("", "samples/s") if performance.is_throughput else ("p50 ", "ms")
    loadgen, own, inside, model = (
        f"{1e9 / ns:.1f}" if performance.is_throughput else format_milliseconds(ns / 1e6)
        for ns in times
    )
    _print_line(
        "Beside", f"LoadGen {kind}{loadgen} {unit}, edgetl {own} {unit} ({performance.ratio:.2f})"
    )
    _print_line(
        "", f"edgetl's clock inside LoadGen's test: {inside} {unit}, the model alone {model} {unit}"
    )
    if not performance.is_within_tolerance:
        _print_line("", f"They disagree by more than 5%: {performance.disagreement}.")
    if not performance.steady:
        _print_line("", "edgetl's loop had not become steady when it began to measure.")


def _print_line(head: str, text: str) -> None:
    out.print(f"{head:<9}{text}", markup=False, soft_wrap=True)

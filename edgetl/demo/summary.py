"""Summary tables of the demo: training from scratch and pretrained, PyTorch and ONNX variants."""

from __future__ import annotations

from edgetl.core.artifacts.bench import EAGER_VARIANT, BenchResult
from edgetl.core.artifacts.bench_rows import BenchRow
from edgetl.core.artifacts.bundle import BundleRecord
from edgetl.core.artifacts.experiment import Experiment
from edgetl.core.artifacts.experiment_runs import StrategyResult
from edgetl.core.artifacts.variant_agreement import describe_disagreements
from edgetl.core.formatting import (
    MISSING_VALUE,
    format_duration,
    format_milliseconds,
    format_percent,
)
from edgetl.report.compare.tables import format_difference
from edgetl.report.text_table import TextTable

_CHANCE_FACTOR = 1.25
"""Accuracy levels below this multiple of chance are left out."""


def accuracy_gain_table(
    experiment: Experiment, scratch: StrategyResult, pretrained: StrategyResult
) -> TextTable:
    """Compare training from scratch with pretrained weights: accuracy, time, time to accuracy."""
    pair = experiment.find_comparison(pretrained.name, scratch.name)
    gain = "" if pair is None else f"{format_difference(pair)} points: {pair.verdict}"
    rows = [
        (
            "validation accuracy",
            format_percent(scratch.val_accuracy),
            format_percent(pretrained.val_accuracy),
            gain,
        ),
        ("time", format_duration(scratch.seconds), format_duration(pretrained.seconds), ""),
    ]
    # Any first epoch reaches the accuracy of chance, so the time to it is meaningless.
    levels = [
        level
        for level in sorted({scratch.val_accuracy, pretrained.val_accuracy})
        if level >= _CHANCE_FACTOR / len(experiment.classes)
    ]
    rows += [
        (
            f"until {format_percent(level)}",
            _format_time_to_accuracy(scratch, level),
            _format_time_to_accuracy(pretrained, level),
            _format_time_ratio(scratch, pretrained, level),
        )
        for level in levels
    ]
    note = (
        f"{len(scratch.first_run.correct_mask)} validation images of {len(experiment.classes)} "
        f"classes; {scratch.network}, trained on {scratch.first_run.train_images} images."
    )
    columns = ("training", "from scratch", "pretrained", "gain [95%]")
    return TextTable("Training for the same time", columns, tuple(rows), note, ("gain [95%]",))


def latency_gain_table(bundle: BundleRecord, result: BenchResult, accuracy: float) -> TextTable:
    """Compare PyTorch with each variant: latency of one image, file size, accuracy.

    Args:
        bundle: the bundle that was measured.
        result: result of `edgetl bench`; its rows in scope `model` are shown.
        accuracy: accuracy of PyTorch on the validation images.
    """
    rows = [row for row in result.rows if row.scope == "model" and row.batch == 1]
    recommendation = result.recommendation
    recommended_row = None if recommendation is None else recommendation.latency.row
    cells = tuple(
        (
            *_latency_cells(result, row, row.id == recommended_row),
            _format_accuracy(bundle, row, accuracy),
        )
        for row in rows
    )
    noise = "the machine was quiet"
    if result.noise.is_noisy:
        noise = f"the machine was noisy: {result.noise.reasons[0]}"
    threads = ", ".join(sorted({f"{row.threads}" for row in rows}))
    round_count = len(rows[0].rounds) if rows else 0
    notes = [
        f"One image, {threads} threads, {round_count} rounds; {noise}. * recommended here.",
        *describe_disagreements(bundle.manifest, result),
    ]
    columns = ("on this machine", "p50 ms", "speed-up [95%]", "verdict", "file MB", "accuracy")
    return TextTable("Latency and size", columns, cells, " ".join(notes), ("verdict",))


def _format_time_to_accuracy(row: StrategyResult, accuracy: float) -> str:
    seconds = row.seconds_to_accuracy(accuracy)
    if seconds is None:
        return f"not within {format_duration(row.seconds)}"
    return format_duration(seconds)


def _format_time_ratio(scratch: StrategyResult, pretrained: StrategyResult, accuracy: float) -> str:
    pretrained_s = pretrained.seconds_to_accuracy(accuracy)
    scratch_s = scratch.seconds_to_accuracy(accuracy)
    if pretrained_s is None or scratch_s is None:
        return ""
    return f"{scratch_s / pretrained_s:.1f} times faster"


def _latency_cells(result: BenchResult, row: BenchRow, is_recommended: bool) -> tuple[str, ...]:
    name = "PyTorch" if row.runtime == "pytorch" else f"ONNX {row.variant}"
    pair = result.find_eager_comparison(row.id)
    speedup = ""
    verdict = ""
    if pair is not None:
        speedup = f"{pair.speedup.ratio:.2f} [{pair.speedup.low:.2f}, {pair.speedup.high:.2f}]"
        verdict = pair.verdict
    if row.runtime == "pytorch" and row.variant == EAGER_VARIANT:
        speedup = "1"
    if row.has_failed_gate:
        verdict = "does not match PyTorch"
    return (
        name + (" *" if is_recommended else ""),
        format_milliseconds(row.percentile_ms(50)),
        speedup,
        verdict,
        f"{row.file_bytes / 1e6:.1f}",
    )


def _format_accuracy(bundle: BundleRecord, row: BenchRow, pytorch_accuracy: float) -> str:
    if row.runtime == "pytorch":
        return format_percent(pytorch_accuracy)
    accuracy = next(
        (variant.accuracy for variant in bundle.variants if variant.name == row.variant), None
    )
    return MISSING_VALUE if accuracy is None else format_percent(accuracy.top1)

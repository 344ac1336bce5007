"""What a whole job came to, small enough for one screen: training from nothing beside pretrained, PyTorch beside the files for a device."""

from __future__ import annotations

from edgetl.core.artifacts.bench import EAGER_VARIANT, BenchResult
from edgetl.core.artifacts.bench_rows import BenchRow as Timed
from edgetl.core.artifacts.bundle import BundleManifest
from edgetl.core.artifacts.experiment import Experiment
from edgetl.core.artifacts.experiment_runs import StrategyResult
from edgetl.core.formatting import (
    MISSING_VALUE,
    format_duration,
    format_milliseconds,
    format_percent,
)
from edgetl.report.compare.tables import TextTable, format_difference

_CHANCE_FACTOR = 1.25
"""Times the share that guessing gets right."""


def accuracy_gain_table(
    found: Experiment, scratch: StrategyResult, pretrained: StrategyResult
) -> TextTable:
    """Two rows of an experiment: accuracy, time, and when the pretrained one passed what the other ended with."""
    pair = found.find_comparison(pretrained.name, scratch.name)
    gained = "" if pair is None else f"{format_difference(pair)} points: {pair.verdict}"
    cells = [
        (
            "validation accuracy",
            format_percent(scratch.val_accuracy),
            format_percent(pretrained.val_accuracy),
            gained,
        ),
        ("time", format_duration(scratch.seconds), format_duration(pretrained.seconds), ""),
    ]
    # What one guesses is passed by any first epoch, and says nothing of time.
    levels = [
        level
        for level in sorted({scratch.val_accuracy, pretrained.val_accuracy})
        if level >= _CHANCE_FACTOR / len(found.classes)
    ]
    cells += [
        (
            f"until {format_percent(level)}",
            _format_time_to_accuracy(scratch, level),
            _format_time_to_accuracy(pretrained, level),
            _format_time_ratio(scratch, pretrained, level),
        )
        for level in levels
    ]
    note = (
        f"{len(scratch.first_run.correct_mask)} validation images of {len(found.classes)} classes; {scratch.network}, trained on "
        f"{scratch.first_run.train_images} images."
    )
    columns = ("trained", "from nothing", "pretrained", "gained [95%]")
    return TextTable("Training, in the same time", columns, tuple(cells), note, ("gained [95%]",))


def latency_gain_table(bundle: BundleManifest, result: BenchResult, accuracy: float) -> TextTable:
    """PyTorch and every variant of the bundle: latency of one image, size, accuracy.

    Args:
        result: of `edgetl bench`; its rows in scope `model` are shown.
        accuracy: PyTorch's, on the validation images.
    """
    rows = [row for row in result.rows if row.scope == "model" and row.batch == 1]
    chosen = result.recommendation
    cells = tuple(
        (
            *_latency_cells(result, row, chosen is not None and row.id == chosen.latency.row),
            _format_accuracy(bundle, row, accuracy),
        )
        for row in rows
    )
    quiet = (
        "the machine was quiet"
        if not result.noise.is_noisy
        else f"the machine was not quiet: {result.noise.reasons[0]}"
    )
    threads = ", ".join(sorted({f"{row.threads}" for row in rows}))
    note = f"One image, {threads} threads, {len(rows[0].rounds) if rows else 0} rounds; {quiet}. * recommended here."
    columns = ("on this machine", "p50 ms", "speed-up [95%]", "verdict", "file MB", "accuracy")
    return TextTable("Latency, size", columns, cells, note, ("verdict",))


def _format_time_to_accuracy(row: StrategyResult, accuracy: float) -> str:
    seconds = row.seconds_to_accuracy(accuracy)
    return f"not in {format_duration(row.seconds)}" if seconds is None else format_duration(seconds)


def _format_time_ratio(scratch: StrategyResult, pretrained: StrategyResult, accuracy: float) -> str:
    own, other = pretrained.seconds_to_accuracy(accuracy), scratch.seconds_to_accuracy(accuracy)
    return "" if own is None or other is None else f"{other / own:.1f} times as soon"


def _latency_cells(result: BenchResult, row: Timed, recommended: bool) -> tuple[str, ...]:
    name = "PyTorch" if row.runtime == "pytorch" else f"ONNX {row.variant}"
    pair = result.find_eager_comparison(row.id)
    is_eager = row.runtime == "pytorch" and row.variant == EAGER_VARIANT
    speedup = (
        "1"
        if is_eager
        else ""
        if pair is None
        else f"{pair.speedup.ratio:.2f} [{pair.speedup.low:.2f}, {pair.speedup.high:.2f}]"
    )
    verdict = (
        "does not answer as PyTorch"
        if row.has_failed_gate
        else ""
        if pair is None
        else pair.verdict
    )
    return (
        name + (" *" if recommended else ""),
        format_milliseconds(row.percentile_ms(50)),
        speedup,
        verdict,
        f"{row.file_bytes / 1e6:.1f}",
    )


def _format_accuracy(bundle: BundleManifest, row: Timed, pytorch: float) -> str:
    if row.runtime == "pytorch":
        return format_percent(pytorch)
    measured = next(
        (variant.accuracy for variant in bundle.variants if variant.name == row.variant), None
    )
    return MISSING_VALUE if measured is None else format_percent(measured.top1)

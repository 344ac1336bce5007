"""What a whole job came to, small enough for one screen: training from nothing beside pretrained, PyTorch beside the files for a device."""

from __future__ import annotations

from edgetl.core.artifacts.bench import EAGER, BenchResult
from edgetl.core.artifacts.bench_rows import Row as Timed
from edgetl.core.artifacts.bundle import BundleCard
from edgetl.core.artifacts.experiment import Experiment
from edgetl.core.artifacts.experiment_runs import Row
from edgetl.core.formatting import MISSING, duration, milliseconds, percent
from edgetl.report.compare.tables import TextTable, points

_GUESSED = 1.25
"""Times the share that guessing gets right."""


def accuracy_gained(found: Experiment, scratch: Row, pretrained: Row) -> TextTable:
    """Two rows of an experiment: accuracy, time, and when the pretrained one passed what the other ended with."""
    pair = found.pair(pretrained.name, scratch.name)
    gained = "" if pair is None else f"{points(pair)} points: {pair.verdict}"
    cells = [
        (
            "validation accuracy",
            percent(scratch.val_accuracy),
            percent(pretrained.val_accuracy),
            gained,
        ),
        ("time", duration(scratch.seconds), duration(pretrained.seconds), ""),
    ]
    # What one guesses is passed by any first epoch, and says nothing of time.
    levels = [
        level
        for level in sorted({scratch.val_accuracy, pretrained.val_accuracy})
        if level >= _GUESSED / len(found.classes)
    ]
    cells += [
        (
            f"until {percent(level)}",
            _until(scratch, level),
            _until(pretrained, level),
            _sooner(scratch, pretrained, level),
        )
        for level in levels
    ]
    note = (
        f"{len(scratch.first.answers)} validation images of {len(found.classes)} classes; {scratch.network}, trained on "
        f"{scratch.first.train_images} images."
    )
    columns = ("trained", "from nothing", "pretrained", "gained [95%]")
    return TextTable("Training, in the same time", columns, tuple(cells), note, ("gained [95%]",))


def latency_gained(bundle: BundleCard, result: BenchResult, accuracy: float) -> TextTable:
    """PyTorch and every variant of the bundle: latency of one image, size, accuracy.

    Args:
        result: of `edgetl bench`; its rows in scope `model` are shown.
        accuracy: PyTorch's, on the validation images.
    """
    rows = [row for row in result.rows if row.scope == "model" and row.batch == 1]
    chosen = result.recommendation
    cells = tuple(
        (
            *_timed(result, row, chosen is not None and row.id == chosen.latency.row),
            _accuracy(bundle, row, accuracy),
        )
        for row in rows
    )
    quiet = (
        "the machine was quiet"
        if not result.noise.noisy
        else f"the machine was not quiet: {result.noise.reasons[0]}"
    )
    threads = ", ".join(sorted({f"{row.threads}" for row in rows}))
    note = f"One image, {threads} threads, {len(rows[0].rounds) if rows else 0} rounds; {quiet}. * recommended here."
    columns = ("on this machine", "p50 ms", "speed-up [95%]", "verdict", "file MB", "accuracy")
    return TextTable("Latency, size", columns, cells, note, ("verdict",))


def _until(row: Row, accuracy: float) -> str:
    seconds = row.seconds_to(accuracy)
    return f"not in {duration(row.seconds)}" if seconds is None else duration(seconds)


def _sooner(scratch: Row, pretrained: Row, accuracy: float) -> str:
    own, other = pretrained.seconds_to(accuracy), scratch.seconds_to(accuracy)
    return "" if own is None or other is None else f"{other / own:.1f} times as soon"


def _timed(result: BenchResult, row: Timed, recommended: bool) -> tuple[str, ...]:
    name = "PyTorch" if row.runtime == "pytorch" else f"ONNX {row.variant}"
    pair = result.against_eager(row.id)
    is_eager = row.runtime == "pytorch" and row.variant == EAGER
    speedup = (
        "1"
        if is_eager
        else ""
        if pair is None
        else f"{pair.speedup.ratio:.2f} [{pair.speedup.low:.2f}, {pair.speedup.high:.2f}]"
    )
    verdict = "does not answer as PyTorch" if row.failed else "" if pair is None else pair.verdict
    return (
        name + (" *" if recommended else ""),
        milliseconds(row.percentile_ms(50)),
        speedup,
        verdict,
        f"{row.file_bytes / 1e6:.1f}",
    )


def _accuracy(bundle: BundleCard, row: Timed, pytorch: float) -> str:
    if row.runtime == "pytorch":
        return percent(pytorch)
    measured = next(
        (variant.accuracy for variant in bundle.variants if variant.name == row.variant), None
    )
    return MISSING if measured is None else percent(measured.top1)

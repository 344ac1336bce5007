"""Summary sentences of a run, for the page and the terminal."""

from __future__ import annotations

from pathlib import PurePath

from edgetl.core.artifacts.run import RunRecord
from edgetl.core.artifacts.run_metrics import HeldOutMetrics, RunMetrics
from edgetl.core.formatting import MISSING_VALUE, format_duration, format_percent, pluralize
from edgetl.report.html.text import join_words

_TIME_LABELS = {"frozen_blocks": "frozen blocks", "phase1": "phase 1", "phase2": "phase 2"}


def run_title(run: RunRecord) -> str:
    """Return the run's title: architecture and number of classes."""
    return f"{run.model}, {pluralize(len(run.classes), 'class', 'classes')}"


def format_points(value: float) -> str:
    """Format a difference of shares in percentage points, such as `+14.3 points`."""
    return f"{100 * value:+.1f} points"


def weights_source_name(run: RunRecord) -> str:
    """Return the source of the pretrained weights; of a path only the file name."""
    return PurePath(run.configuration.weights.source).name or MISSING_VALUE


def run_sentences(run: RunRecord) -> list[str]:
    """Summarize a run: accuracy, overfitting gap, time and trained parameters.

    For an unfinished run, summarize its progress instead.
    """
    if run.metrics is None:
        return [*_unfinished_sentences(run), f"Pretrained weights: {weights_source_name(run)}."]
    return [
        *_accuracy_sentences(run.metrics),
        *_training_sentences(run),
        _time_sentence(run),
        _parameters_sentence(run),
    ]


def _unfinished_sentences(run: RunRecord) -> list[str]:
    best = run.best_epoch
    if best is None:
        return ["Not finished: metrics.json not found, and no epoch is complete yet."]
    accuracy = ""
    if best.val_accuracy is not None:
        accuracy = f", with a validation accuracy of {format_percent(best.val_accuracy)}"
    return [
        "Not finished: metrics.json not found. The run is still training or was interrupted.",
        f"Best epoch so far: {best.epoch} of {len(run.history)}{accuracy}.",
    ]


def _accuracy_sentences(metrics: RunMetrics) -> list[str]:
    if metrics.val is None:
        sentences = ["Validation accuracy: unknown, there were no validation images."]
    else:
        sentences = [f"Validation accuracy: {_describe_accuracy(metrics.val)}."]
    if metrics.test is not None:
        text = f"Test accuracy: {_describe_accuracy(metrics.test)}"
        sentences.append(f"{text}, on images that were used for nothing else.")
    return sentences


def _describe_accuracy(metrics: HeldOutMetrics) -> str:
    low, high = metrics.interval
    return (
        f"{format_percent(metrics.accuracy)} of {metrics.images} images "
        f"(95% interval {format_percent(low)} to {format_percent(high)})"
    )


def _training_sentences(run: RunRecord) -> list[str]:
    metrics = run.metrics
    assert metrics is not None
    text = (
        f"Training accuracy: {format_percent(metrics.train.accuracy)} "
        f"of {metrics.train.images} images"
    )
    if metrics.gap is not None:
        text += f", {format_points(metrics.gap)} against validation (overfitting gap)"
    return [f"{text}.", f"Best epoch: {metrics.best_epoch} of {len(run.history)}."]


def _time_sentence(run: RunRecord) -> str:
    metrics = run.metrics
    assert metrics is not None
    parts = [
        f"{_TIME_LABELS.get(name, name)} {format_duration(value)}"
        for name, value in metrics.seconds.items()
        if name != "total"
    ]
    breakdown = f": {join_words(parts)}" if parts else ""
    total = format_duration(metrics.seconds["total"])
    return f"Time: {total} on {metrics.device} in {metrics.precision}{breakdown}."


def _parameters_sentence(run: RunRecord) -> str:
    metrics = run.metrics
    assert metrics is not None
    trainable, total = metrics.parameters.trainable, metrics.parameters.total
    share = trainable / max(1, total)
    decimals = 0 if share >= 0.01 else 1
    text = f"Trained: {trainable:,} of {total:,} parameters ({share:.{decimals}%})"
    source = weights_source_name(run)
    if source == "none":
        return f"{text}, from scratch."
    return f"{text}; pretrained weights: {source}."

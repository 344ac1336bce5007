"""What is said of a run, on the page and in the terminal."""

from __future__ import annotations

from pathlib import PurePath

from edgetl.core.artifacts.run import RunRecord
from edgetl.core.formatting import MISSING_VALUE, format_duration, format_percent, pluralize
from edgetl.report.html.text import join_words

_TIME_LABELS = {"frozen_blocks": "frozen blocks", "phase1": "phase 1", "phase2": "phase 2"}


def run_title(run: RunRecord) -> str:
    """What was trained."""
    return f"{run.model}, {pluralize(len(run.classes), 'class', 'classes')}"


def format_points(value: float) -> str:
    """A difference of shares: `+14.3 points`."""
    return f"{100 * value:+.1f} points"


def weights_source_name(run: RunRecord) -> str:
    """The pretrained weights' source, without the folder of this machine that it lay in."""
    return PurePath(str(run.weights.get("source"))).name or MISSING_VALUE


def run_sentences(run: RunRecord) -> list[str]:
    """The result: accuracy, gap, time, what was trained; of a run that has not finished, how far it came."""
    if run.metrics is None:
        return [*_unfinished_sentences(run), f"The weights came from {weights_source_name(run)}."]
    return [
        _accuracy_sentence(run),
        *_training_sentences(run),
        _time_sentence(run),
        _parameters_sentence(run),
    ]


def _unfinished_sentences(run: RunRecord) -> list[str]:
    kept = run.best_epoch
    if kept is None:
        return ["Not finished: there is no metrics.json, and no epoch has ended yet."]
    told = (
        ""
        if kept.val_accuracy is None
        else f" with a validation accuracy of {format_percent(kept.val_accuracy)}"
    )
    return [
        "Not finished: there is no metrics.json, so the run is still being trained or was interrupted.",
        f"Epoch {kept.epoch} is the best of the {_ended_epochs_phrase(run)} so far{told}.",
    ]


def _ended_epochs_phrase(run: RunRecord) -> str:
    return f"{pluralize(len(run.history), 'epoch')} that ended"


def _accuracy_sentence(run: RunRecord) -> str:
    assert run.metrics is not None
    val = run.metrics.validation
    if val is None:
        return "Validation accuracy: unknown, there were no validation images."
    low, high = val.accuracy_interval
    return f"Validation accuracy: {format_percent(val.accuracy)} of {val.images} images (95% interval {format_percent(low)} to {format_percent(high)})."


def _training_sentences(run: RunRecord) -> list[str]:
    metrics = run.metrics
    assert metrics is not None
    told = f"Training accuracy: {format_percent(metrics.train_accuracy)} of {metrics.train_images} images"
    gap = (
        ""
        if metrics.gap is None
        else f", {format_points(metrics.gap)} against validation: the overfitting gap"
    )
    return [f"{told}{gap}.", f"Kept: epoch {metrics.best_epoch} of {len(run.history)}."]


def _time_sentence(run: RunRecord) -> str:
    metrics = run.metrics
    assert metrics is not None
    parts = [
        f"{_TIME_LABELS.get(name, name)} {format_duration(value)}"
        for name, value in metrics.seconds.items()
        if name != "total"
    ]
    spent = f": {join_words(parts)}" if parts else ""
    return f"Time: {format_duration(metrics.seconds['total'])} on {metrics.device} in {metrics.precision}{spent}."


def _parameters_sentence(run: RunRecord) -> str:
    metrics = run.metrics
    assert metrics is not None
    share = metrics.trainable_parameters / max(1, metrics.total_parameters)
    told = f"Trained: {metrics.trainable_parameters:,} of {metrics.total_parameters:,} parameters ({share:.{0 if share >= 0.01 else 1}%})"
    source = weights_source_name(run)
    return (
        f"{told}, from nothing." if source == "none" else f"{told}; the weights came from {source}."
    )

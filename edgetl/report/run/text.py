"""What is said of a run, on the page and in the terminal."""

from __future__ import annotations

from pathlib import PurePath

from edgetl.core.artifacts.run import TrainedRun
from edgetl.core.formatting import MISSING, counted, duration, percent
from edgetl.report.html.text import joined

_SPENT = {"frozen_blocks": "frozen blocks", "phase1": "phase 1", "phase2": "phase 2"}


def title(run: TrainedRun) -> str:
    """What was trained."""
    return f"{run.model}, {counted(len(run.classes), 'class', 'classes')}"


def points(value: float) -> str:
    """A difference of shares: `+14.3 points`."""
    return f"{100 * value:+.1f} points"


def source_name(run: TrainedRun) -> str:
    """The pretrained weights' source, without the folder of this machine that it lay in."""
    return PurePath(str(run.weights.get("source"))).name or MISSING


def run_sentences(run: TrainedRun) -> list[str]:
    """The result: accuracy, gap, time, what was trained; of a run that has not finished, how far it came."""
    if run.metrics is None:
        return [*_unfinished(run), f"The weights came from {source_name(run)}."]
    return [_accuracy(run), *_training(run), _time(run), _parameters(run)]


def _unfinished(run: TrainedRun) -> list[str]:
    kept = run.kept
    if kept is None:
        return ["Not finished: there is no metrics.json, and no epoch has ended yet."]
    told = (
        ""
        if kept.val_accuracy is None
        else f" with a validation accuracy of {percent(kept.val_accuracy)}"
    )
    return [
        "Not finished: there is no metrics.json, so the run is still being trained or was interrupted.",
        f"Epoch {kept.epoch} is the best of the {_ended(run)} so far{told}.",
    ]


def _ended(run: TrainedRun) -> str:
    return f"{counted(len(run.history), 'epoch')} that ended"


def _accuracy(run: TrainedRun) -> str:
    assert run.metrics is not None
    val = run.metrics.validation
    if val is None:
        return "Validation accuracy: unknown, there were no validation images."
    low, high = val.interval
    return f"Validation accuracy: {percent(val.accuracy)} of {val.images} images (95% interval {percent(low)} to {percent(high)})."


def _training(run: TrainedRun) -> list[str]:
    metrics = run.metrics
    assert metrics is not None
    told = f"Training accuracy: {percent(metrics.train_accuracy)} of {metrics.train_images} images"
    gap = (
        ""
        if metrics.gap is None
        else f", {points(metrics.gap)} against validation: the overfitting gap"
    )
    return [f"{told}{gap}.", f"Kept: epoch {metrics.best_epoch} of {len(run.history)}."]


def _time(run: TrainedRun) -> str:
    metrics = run.metrics
    assert metrics is not None
    parts = [
        f"{_SPENT.get(name, name)} {duration(value)}"
        for name, value in metrics.seconds.items()
        if name != "total"
    ]
    spent = f": {joined(parts)}" if parts else ""
    return f"Time: {duration(metrics.seconds['total'])} on {metrics.device} in {metrics.precision}{spent}."


def _parameters(run: TrainedRun) -> str:
    metrics = run.metrics
    assert metrics is not None
    share = metrics.trained / max(1, metrics.parameters)
    told = f"Trained: {metrics.trained:,} of {metrics.parameters:,} parameters ({share:.{0 if share >= 0.01 else 1}%})"
    source = source_name(run)
    return (
        f"{told}, from nothing." if source == "none" else f"{told}; the weights came from {source}."
    )

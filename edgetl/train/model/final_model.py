"""Checks that a run's files belong to the model that its metrics.json describes."""

from __future__ import annotations

from collections.abc import Sequence

from edgetl.core.artifacts.run_metrics import read_metrics
from edgetl.core.errors import ExportError, RunError
from edgetl.core.paths import RunDirectory
from edgetl.core.preprocessing import Preprocessing


def check_model_unchanged(
    run: RunDirectory, weights_sha256: str, classes: Sequence[str], preprocessing: Preprocessing
) -> None:
    """Check that weights, classes and preprocessing match the final model of the run.

    Raises:
        RunError: one of them has changed since.
    """
    final = read_metrics(run).final if run.metrics.exists() else None
    if final is None:
        return
    changed = None
    if weights_sha256 != final.weights_sha256:
        changed = f"{run.weights} was changed after the training: its SHA-256"
    elif (tuple(classes), preprocessing) != (final.classes, final.preprocessing):
        changed = f"{run.config} was changed after the training: its classes or its preprocessing"
    if changed is not None:
        raise RunError(
            f"{changed} does not match metrics.json. Restore the file, or run finetune again."
        )


def check_accuracy(run: RunDirectory, accuracy: float, images: int) -> None:
    """Check the accuracy that an export has measured on the run's validation images.

    Args:
        run: the run directory.
        accuracy: measured accuracy, 0 to 1.
        images: number of validation images.

    Raises:
        ExportError: the accuracy is outside the 95% interval of metrics.json.
    """
    val = read_metrics(run).val if run.metrics.exists() else None
    if val is None:
        return
    low, high = val.interval
    if not low <= accuracy <= high:
        raise ExportError(
            f"The accuracy on the {images} validation images is {accuracy:.1%}, but metrics.json "
            f"has {val.accuracy:.1%} (95% interval {low:.1%} to {high:.1%}): "
            "weights, classes, preprocessing, split.csv or images were changed after training. "
            "Restore them, or run finetune again. No bundle was written."
        )

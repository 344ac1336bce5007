"""Final model of a run, recorded in metrics.json so that exports detect later changes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from edgetl.core.errors import ExportError, RunError
from edgetl.core.files import read_json
from edgetl.core.paths import RunDirectory
from edgetl.core.preprocessing import Preprocessing
from edgetl.core.typed_json import FieldError, parse_as


@dataclass(frozen=True)
class FinalModel:
    """The model that the metrics of metrics.json belong to."""

    weights_sha256: str
    """SHA-256 of weights.safetensors."""
    classes: list[str]
    preprocessing: dict[str, Any]


@dataclass(frozen=True)
class _Validation:
    images: int
    accuracy: float
    accuracy_ci95: tuple[float, float]


@dataclass(frozen=True)
class FinishedRun:
    """The fields of metrics.json that an export checks."""

    val: _Validation | None = None
    final: FinalModel | None = None
    """Final model; None in runs of older versions."""


def final_model(
    weights_sha256: str, classes: list[str], preprocessing: Preprocessing
) -> dict[str, Any]:
    """Return the field `final` of metrics.json."""
    return asdict(FinalModel(weights_sha256, classes, preprocessing.to_json()))


def read_finished_run(run: RunDirectory) -> FinishedRun | None:
    """Read metrics.json of a run; return None if training has not finished.

    Raises:
        RunError: the file is damaged.
    """
    if not run.metrics.exists():
        return None
    content = read_json(run.metrics, RunError, "The run's metrics")
    try:
        return parse_as(FinishedRun, content, "metrics.json", extra="ignore")
    except FieldError as cause:
        raise RunError(
            f"Cannot read {run.metrics}: {cause}. Restore the file, or run finetune again."
        ) from cause


def check_model_unchanged(
    run: RunDirectory, weights_sha256: str, classes: list[str], preprocessing: Preprocessing
) -> None:
    """Check that weights, classes and preprocessing match the final model of the run.

    Raises:
        RunError: one of them has changed since.
    """
    finished = read_finished_run(run)
    if finished is None or finished.final is None:
        return
    final = finished.final
    changed = None
    if weights_sha256 != final.weights_sha256:
        changed = f"{run.weights} was changed after the training: its SHA-256"
    elif classes != final.classes or preprocessing.to_json() != final.preprocessing:
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
    finished = read_finished_run(run)
    if finished is None or finished.val is None:
        return
    low, high = finished.val.accuracy_ci95
    if not low <= accuracy <= high:
        raise ExportError(
            f"The accuracy on the {images} validation images is {accuracy:.1%}, but metrics.json "
            f"has {finished.val.accuracy:.1%} (95% interval {low:.1%} to {high:.1%}): "
            "weights, classes, preprocessing, split.csv or images were changed after training. "
            "Restore them, or run finetune again. No bundle was written."
        )

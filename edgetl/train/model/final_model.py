"""The model that a run ended with, as metrics.json states it, so that a later export notices a change."""

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
    """The weights that the figures of metrics.json were measured with, and what belongs to them."""

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
    """metrics.json, as far as an export compares with it."""

    val: _Validation | None = None
    final: FinalModel | None = None
    """None in runs of before."""


def final_model(
    weights_sha256: str, classes: list[str], preprocessing: Preprocessing
) -> dict[str, Any]:
    """`final` of metrics.json."""
    return asdict(FinalModel(weights_sha256, classes, preprocessing.to_json()))


def read_finished_run(run: RunDirectory) -> FinishedRun | None:
    """metrics.json of a run; None where training has not ended.

    Raises:
        RunError: it is broken.
    """
    if not run.metrics.exists():
        return None
    content = read_json(run.metrics, RunError, "The run's figures")
    try:
        return parse_as(FinishedRun, content, "metrics.json", extra="ignore")
    except FieldError as cause:
        raise RunError(
            f"{run.metrics} is broken: {cause}. Restore it, or run finetune again."
        ) from cause


def check_model_unchanged(
    run: RunDirectory, weights_sha256: str, classes: list[str], preprocessing: Preprocessing
) -> None:
    """Compare a run's weights, classes and preprocessing with those that it ended with.

    Raises:
        RunError: one of them was changed since.
    """
    finished = read_finished_run(run)
    if finished is None or finished.final is None:
        return
    final, changed = finished.final, None
    if weights_sha256 != final.weights_sha256:
        changed = f"{run.weights} was changed after the training: its SHA-256"
    elif classes != final.classes or preprocessing.to_json() != final.preprocessing:
        changed = f"{run.config} was changed after the training: its classes or its preprocessing"
    if changed is not None:
        raise RunError(
            f"{changed} differs from metrics.json. Restore the file, or run finetune again."
        )


def check_accuracy(run: RunDirectory, accuracy: float, images: int) -> None:
    """Compare the accuracy [0, 1] that an export measured on a run's validation images with the run's own.

    Raises:
        ExportError: it lies outside the 95% interval of metrics.json.
    """
    finished = read_finished_run(run)
    if finished is None or finished.val is None:
        return
    low, high = finished.val.accuracy_ci95
    if not low <= accuracy <= high:
        raise ExportError(
            f"The model is right on {accuracy:.1%} of the {images} validation images, and metrics.json says {finished.val.accuracy:.1%} "
            f"(95% interval {low:.1%} to {high:.1%}): weights, classes, preprocessing, split.csv or images were changed "
            "after the training. Restore them, or run finetune again. No bundle was written."
        )

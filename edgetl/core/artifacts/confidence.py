"""Confidence of a variant's predictions: calibration, unknown images and prediction sets.

The first three classes are also stored in the ONNX file's metadata; the records add the figures for
bundle.json.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from edgetl.core.errors import ConfigError
from edgetl.core.typed_json import FieldError, in_json

UNKNOWN_THRESHOLD = 1.0
"""Images whose output `unknown_score` is above it are unknown; the graph scales the score so."""
UNKNOWN_LABEL = "unknown"
"""Label of an unknown image; a class may have the same name."""
UnknownMethod = Literal["knn", "knn+energy", "knn+energy+intermediate", "energy", "max_logit"]
"""Score of an image from features or logits.

`knn` is the mean distance to the nearest training images (Sun et al., 2022), `energy` the negative
log-sum-exp of the logits (Liu et al., 2020), `max_logit` the negative largest logit (Hendrycks et
al., 2022), and `knn+energy` a weighted sum; `+intermediate` adds the distance of features from
within the network to the mean of the training images (Lee et al., 2018), above that of most images.
"""


def is_unknown_score(score: float | None) -> bool:
    """Return whether an image with this score resembles no class; None is no score."""
    return score is not None and score > UNKNOWN_THRESHOLD


def describe_unknown(closest: str) -> str:
    """Return the text that stands for the label of an unknown image.

    Args:
        closest: the most probable label.
    """
    return f"{UNKNOWN_LABEL} (closest: {closest})"


@dataclass(frozen=True)
class UnknownDetector:
    """Score for images of no class, computed by the graph as output `unknown_score`."""

    method: UnknownMethod
    known_share: float
    """Share of the validation images, all of known classes, with a score up to the threshold."""


@dataclass(frozen=True)
class CoverageLevel:
    """Threshold of prediction sets with a guaranteed coverage (split conformal prediction).

    The set of an image contains the classes with at least `min_probability`; it may be empty. It
    contains the true class of at least `coverage` of new images from the distribution of the
    validation images, in expectation over these (Sadinle et al., 2019).
    """

    coverage: float
    min_probability: float

    def __post_init__(self) -> None:
        if not 0 < self.coverage < 1:
            raise FieldError(f"a coverage must be above 0 and below 1, got {self.coverage}")


def select_coverage_level(levels: Sequence[CoverageLevel], coverage: float) -> CoverageLevel:
    """Return the level of a coverage.

    Raises:
        ConfigError: The model has no such level.
    """
    for level in levels:
        if abs(level.coverage - coverage) < 1e-9:
            return level
    if not levels:
        raise ConfigError(
            "The model has no prediction sets: it was exported without validation images or by an "
            "older edgetl. Export it again."
        )
    available = ", ".join(f"{level.coverage:g}" for level in levels)
    raise ConfigError(
        f"The model has no prediction sets of coverage {coverage:g}. Choose one of {available}, or "
        f"export it with --coverage {coverage:g}."
    )


def check_temperature(temperature: float) -> None:
    """Check a divisor of logits.

    Raises:
        FieldError: It is not above 0.
    """
    if not temperature > 0:
        raise FieldError(f"the temperature must be above 0, got {temperature:g}")


@dataclass(frozen=True)
class CalibrationFigures:
    """Quality of the probabilities on validation images."""

    calibration_error: float
    """Expected calibration error (ECE) in 15 bins of equal width."""
    interval: tuple[float, float] = field(metadata=in_json(key="calibration_error_ci95"))
    """95% bootstrap interval of `calibration_error`."""
    log_loss: float
    brier: float
    """Brier score: mean squared error of the probabilities, summed over the classes."""


@dataclass(frozen=True)
class CalibrationRecord:
    """Temperature scaling (Guo et al., 2017) fitted on the validation images."""

    temperature: float
    """Divisor of the logits before the softmax; 1 if scaling does not help."""
    images: int
    before: CalibrationFigures
    after: CalibrationFigures
    """Figures of the fitted temperature by cross-fitting: each image is scored with a temperature
    fitted on others. They also stand here if scaling did not help and was left out."""

    def __post_init__(self) -> None:
        check_temperature(self.temperature)


@dataclass(frozen=True)
class UnknownFigures:
    """Detection of one kind of unknown images among the validation images."""

    images: int
    auroc: float
    auroc_interval: tuple[float, float] = field(metadata=in_json(key="auroc_ci95"))
    """95% interval of `auroc`."""
    caught: float
    """Share of the unknown images with a score above the threshold."""
    caught_interval: tuple[float, float] = field(metadata=in_json(key="caught_ci95"))
    """95% interval of `caught`."""


@dataclass(frozen=True)
class UnknownRecord:
    """Choice of the unknown score and its figures."""

    detector: UnknownDetector
    images: int
    """Number of validation images that the threshold was set on."""
    figures: Mapping[str, UnknownFigures]
    """Figures by kind of unknown image: `left_out_class` (each class in turn is left out of bank and
    logits; mean over the classes), `generated`, `corrupted`."""
    candidates: Mapping[str, float]
    """Mean AUROC of each method tried."""

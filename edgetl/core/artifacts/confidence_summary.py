"""Sentences about calibration, unknown images and prediction sets, for cards and the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from edgetl.core.artifacts.bundle import VariantRecord
from edgetl.core.artifacts.confidence import (
    CalibrationFigures,
    CalibrationRecord,
    CoverageLevel,
    UnknownFigures,
    UnknownMethod,
    UnknownRecord,
)
from edgetl.core.formatting import format_percent, pluralize

METHOD_NAMES: dict[UnknownMethod, str] = {
    "knn": "distance to the nearest training images",
    "knn+energy": "distance to the nearest training images and energy of the logits",
    "knn+energy+intermediate": "distance to the nearest training images, energy of the logits and "
    "distance of intermediate features",
    "energy": "energy of the logits",
    "max_logit": "largest logit",
}
_UNKNOWN_KIND_NAMES = {
    "left_out_class": "a class left out",
    "generated": "generated images",
    "corrupted": "corrupted images",
}


def name_unknown_kind(kind: str) -> str:
    """Return the readable name of a kind of unknown images."""
    return _UNKNOWN_KIND_NAMES.get(kind, kind.replace("_", " "))


def format_auroc(figures: UnknownFigures) -> str:
    """Return the AUROC with its interval."""
    low, high = figures.auroc_interval
    return f"AUROC {figures.auroc:.3f} [{low:.3f}, {high:.3f}]"


def describe_confidence(variant: VariantRecord) -> Iterator[str]:
    """Yield a sentence for each record of a variant; nothing for a variant without records."""
    if variant.calibration is not None:
        yield _describe_calibration(variant.calibration)
    if variant.unknown is not None:
        yield _describe_unknown(variant.unknown)
    if variant.prediction_sets:
        yield _describe_prediction_sets(variant.prediction_sets)


def _describe_calibration(record: CalibrationRecord) -> str:
    images = pluralize(record.images, "validation image")
    before, after = format_calibration_error(record.before), format_calibration_error(record.after)
    if record.temperature == 1:
        return (
            f"Calibration error {before} on {images}; a temperature would not help ({after}) and "
            "is left out."
        )
    return (
        f"Calibration error {before} on {images}, {after} after division of the logits by the "
        f"temperature {record.temperature:.3g}."
    )


def format_calibration_error(figures: CalibrationFigures) -> str:
    """Return the calibration error with its interval."""
    low, high = figures.interval
    return f"{figures.calibration_error:.3f} [{low:.3f}, {high:.3f}]"


def _describe_unknown(record: UnknownRecord) -> str:
    detector = record.detector
    parts = [
        f"{name_unknown_kind(kind)} {format_percent(figures.caught)} caught, "
        f"{format_auroc(figures)}"
        for kind, figures in record.figures.items()
    ]
    text = (
        f"Unknown images by the {METHOD_NAMES[detector.method]}: "
        f"{format_percent(detector.known_share)} of "
        f"{pluralize(record.images, 'validation image')} accepted"
    )
    return f"{'; '.join([text, *parts])}."


def _describe_prediction_sets(levels: Sequence[CoverageLevel]) -> str:
    parts = [f"{level.min_probability:.3g} for {100 * level.coverage:g}%" for level in levels]
    return (
        f"Prediction sets: all classes with a probability of at least {', '.join(parts)} coverage."
    )

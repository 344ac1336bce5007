"""Checks of an evaluation against limits, for CI: held, broken or undecided."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from edgetl.core.artifacts.limits import LimitCheck, decide_outcome
from edgetl.core.config.evaluate import EvaluationLimits
from edgetl.core.formatting import format_percent
from edgetl.core.statistics import Z_975

if TYPE_CHECKING:
    from edgetl.core.artifacts.evaluation import (
        Estimate,
        EvaluationFigures,
        EvaluationResult,
        VariantEvaluation,
    )


def check_evaluation_limits(result: EvaluationResult, limits: EvaluationLimits) -> list[LimitCheck]:
    """Check every limit for every variant that passed the gate.

    An outcome is decided only if the whole 95% interval is on one side of the limit.
    """
    return [
        check
        for variant in result.variants
        if variant.figures is not None
        for check in _check_variant(variant, variant.figures, limits)
    ]


def _check_variant(
    variant: VariantEvaluation, figures: EvaluationFigures, limits: EvaluationLimits
) -> Iterator[LimitCheck]:
    if limits.min_accuracy is not None:
        images = sum(entry.images for entry in figures.per_class.values())
        yield _check_share(
            "min-accuracy", variant.name, "accuracy", figures.accuracy, images, limits.min_accuracy
        )
    for limit in limits.min_recall:
        entry = figures.per_class[limit.label]
        what = f"recall of {limit.label}"
        if entry.recall is None:
            why = f"{variant.name}: no images of {limit.label}"
            yield LimitCheck("min-recall", variant.name, limit.recall, None, "undecided", why)
        else:
            yield _check_share(
                "min-recall", variant.name, what, entry.recall, entry.images, limit.recall
            )
    if limits.max_ece is not None:
        error = figures.calibration.calibration_error
        outcome = decide_outcome(
            error.high <= limits.max_ece, error.low > limits.max_ece, inconclusive=False
        )
        why = _describe(variant.name, "ECE", error, limits.max_ece)
        if outcome == "undecided":
            why += "; the interval contains the limit: evaluate on more images"
        yield LimitCheck("max-ece", variant.name, limits.max_ece, error.value, outcome, why)


def _check_share(
    name: str, variant: str, what: str, share: Estimate, images: int, bound: float
) -> LimitCheck:
    outcome = decide_outcome(share.low >= bound, share.high < bound, inconclusive=False)
    why = _describe(variant, what, share, bound)
    if outcome == "undecided":
        why += f"; the interval contains the limit: {_advise(share.value, images, bound)}"
    return LimitCheck(name, variant, bound, share.value, outcome, why)


def _describe(variant: str, what: str, estimate: Estimate, bound: float) -> str:
    value, low, high = map(format_percent, (estimate.value, estimate.low, estimate.high))
    return f"{variant}: {what} is {value} [{low}, {high}], limit {100 * bound:.6g}%"


def _advise(share: float, images: int, bound: float) -> str:
    """Return the next step: about how many images decide if the share stays the same.

    The interval of Wilson excludes a bound once the score test rejects it: (share - bound)^2 >
    z^2 bound (1 - bound) / images.
    """
    if share == bound or not 0 < bound < 1:
        return "evaluate on more images"
    needed = Z_975**2 * bound * (1 - bound) / (share - bound) ** 2
    if needed <= images or needed > 1e6:
        return "evaluate on more images"
    digits = 10 ** max(0, math.floor(math.log10(needed)) - 1)
    rounded = math.ceil(needed / digits) * digits
    return f"at this share, about {rounded:,} images would decide, got {images:,}"

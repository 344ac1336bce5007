"""Prediction sets with guaranteed coverage: split conformal prediction."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgetl.core.artifacts.confidence import CoverageLevel

_ROUNDING = 1e-4


def count_uncovered(images: int, coverage: float) -> int:
    """Return floor((images + 1) (1 - coverage)), the images that a conformal threshold leaves out."""
    # Rounded, because 1 - 0.95 is slightly more than 0.05.
    return math.floor(round((images + 1) * (1 - coverage), 9))


def conformal_levels(
    true_probabilities: NDArray[np.floating], coverages: Sequence[float]
) -> tuple[CoverageLevel, ...]:
    """Return the threshold of the prediction sets for each coverage.

    The set of an image contains the classes with at least the threshold's probability, which is
    the floor((n + 1) (1 - coverage))-th smallest probability of a true class among the n validation
    images. If the images of the device are exchangeable with these, the true class is in the set of
    at least the share `coverage` of them, and of at most 1 / (n + 1) more (Vovk et al., 2005;
    Sadinle et al., 2019).

    Args:
        true_probabilities: probability of the true class of each validation image, [images].
        coverages: shares between 0 and 1.
    """
    ordered = np.sort(np.asarray(true_probabilities, np.float64))
    levels = []
    for coverage in sorted(coverages):
        rank = count_uncovered(len(ordered), coverage)
        # Slightly lower, as devices round differently.
        threshold = (1 - _ROUNDING) * float(ordered[rank - 1]) if rank > 0 else 0.0
        levels.append(CoverageLevel(coverage, threshold))
    return tuple(levels)

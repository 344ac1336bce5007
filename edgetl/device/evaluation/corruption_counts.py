"""Results on corrupted images, in memory that does not grow with the images."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np

from edgetl.core.artifacts.confidence import UNKNOWN_THRESHOLD
from edgetl.core.artifacts.evaluation import CorruptionEvaluation
from edgetl.core.config.evaluate import EvaluateConfig
from edgetl.core.errors import ConfigError
from edgetl.device.evaluation.corruptions import CORRUPTIONS
from edgetl.device.evaluation.metrics import RELIABILITY_BINS, assign_bins, estimate_share
from edgetl.device.evaluation.scores import ImageScore

Corruption = tuple[str, int]
"""Kind and severity."""


def select_corruptions(config: EvaluateConfig) -> list[Corruption]:
    """Return the corruptions to evaluate on, by kind and then severity.

    Raises:
        ConfigError: There is no such kind.
    """
    kinds = CORRUPTIONS if "all" in config.corruptions else config.corruptions
    unknown = [kind for kind in kinds if kind not in CORRUPTIONS]
    if unknown:
        raise ConfigError(
            f"{{corruptions}} must be all or among {', '.join(CORRUPTIONS)}, "
            f"got {', '.join(unknown)}.",
            EvaluateConfig,
        )
    return list(product(kinds, sorted(config.severities)))


class CorruptionCounts:
    """Counts of a variant's predictions by corruption."""

    def __init__(self, corruptions: Sequence[Corruption]) -> None:
        self._rows = {corruption: row for row, corruption in enumerate(corruptions)}
        count = len(corruptions)
        self._images = np.zeros(count, np.int64)
        self._correct = np.zeros(count, np.int64)
        self._rejected = np.zeros(count, np.int64)
        self._gaps = np.zeros((count, RELIABILITY_BINS))
        self._has_unknown = False

    def add(self, corruption: Corruption, score: ImageScore, label: int) -> None:
        """Count the prediction for an image."""
        row, is_correct = self._rows[corruption], score.predicted == label
        self._images[row] += 1
        self._correct[row] += is_correct
        reliability_bin = int(assign_bins(np.array([score.confidence]))[0])
        self._gaps[row, reliability_bin] += score.confidence - is_correct
        if score.unknown_score is not None:
            self._has_unknown = True
            self._rejected[row] += score.unknown_score > UNKNOWN_THRESHOLD

    def score(self) -> tuple[CorruptionEvaluation, ...]:
        """Return the figures of each corruption."""
        evaluations = []
        for (kind, severity), row in self._rows.items():
            images = int(self._images[row])
            rejected = None
            if self._has_unknown:
                rejected = estimate_share(int(self._rejected[row]), images)
            evaluations.append(
                CorruptionEvaluation(
                    kind=kind,
                    severity=severity,
                    images=images,
                    accuracy=estimate_share(int(self._correct[row]), images),
                    calibration_error=float(np.abs(self._gaps[row]).sum() / images),
                    rejected=rejected,
                )
            )
        return tuple(evaluations)

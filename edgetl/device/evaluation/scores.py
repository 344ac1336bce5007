"""Scores of a variant by image: a few numbers, so that memory does not grow with the classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgetl.core.artifacts.confidence import UNKNOWN_THRESHOLD, CoverageLevel
from edgetl.core.artifacts.evaluation import (
    Estimate,
    GroupEvaluation,
    PredictionSetEvaluation,
    UnknownEvaluation,
    UnknownImages,
)
from edgetl.device.evaluation.metrics import (
    Booleans,
    Floats,
    Indices,
    estimate_auroc,
    estimate_mean,
    estimate_optional_share,
    estimate_share,
    score_classes,
)


@dataclass(frozen=True)
class ImageScore:
    """Figures of one image."""

    predicted: int
    """Most probable class; the first of several."""
    confidence: float
    """Its probability."""
    label_probability: float
    """Probability of the true class."""
    rank: int
    """Number of classes before the true one."""
    brier: float
    """Squared error of the probabilities, summed over the classes."""
    set_sizes: tuple[int, ...]
    """Size of the prediction set of each level."""
    unknown_score: float | None
    """None if the variant has no output `unknown_score`."""


def score_image(
    probabilities: NDArray[np.float32],
    label: int,
    levels: Sequence[CoverageLevel] = (),
    unknown_score: float | None = None,
) -> ImageScore:
    """Return the figures of an image from its probabilities [classes]."""
    exact = probabilities.astype(np.float64)
    predicted = int(exact.argmax())
    label_probability = float(exact[label])
    ties_before = int((exact[:label] == label_probability).sum())
    return ImageScore(
        predicted=predicted,
        confidence=float(exact[predicted]),
        label_probability=label_probability,
        rank=int((exact > label_probability).sum()) + ties_before,
        brier=float(exact @ exact) - 2 * label_probability + 1,
        set_sizes=tuple(int((exact >= level.min_probability).sum()) for level in levels),
        unknown_score=unknown_score,
    )


class ScoreTable:
    """Scores of a variant by image, in columns of preallocated memory."""

    def __init__(self, capacity: int, levels: Sequence[CoverageLevel], has_unknown: bool) -> None:
        """Allocate the columns.

        Args:
            capacity: Largest number of images.
            levels: Levels of the prediction sets.
            has_unknown: Whether the variant has an output `unknown_score`.
        """
        self.levels = tuple(levels)
        self._count = 0
        self._labels = np.empty(capacity, np.int32)
        self._predicted = np.empty(capacity, np.int32)
        self._ranks = np.empty(capacity, np.int32)
        self._confidences = np.empty(capacity)
        self._label_probabilities = np.empty(capacity)
        self._brier = np.empty(capacity)
        self._set_sizes = np.empty((capacity, len(levels)), np.int32)
        self._unknown_scores = np.empty(capacity) if has_unknown else None

    def add(self, label: int, score: ImageScore) -> None:
        """Append an image."""
        row = self._count
        self._labels[row] = label
        self._predicted[row] = score.predicted
        self._ranks[row] = score.rank
        self._confidences[row] = score.confidence
        self._label_probabilities[row] = score.label_probability
        self._brier[row] = score.brier
        self._set_sizes[row] = score.set_sizes
        if self._unknown_scores is not None and score.unknown_score is not None:
            self._unknown_scores[row] = score.unknown_score
        self._count += 1

    def __len__(self) -> int:
        return self._count

    @property
    def labels(self) -> Indices:
        """True class of each image."""
        return self._labels[: self._count]

    @property
    def predicted(self) -> Indices:
        """Predicted class of each image."""
        return self._predicted[: self._count]

    @property
    def correct(self) -> Booleans:
        """Whether the prediction of each image is correct."""
        correct: Booleans = self.labels == self.predicted
        return correct

    @property
    def confidences(self) -> Floats:
        """Highest probability of each image."""
        return self._confidences[: self._count]

    @property
    def brier(self) -> Floats:
        """Squared error of the probabilities of each image."""
        return self._brier[: self._count]

    @property
    def unknown_scores(self) -> Floats | None:
        """Unknown score of each image; None without that output."""
        return None if self._unknown_scores is None else self._unknown_scores[: self._count]

    def score_top_k(self, k: int) -> Estimate:
        """Return the share of images whose class is among the k most probable ones."""
        return estimate_share(int((self._ranks[: self._count] < k).sum()), self._count)

    def score_prediction_sets(self, class_count: int) -> tuple[PredictionSetEvaluation, ...]:
        """Return the coverage and the sizes of the prediction sets of each level."""
        sizes = self._set_sizes[: self._count]
        probabilities = self._label_probabilities[: self._count]
        return tuple(
            PredictionSetEvaluation(
                coverage_level=level.coverage,
                min_probability=level.min_probability,
                covered=estimate_share(
                    int((probabilities >= level.min_probability).sum()), self._count
                ),
                mean_size=estimate_mean(column.astype(np.float64), 0.0, float(class_count)),
                empty=float((column == 0).mean()),
                single=float((column == 1).mean()),
            )
            for level, column in zip(self.levels, sizes.T, strict=True)
        )

    def score_unknown(self, foreign_scores: Floats | None) -> UnknownEvaluation | None:
        """Return the shares rejected as unknown; None without the output `unknown_score`.

        Args:
            foreign_scores: Unknown scores of images of no known class; None or empty without any.
        """
        scores = self.unknown_scores
        if scores is None:
            return None
        rejected, correct = scores > UNKNOWN_THRESHOLD, self.correct
        unknown_images = None
        if foreign_scores is not None and len(foreign_scores):
            caught = int((foreign_scores > UNKNOWN_THRESHOLD).sum())
            unknown_images = UnknownImages(
                images=len(foreign_scores),
                auroc=estimate_auroc(scores, foreign_scores),
                caught=estimate_share(caught, len(foreign_scores)),
            )
        return UnknownEvaluation(
            threshold=UNKNOWN_THRESHOLD,
            rejected=estimate_share(int(rejected.sum()), len(scores)),
            rejected_mistakes=estimate_optional_share(
                int((rejected & ~correct).sum()), int((~correct).sum())
            ),
            accepted_accuracy=estimate_optional_share(
                int((correct & ~rejected).sum()), int((~rejected).sum())
            ),
            unknown_images=unknown_images,
        )

    def score_groups(
        self, groups: Mapping[str, NDArray[np.str_]], names: Sequence[str]
    ) -> dict[str, dict[str, GroupEvaluation]]:
        """Return the figures of each group: by column or level, then by value.

        Args:
            groups: Value of each image, by column or level.
            names: Names of the classes.
        """
        return {
            key: {
                str(value): self._score_group(np.flatnonzero(values == value), names)
                for value in np.unique(values)
            }
            for key, values in groups.items()
        }

    def _score_group(self, rows: NDArray[np.intp], names: Sequence[str]) -> GroupEvaluation:
        figures = score_classes(self.labels[rows], self.predicted[rows], names)
        scores, rejected = self.unknown_scores, None
        if scores is not None:
            rejected = estimate_share(int((scores[rows] > UNKNOWN_THRESHOLD).sum()), len(rows))
        return GroupEvaluation(len(rows), figures.accuracy, figures.balanced_accuracy, rejected)

    def find_confident_mistakes(self, count: int) -> NDArray[np.intp]:
        """Return the rows of the most confident wrong predictions, the most confident first."""
        wrong = np.flatnonzero(~self.correct)
        order = np.argsort(-self.confidences[wrong], kind="stable")[:count]
        rows: NDArray[np.intp] = wrong[order]
        return rows

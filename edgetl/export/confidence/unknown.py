"""Scores for images of no class, computed from features and logits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from edgetl.core.artifacts.confidence import (
    UNKNOWN_THRESHOLD,
    UnknownDetector,
    UnknownFigures,
    UnknownMethod,
    UnknownRecord,
)
from edgetl.core.statistics import wilson_interval
from edgetl.device.evaluation.metrics import estimate_auroc
from edgetl.export.confidence.prediction_sets import count_uncovered

Floats = NDArray[np.float64]

KNOWN_SHARE = 0.95
"""Share of known images to be at or below the threshold."""
MIN_KNOWN_IMAGES = 20
"""Fewest validation images: with 19 the threshold would be the largest score."""
NEIGHBORS = 5
_MAX_BANK_SIZE = 512
_DIMENSIONS = (16, 128)
"""Fewest and most dimensions of the bank."""
_SIZE_SHARE = 0.07
"""Size of bank and projection as a share of an int8 network, which has a byte per parameter."""
_SHRINKAGE, _INTERMEDIATE_SHRINKAGE = 3.0, 1.0
"""Multiple of the mean variance that is added to the variance of each direction.

With 500 images in 1280 dimensions, the small variances are too small by far.
"""
ENERGY_TEMPERATURE = 3.0
"""Divisor of the logits in the energy: all large logits count, not only the largest."""
_ENERGY_WEIGHT = 0.75
"""Weight of the energy in units of its spread over known images; that of the distance is 1."""
_INTERMEDIATE_WEIGHT = 0.5
"""Weight of the excess of the intermediate distance, in units of its spread over known images."""
_MAX_LEFT_OUT_CLASSES = 5
"""Number of classes left out in turn, the largest ones."""


@dataclass(frozen=True)
class Activations:
    """Values of a network for images."""

    features: Floats
    """Input of the last layer, [images, features]; no columns if the network has none."""
    logits: Floats
    """[images, classes]."""
    intermediate: Floats | None = None
    """Features from within the network, [images, channels]; None if it has no such value."""

    @classmethod
    def concatenate(cls, parts: Sequence[Activations]) -> Activations:
        """Return the images of all parts, which come from one network."""
        intermediate = [part.intermediate for part in parts if part.intermediate is not None]
        return cls(
            np.concatenate([part.features for part in parts]),
            np.concatenate([part.logits for part in parts]),
            np.concatenate(intermediate) if intermediate else None,
        )

    def select(self, rows: NDArray[np.bool_]) -> Activations:
        """Return the images where `rows` [images] is true."""
        intermediate = None if self.intermediate is None else self.intermediate[rows]
        return Activations(self.features[rows], self.logits[rows], intermediate)

    def without_class(self, index: int) -> Activations:
        """Return the same images with the logit of a class removed."""
        return replace(self, logits=np.delete(self.logits, index, 1))


@dataclass(frozen=True)
class FeatureSpace:
    """Whitened space of features, in which distances are measured.

    Features are divided by their norm (Sun et al., 2022), centered and whitened with the shrunk
    covariance C + s I, of which the first principal components are exact. In the remaining
    directions, whose variance is small, C is left out: their part of a distance is that to the
    mean, as in Wang et al. (2022). The projection is rounded to int8.
    """

    projection: NDArray[np.int8]
    """[features, dimensions + 1]; the last column is the mean."""
    projection_scale: NDArray[np.float32]
    """Step of each column of the projection."""
    residual_weights: NDArray[np.float32]
    """Part of each squared coordinate that is not in the residual, [dimensions]."""
    residual_scale: float
    """Inverse variance of the residual directions."""
    mean_square: float
    """Squared norm of the mean."""
    offset: NDArray[np.float32]
    """Coordinates of the mean, [dimensions]."""

    @classmethod
    def fit(cls, features: Floats, shrinkage: float, dimensions: int) -> FeatureSpace:
        """Fit the space to training images.

        Args:
            features: [images, features], two or more images.
            shrinkage: s as a multiple of the mean variance.
            dimensions: most principal components.
        """
        unit = _normalize(features)
        mean = unit.mean(0)
        variances, axes = _principal_components(unit - mean)
        added = max(1e-12, shrinkage * float(variances.sum()) / unit.shape[1])
        variances, axes = variances[:dimensions], axes[:dimensions]
        projection = (axes / np.sqrt(variances + added)[:, None]).T
        codes, scale = _quantize_columns(np.column_stack([projection, mean]))
        # What the graph computes with; the offset follows from it.
        rounded = (codes * scale)[:, :-1].astype(np.float64)
        return cls(
            projection=codes,
            projection_scale=scale,
            residual_weights=((variances + added) / added).astype(np.float32),
            residual_scale=1 / added,
            mean_square=float(mean @ mean),
            offset=(mean @ rounded).astype(np.float32),
        )

    def project(self, features: Floats) -> tuple[Floats, Floats]:
        """Return centered coordinates [images, dimensions] and squared residuals [images]."""
        projected = features @ (self.projection * self.projection_scale).astype(np.float64)
        projected /= np.linalg.norm(features, axis=1, keepdims=True).clip(1e-12)
        coordinates = projected[:, :-1] - self.offset
        squared_norm = 1 - 2 * projected[:, -1] + self.mean_square
        residual = squared_norm * self.residual_scale - (coordinates**2) @ self.residual_weights
        return coordinates, residual

    def distances(self, features: Floats) -> Floats:
        """Return the squared distance to the mean (Lee et al., 2018), [images]."""
        coordinates, residual = self.project(features)
        return np.asarray((coordinates**2).sum(1) + residual)


@dataclass(frozen=True)
class FeatureBank:
    """Training images in a space of features, for distances to their nearest neighbors."""

    space: FeatureSpace
    bank: NDArray[np.int8]
    """Coordinates of training images, [dimensions, images]."""
    bank_scale: NDArray[np.float32]
    """Step of each row of the bank."""
    neighbors: int

    @classmethod
    def fit(cls, features: Floats, parameters: int) -> FeatureBank:
        """Fit the bank to training images.

        Args:
            features: [images, features], two or more images.
            parameters: number of parameters of the network, which limits the size of the bank.
        """
        columns = features.shape[1] + min(len(features), _MAX_BANK_SIZE)
        affordable = int(np.clip(_SIZE_SHARE * parameters / columns, *_DIMENSIONS))
        space = FeatureSpace.fit(features, _SHRINKAGE, affordable)
        selected = features[_spread(len(features), _MAX_BANK_SIZE)]
        coordinates, _ = space.project(selected)
        codes, scale = _quantize_columns(coordinates)
        return cls(space, np.ascontiguousarray(codes.T), scale, min(NEIGHBORS, len(selected)))

    def distances(self, features: Floats) -> Floats:
        """Return the mean squared distance to the nearest neighbors, [images]."""
        coordinates, residual = self.space.project(features)
        bank = (self.bank * self.bank_scale[:, None]).astype(np.float64)
        squares = (coordinates**2).sum(1)[:, None] + (bank**2).sum(0) - 2 * coordinates @ bank
        nearest = np.partition(squares, self.neighbors - 1, axis=1)[:, : self.neighbors]
        return np.asarray(nearest.mean(1) + residual)


@dataclass(frozen=True)
class IntermediateExcess:
    """Distance of intermediate features from those of training images, above a limit.

    Layers within the network still tell apart what the last ones, trained for the classes, do not.
    Only the excess counts, since for images similar to the classes the last layers know more.
    """

    space: FeatureSpace
    limit: float
    """Squared distance that most images of known classes do not exceed."""
    weight: float

    @classmethod
    def fit(cls, train: Floats, validation: Floats, unit: float) -> IntermediateExcess:
        """Fit it to training images, with the limit of validation images.

        Args:
            train: intermediate features, [images, channels], two or more images.
            validation: the same of validation images.
            unit: spread of the other parts of the score over validation images.
        """
        space = FeatureSpace.fit(train, _INTERMEDIATE_SHRINKAGE, _DIMENSIONS[1])
        distances = space.distances(validation)
        limit = float(np.quantile(distances, KNOWN_SHARE))
        return cls(space, limit, _INTERMEDIATE_WEIGHT * unit / _upper_spread(distances))

    def compute(self, features: Floats) -> Floats:
        """Return the weighted excess, [images]."""
        return self.weight * np.maximum(0, self.space.distances(features) - self.limit)


@dataclass(frozen=True)
class UnknownScore:
    """Score of images: weighted parts, scaled so that 0 is the median known image, 1 the threshold."""

    method: UnknownMethod
    bank: FeatureBank | None = None
    """Bank of the distance; None if the method has none."""
    distance_weight: float = 0.0
    energy_weight: float = 0.0
    max_logit_weight: float = 0.0
    constant: float = 0.0
    intermediate: IntermediateExcess | None = None

    def compute(self, activations: Activations) -> Floats:
        """Return the scores, [images]."""
        scores = np.full(len(activations.logits), self.constant)
        if self.bank is not None:
            scores += self.distance_weight * self.bank.distances(activations.features)
        if self.energy_weight:
            scores += self.energy_weight * compute_energy(activations.logits)
        if self.max_logit_weight:
            scores -= self.max_logit_weight * activations.logits.max(1)
        if self.intermediate is not None:
            assert activations.intermediate is not None
            scores += self.intermediate.compute(activations.intermediate)
        return scores

    def scale_to(self, validation: Activations) -> UnknownScore:
        """Return the score with the scale of validation images, all of known classes.

        The threshold is between the two scores around the ceil(0.95 (n + 1))-th of n, so that at
        least 95% of new images of known classes are below it, in expectation (Vovk et al., 2005).
        """
        scores = np.sort(self.compute(validation))
        rank = min(len(scores), len(scores) + 1 - count_uncovered(len(scores), KNOWN_SHARE))
        following = scores[min(rank, len(scores) - 1)]
        threshold = (scores[rank - 1] + following) / 2
        center = float(np.median(scores))
        factor = 1 / max(1e-9, float(threshold) - center)
        intermediate = self.intermediate
        if intermediate is not None:
            intermediate = replace(intermediate, weight=intermediate.weight * factor)
        return replace(
            self,
            distance_weight=self.distance_weight * factor,
            energy_weight=self.energy_weight * factor,
            max_logit_weight=self.max_logit_weight * factor,
            constant=(self.constant - center) * factor,
            intermediate=intermediate,
        )

    def without_intermediate(self) -> UnknownScore:
        """Return the score without intermediate features, to be scaled again."""
        if self.intermediate is None:
            return self
        return replace(self, method="knn+energy", intermediate=None)


def fit_scores(
    train: Activations, validation: Activations, parameters: int
) -> dict[UnknownMethod, UnknownScore]:
    """Fit a score of each method to training images and scale it to validation images.

    In the sum, distance and energy are in units of their spread between the median and the 95th
    percentile of the validation images.

    Args:
        train: training images, two or more.
        validation: validation images, all of known classes.
        parameters: number of parameters of the network.
    """
    scores: dict[UnknownMethod, UnknownScore] = {
        "energy": UnknownScore("energy", energy_weight=1.0),
        "max_logit": UnknownScore("max_logit", max_logit_weight=1.0),
    }
    if train.features.shape[1]:
        scores |= _fit_distances(train, validation, parameters)
    return {method: score.scale_to(validation) for method, score in scores.items()}


def _fit_distances(
    train: Activations, validation: Activations, parameters: int
) -> dict[UnknownMethod, UnknownScore]:
    bank = FeatureBank.fit(train.features, parameters)
    spread = _upper_spread(compute_energy(validation.logits))
    unit = _upper_spread(bank.distances(validation.features))
    weight = _ENERGY_WEIGHT * unit / spread
    total = UnknownScore("knn+energy", bank, distance_weight=1.0, energy_weight=weight)
    if train.intermediate is not None and validation.intermediate is not None:
        intermediate = IntermediateExcess.fit(train.intermediate, validation.intermediate, unit)
        total = replace(total, method="knn+energy+intermediate", intermediate=intermediate)
    return {total.method: total, "knn": UnknownScore("knn", bank, distance_weight=1.0)}


@dataclass(frozen=True)
class LabeledActivations:
    """Activations of images of known classes."""

    activations: Activations
    labels: NDArray[np.int64]
    """True classes, [images]."""

    def split_class(self, index: int) -> tuple[Activations, Activations]:
        """Return the images of other classes and those of a class, without its logit."""
        is_class = self.labels == index
        activations = self.activations.without_class(index)
        return activations.select(~is_class), activations.select(is_class)


@dataclass(frozen=True)
class UnknownModel:
    """A fitted score, with those that do not know a class, which tell how well it is detected."""

    score: UnknownScore
    left_out: Mapping[int, UnknownScore]
    """Scores without one class, by its index."""

    @classmethod
    def fit_methods(
        cls, train: LabeledActivations, validation: LabeledActivations, parameters: int
    ) -> dict[UnknownMethod, UnknownModel]:
        """Fit a model of each method; for the arguments see `fit_scores`."""
        left_out: dict[UnknownMethod, dict[int, UnknownScore]] = defaultdict(dict)
        for index in _largest_classes(train.labels, validation):
            remaining = train.activations.select(train.labels != index).without_class(index)
            others, _ = validation.split_class(index)
            for method, score in fit_scores(remaining, others, parameters).items():
                left_out[method][index] = score
        scores = fit_scores(train.activations, validation.activations, parameters)
        return {method: cls(score, left_out[method]) for method, score in scores.items()}

    def scale_to(self, validation: LabeledActivations) -> UnknownModel:
        """Return the model with the scale of another variant's validation images."""
        left_out = {
            index: score.scale_to(validation.split_class(index)[0])
            for index, score in self.left_out.items()
        }
        return UnknownModel(self.score.scale_to(validation.activations), left_out)

    def without_intermediate(self) -> UnknownModel:
        """Return the model without intermediate features, to be scaled again."""
        left_out = {index: score.without_intermediate() for index, score in self.left_out.items()}
        return UnknownModel(self.score.without_intermediate(), left_out)

    def measure(
        self, validation: LabeledActivations, unknown: Mapping[str, Activations]
    ) -> dict[str, UnknownFigures]:
        """Return figures by kind of unknown image, the classes left out among them."""
        figures = {}
        if self.left_out:
            by_class = [
                _measure_kind(score, *validation.split_class(index))
                for index, score in self.left_out.items()
            ]
            figures["left_out_class"] = _average_figures(by_class)
        for kind, images in unknown.items():
            figures[kind] = _measure_kind(self.score, validation.activations, images)
        return figures


def choose_model(
    train: LabeledActivations,
    validation: LabeledActivations,
    unknown: Mapping[str, Activations],
    parameters: int,
) -> tuple[UnknownModel, UnknownRecord]:
    """Choose the method with the highest mean AUROC over the kinds of unknown images.

    One kind are the validation images of each class in turn, with the class left out of the bank
    and of the logits; the network itself has seen it.

    Args:
        train: training images.
        validation: validation images.
        unknown: images of no class, by kind.
        parameters: number of parameters of the network.
    """
    models = UnknownModel.fit_methods(train, validation, parameters)
    figures = {method: model.measure(validation, unknown) for method, model in models.items()}
    means: dict[UnknownMethod, float] = {
        method: float(np.mean([kind.auroc for kind in by_kind.values()]))
        for method, by_kind in figures.items()
    }
    best = max(means, key=lambda method: means[method])
    record = UnknownRecord(
        detector=UnknownDetector(best, KNOWN_SHARE),
        images=len(validation.labels),
        figures=figures[best],
        candidates={method: means[method] for method in means},
    )
    return models[best], record


def _largest_classes(
    train_labels: NDArray[np.int64], validation: LabeledActivations
) -> Sequence[int]:
    """Return the classes to leave out: those with the most validation images."""
    counts = np.bincount(validation.labels, minlength=validation.activations.logits.shape[1])
    return [
        int(index)
        for index in np.argsort(-counts, kind="stable")[:_MAX_LEFT_OUT_CLASSES]
        if 0 < counts[index] < len(validation.labels) and (train_labels != index).sum() > 1
    ]


def _measure_kind(
    score: UnknownScore, validation: Activations, unknown: Activations
) -> UnknownFigures:
    return measure_scores(score.compute(validation), score.compute(unknown))


def measure_scores(known_scores: Floats, scores: Floats) -> UnknownFigures:
    """Return the figures of scores of known images and of images of no class."""
    auroc = estimate_auroc(known_scores, scores)
    caught = int((scores > UNKNOWN_THRESHOLD).sum())
    return UnknownFigures(
        images=len(scores),
        auroc=auroc.value,
        auroc_interval=auroc.interval,
        caught=caught / len(scores),
        caught_interval=wilson_interval(caught, len(scores)),
    )


def _average_figures(figures: Sequence[UnknownFigures]) -> UnknownFigures:
    """Return the mean over classes; its interval is that of the bounds, which is wide enough."""
    return UnknownFigures(
        images=sum(entry.images for entry in figures),
        auroc=fmean(entry.auroc for entry in figures),
        auroc_interval=(
            fmean(entry.auroc_interval[0] for entry in figures),
            fmean(entry.auroc_interval[1] for entry in figures),
        ),
        caught=fmean(entry.caught for entry in figures),
        caught_interval=(
            fmean(entry.caught_interval[0] for entry in figures),
            fmean(entry.caught_interval[1] for entry in figures),
        ),
    )


def compute_energy(logits: Floats) -> Floats:
    """Return the energy -T log sum exp(logits / T) with T = ENERGY_TEMPERATURE, [images]."""
    scaled = logits / ENERGY_TEMPERATURE
    largest = scaled.max(1)
    sums = np.exp(scaled - largest[:, None]).sum(1)
    return np.asarray(-ENERGY_TEMPERATURE * (largest + np.log(sums)))


def _principal_components(centered: Floats) -> tuple[Floats, Floats]:
    """Return the variances, the largest first, and the unit axes as rows."""
    images, width = centered.shape
    # The smaller of two matrices with the same eigenvalues; a third of the time of an SVD.
    matrix = centered.T @ centered if width <= images else centered @ centered.T
    values, vectors = np.linalg.eigh(matrix / images)
    values, vectors = values[::-1].clip(0), vectors[:, ::-1]
    # At least one, also if all features are equal.
    count = max(1, int((values > 1e-9 * values[0]).sum()))
    values, vectors = values[:count], vectors[:, :count]
    if width > images:
        vectors = centered.T @ vectors / np.sqrt(values * images).clip(1e-12)
    return values, vectors.T


def _normalize(features: Floats) -> Floats:
    return np.asarray(features / np.linalg.norm(features, axis=1, keepdims=True).clip(1e-12))


def _upper_spread(values: Floats) -> float:
    return max(1e-9, float(np.quantile(values, KNOWN_SHARE) - np.median(values)))


def _spread(count: int, limit: int) -> Sequence[int]:
    """Return at most `limit` indices below `count`, evenly spread."""
    if count <= limit:
        return range(count)
    return [int(index) for index in np.linspace(0, count - 1, limit)]


def _quantize_columns(matrix: Floats) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Round each column to symmetric int8; return codes and steps."""
    scale = (np.abs(matrix).max(0).clip(1e-12) / 127).astype(np.float32)
    return np.round(matrix / scale).astype(np.int8), scale

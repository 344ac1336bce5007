"""Results of `edgetl evaluate`: figures of each variant on labeled images, with 95% intervals.

A result file holds the object that `edgetl evaluate --json` prints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Literal

from edgetl.core.artifacts.bench import BenchedModel
from edgetl.core.artifacts.device import DeviceInfo
from edgetl.core.artifacts.evaluation_limits import check_evaluation_limits
from edgetl.core.artifacts.gate import GateResult
from edgetl.core.artifacts.limits import LimitCheck
from edgetl.core.config.evaluate import EvaluationLimits
from edgetl.core.config.split_names import SplitName
from edgetl.core.errors import BenchError, ConfigError
from edgetl.core.files import SCHEMA, read_json
from edgetl.core.paths import RunDirectory, StrPath
from edgetl.core.statistics import wilson_interval
from edgetl.core.typed_json import (
    FieldError,
    JsonObject,
    computed_as,
    in_json,
    parse_as,
    to_json,
)

DifferenceVerdict = Literal["better", "worse", "inconclusive"]
"""Verdict on a paired difference; inconclusive if its interval contains 0."""


@dataclass(frozen=True)
class Estimate:
    """Figure with its 95% interval."""

    value: float
    interval: tuple[float, float] = field(metadata=in_json(key="ci95"))

    @property
    def low(self) -> float:
        """Lower bound of the interval."""
        return self.interval[0]

    @property
    def high(self) -> float:
        """Upper bound of the interval."""
        return self.interval[1]


@dataclass(frozen=True)
class ClassEvaluation:
    """Figures of one class; None where there is nothing to divide by."""

    images: int
    """Images of the class."""
    predicted: int
    """Images predicted as the class."""
    correct: int
    """Images of the class that are predicted as it."""
    precision: Estimate | None
    """None if the class has no images or is never predicted."""
    recall: Estimate | None
    """None if the class has no images."""
    f1: Estimate | None
    """None if the class has no images."""


@dataclass(frozen=True)
class ConfusionCell:
    """Number of images of one class that are predicted as one class; cells of 0 are left out."""

    label: str
    predicted: str
    images: int


@dataclass(frozen=True)
class ReliabilityBin:
    """Images whose highest probability is above `low` and at most `high`."""

    low: float
    high: float
    images: int
    correct: int
    confidence: float
    """Mean of the highest probabilities."""

    @computed_as("accuracy")
    def accuracy(self) -> float:
        """Share of correct predictions."""
        return self.correct / self.images

    @computed_as("accuracy_ci95")
    def accuracy_interval(self) -> tuple[float, float]:
        """95% interval of the accuracy (Wilson)."""
        return wilson_interval(self.correct, self.images)


@dataclass(frozen=True)
class CalibrationEvaluation:
    """Agreement of the probabilities with the accuracy."""

    calibration_error: Estimate
    """Expected calibration error (ECE) of the highest probability in bins of equal width."""
    brier: Estimate
    """Brier score: mean squared error of the probabilities, summed over the classes."""
    mean_confidence: float
    """Mean of the highest probabilities; above the accuracy if the model is overconfident."""
    bins: tuple[ReliabilityBin, ...]
    """Bins with images, for the reliability diagram."""


@dataclass(frozen=True)
class CoveragePoint:
    """Error rate if only the most confident images are answered."""

    coverage: float
    """Share of the images that are answered."""
    min_confidence: float
    """Smallest of their highest probabilities."""
    images: int
    """Images that are answered."""
    risk: float
    """Share of wrong predictions among them; the expected one where confidences are tied."""
    interval: tuple[float, float] = field(metadata=in_json(key="risk_ci95"))
    """95% interval of `risk`."""


@dataclass(frozen=True)
class RiskCoverage:
    """Risk-coverage curve by highest probability (Geifman and El-Yaniv, 2017)."""

    aurc: Estimate
    """Area under the curve: mean risk over all coverages; 0 is best."""
    points: tuple[CoveragePoint, ...]
    """Up to 100 points of the curve, by ascending coverage; the last answers all images."""


@dataclass(frozen=True)
class UnknownImages:
    """Scores of images of no known class."""

    images: int
    auroc: Estimate
    """Probability that such an image has a higher unknown score than an image of a known class."""
    caught: Estimate
    """Share of them that are recognized as unknown: the true positive rate at the threshold."""


@dataclass(frozen=True)
class UnknownEvaluation:
    """Images of known classes that are rejected as unknown, and unknown images that are caught."""

    threshold: float
    """Images with a higher `unknown_score` are unknown."""
    rejected: Estimate
    """Share of the images, all of known classes, that are rejected: the false positive rate at the
    threshold."""
    rejected_mistakes: Estimate | None
    """Share of the wrongly classified images that are rejected; None if there are none."""
    accepted_accuracy: Estimate | None
    """Accuracy on the images that are not rejected; None if all are."""
    unknown_images: UnknownImages | None = None
    """None without images of no known class."""


@dataclass(frozen=True)
class PredictionSetEvaluation:
    """Prediction sets of one coverage level."""

    coverage_level: float
    """Coverage that the sets were made for."""
    min_probability: float
    """A set contains the classes with at least this probability."""
    covered: Estimate
    """Share of the images whose set contains their class."""
    mean_size: Estimate
    """Mean number of classes in a set."""
    empty: float
    """Share of the images whose set is empty."""
    single: float
    """Share of the images whose set contains one class."""

    @computed_as("is_consistent")
    def is_consistent(self) -> bool:
        """Whether the interval of `covered` reaches the coverage level."""
        return self.covered.high >= self.coverage_level


@dataclass(frozen=True)
class GroupEvaluation:
    """Figures of the images of one group."""

    images: int
    accuracy: Estimate
    balanced_accuracy: Estimate
    rejected: Estimate | None = None
    """Share of the images that are rejected as unknown; None without `unknown_score`."""


@dataclass(frozen=True)
class CorruptionEvaluation:
    """Figures of the images after one corruption."""

    kind: str
    severity: int
    """1 to 5."""
    images: int
    accuracy: Estimate
    calibration_error: float
    rejected: Estimate | None = None
    """Share of the images that are rejected as unknown; None without `unknown_score`."""


def average_over_corruptions(entries: Sequence[CorruptionEvaluation]) -> Estimate:
    """Return the mean accuracy over one or more corruptions of the same images.

    The bounds of its interval are the means of their bounds. The standard error of a mean is at most
    the mean of the standard errors, whatever the correlation, so that the interval is wide enough.
    """
    return Estimate(
        fmean(entry.accuracy.value for entry in entries),
        (
            fmean(entry.accuracy.low for entry in entries),
            fmean(entry.accuracy.high for entry in entries),
        ),
    )


@dataclass(frozen=True)
class ConfidentMistake:
    """Wrong prediction with a high probability."""

    path: str
    label: str
    predicted: str
    probability: float


@dataclass(frozen=True)
class EvaluationFigures:
    """Figures of a variant on the images."""

    accuracy: Estimate
    correct: int
    balanced_accuracy: Estimate
    """Mean recall of the classes that have images."""
    macro_f1: Estimate
    """Mean F1 of the classes that have images."""
    top_k: Mapping[str, Estimate]
    """Share of the images whose class is among the k most probable ones, by k."""
    per_class: Mapping[str, ClassEvaluation]
    """By label; all classes of the bundle."""
    confusion: tuple[ConfusionCell, ...]
    calibration: CalibrationEvaluation
    risk_coverage: RiskCoverage
    unknown: UnknownEvaluation | None = None
    """None if the variant has no output `unknown_score`."""
    prediction_sets: tuple[PredictionSetEvaluation, ...] = ()
    groups: Mapping[str, Mapping[str, GroupEvaluation]] = field(default_factory=dict)
    """By column or level, then by value."""
    corruptions: tuple[CorruptionEvaluation, ...] = ()
    mistakes: tuple[ConfidentMistake, ...] = ()
    """The most confident wrong predictions."""

    def confusion_matrix(self, labels: tuple[str, ...]) -> list[list[int]]:
        """Return the counts [true][predicted] in the order of `labels`."""
        positions = {label: index for index, label in enumerate(labels)}
        matrix = [[0] * len(labels) for _ in labels]
        for cell in self.confusion:
            matrix[positions[cell.label]][positions[cell.predicted]] = cell.images
        return matrix


@dataclass(frozen=True)
class VariantEvaluation:
    """One variant of the bundle with its figures."""

    name: str
    precision: str
    file_sha256: str
    gate: GateResult
    """Check on the bundle's golden images on this device."""
    figures: EvaluationFigures | None
    """None if the variant failed the gate."""


@dataclass(frozen=True)
class VariantDifference:
    """Paired difference between two variants on the same images."""

    baseline: str
    candidate: str
    only_baseline: int
    """Images that only the baseline classifies correctly."""
    only_candidate: int
    """Images that only the candidate classifies correctly."""
    equal_labels: int
    """Images that both give the same label, correct or not."""
    difference: Estimate
    """Accuracy of the candidate minus that of the baseline (Agresti and Min, 2005)."""
    p: float
    """Two-sided p-value of McNemar's exact test (1947)."""
    corrected_p: float
    """The p-value corrected for the number of comparisons in this result (Holm, 1979)."""

    @computed_as("verdict")
    def verdict(self) -> DifferenceVerdict:
        """Verdict on the candidate; inconclusive if the interval contains 0."""
        if self.difference.low > 0:
            return "better"
        return "worse" if self.difference.high < 0 else "inconclusive"


@dataclass(frozen=True)
class UnscoredImage:
    """File that was not scored."""

    path: str
    reason: str


@dataclass(frozen=True)
class EvaluatedImages:
    """Labeled images of an evaluation."""

    path: str
    """DATA as it was given."""
    description: str
    """Source of the images, such as `test/ of photos`."""
    split: SplitName | None
    """Split of the data; None if it has none."""
    images: int
    """Images that were scored."""
    per_class: Mapping[str, int]
    """Scored images by label; all classes of the bundle."""
    unscored: tuple[UnscoredImage, ...] = ()
    """Images that could not be read."""
    ignored_classes: Mapping[str, int] = field(default_factory=dict)
    """Images of classes that are not among the bundle's labels, by class."""

    @property
    def missing_classes(self) -> list[str]:
        """Labels without images."""
        return [label for label, count in self.per_class.items() if count == 0]


@dataclass(frozen=True)
class UnknownSource:
    """Folder of images of no known class."""

    path: str
    images: int
    """Images that were scored."""
    unscored: tuple[UnscoredImage, ...] = ()


@dataclass(frozen=True)
class EvaluationResult:
    """Result of one `edgetl evaluate` command."""

    created: str
    """Time of the evaluation, UTC, ISO 8601."""
    edgetl: str
    """Version of edgetl that evaluated."""
    target: str
    """The bundle as it was given."""
    model: BenchedModel
    labels: tuple[str, ...]
    """Class names in the order of the logits."""
    device: DeviceInfo
    provider: str
    threads: int
    data: EvaluatedImages
    variants: tuple[VariantEvaluation, ...]
    comparisons: tuple[VariantDifference, ...] = ()
    """Each variant against the first."""
    unknown_data: UnknownSource | None = None
    """None without images of no known class."""
    limits: EvaluationLimits = field(default_factory=EvaluationLimits)
    """Limits that every variant is checked against."""
    seconds: float = 0.0
    """Duration of decoding and inference."""
    notes: tuple[str, ...] = ()
    path: Path | None = field(default=None, compare=False, metadata=in_json(stored=False))
    """The result file."""

    def __post_init__(self) -> None:
        if not self.variants or not self.labels:
            raise FieldError("there are no variants or no labels")
        labels, names = set(self.labels), {variant.name for variant in self.variants}
        for pair in self.comparisons:
            if not {pair.baseline, pair.candidate} <= names:
                raise FieldError(f"comparisons has {pair.candidate!r}, which is no variant")
        for variant in self.variants:
            figures = variant.figures
            if figures is None:
                continue
            cells = {name for cell in figures.confusion for name in (cell.label, cell.predicted)}
            if figures.per_class.keys() != labels or not cells <= labels:
                raise FieldError(f"the classes of {variant.name} do not match the labels")

    def __repr__(self) -> str:
        names = ", ".join(variant.name for variant in self.variants)
        return f"EvaluationResult({self.target!r}, {names}, path={str(self.path)!r})"

    @property
    def failed_variants(self) -> list[VariantEvaluation]:
        """Variants that failed the gate."""
        return [variant for variant in self.variants if variant.figures is None]

    @property
    def unscored_count(self) -> int:
        """Number of files that could not be read."""
        unknown = () if self.unknown_data is None else self.unknown_data.unscored
        return len(self.data.unscored) + len(unknown)

    @cached_property
    def limit_checks(self) -> list[LimitCheck]:
        """Outcomes of all limits for all variants."""
        return check_evaluation_limits(self, self.limits)

    @computed_as("limit_checks")
    def _stored_limit_checks(self) -> list[LimitCheck]:
        return self.limit_checks

    def to_json(self) -> JsonObject:
        """Return the content of the result file, which `--json` prints as well."""
        return {"schema": SCHEMA, "kind": "evaluation", **to_json(self)}


def read_evaluation(path: StrPath) -> EvaluationResult:
    """Read a result file of `edgetl evaluate`.

    Raises:
        BenchError: The file is missing, is not the result of an evaluation, or is broken.
    """
    path = Path(path)
    content = read_json(path, BenchError, "The result of the evaluation")
    if content.pop("kind", None) != "evaluation":
        raise BenchError(
            f"{path} is not the result of an evaluation. Give a file of `edgetl evaluate`."
        )
    del content["schema"]
    try:
        return replace(parse_as(EvaluationResult, content, "the result"), path=path)
    except (FieldError, ConfigError) as cause:
        raise BenchError(f"{path} is broken: {cause}. Evaluate again.") from cause


def read_run_evaluations(run: RunDirectory) -> list[EvaluationResult]:
    """Read the evaluations of a run; an empty list if it was never evaluated.

    Raises:
        BenchError: A result cannot be read.
    """
    return [read_evaluation(file) for file in sorted(run.evaluation.glob("*.json"))]

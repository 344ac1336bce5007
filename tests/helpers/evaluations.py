"""Synthetic results of `edgetl evaluate`: two variants, groups, unknown images, prediction sets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgetl.core.artifacts.bench import BenchedModel
from edgetl.core.artifacts.confidence import CoverageLevel
from edgetl.core.artifacts.evaluation import (
    ConfidentMistake,
    CorruptionEvaluation,
    EvaluatedImages,
    EvaluationFigures,
    EvaluationResult,
    UnknownSource,
    UnscoredImage,
    VariantEvaluation,
)
from edgetl.core.config.evaluate import EvaluationLimits
from edgetl.device.evaluation.metrics import (
    compare_predictions,
    estimate_share,
    score_classes,
    score_confidence,
)
from edgetl.device.evaluation.scores import ScoreTable, score_image
from tests.helpers.bench_results import GATE, device

LABELS = ("cat", "dog", "fox")
LEVELS = (CoverageLevel(0.9, 0.2), CoverageLevel(0.95, 0.1))
IMAGES = 150


def make_evaluation(
    limits: EvaluationLimits | None = None,
    missing_class: bool = False,
    with_unknown: bool = True,
    with_corruptions: bool = False,
    names: Sequence[str] = LABELS,
) -> EvaluationResult:
    """Return a result with random but fixed figures.

    Args:
        limits: Limits that the result is checked against.
        missing_class: Whether the last class has no images.
        with_unknown: Whether the variants have unknown scores and prediction sets.
        with_corruptions: Whether figures after corruptions are in the result.
        names: Names of the classes.
    """
    generator = np.random.default_rng(0)
    classes = len(names) - missing_class
    labels = generator.integers(0, classes, IMAGES).astype(np.int32)
    logits = generator.normal(0, 1, (IMAGES, len(names))) + 3 * np.eye(len(names))[labels]
    tables = {
        name: _fill_table(labels, logits + generator.normal(0, noise, logits.shape), with_unknown)
        for name, noise in (("fp32", 0.0), ("int8", 0.4))
    }
    sites = np.array([("north", "south")[index % 2] for index in range(IMAGES)])
    counts = {name: int((labels == index).sum()) for index, name in enumerate(names)}
    return EvaluationResult(
        created="2026-11-28T12:00:00+00:00",
        edgetl="0.1.0",
        target="runs/pets",
        model=BenchedModel("mobilenet_v2", "0123456789ab"),
        labels=tuple(names),
        device=device(),
        provider="cpu",
        threads=2,
        data=EvaluatedImages(
            path="pets",
            description="pets/test",
            split="test",
            images=IMAGES,
            per_class=counts,
            unscored=(UnscoredImage("pets/test/cat/7.jpg", "the file is empty (0 bytes)."),),
            ignored_classes={"bird": 4},
        ),
        variants=tuple(
            VariantEvaluation(
                name, name, "ab" * 32, GATE, _make_figures(table, sites, names, with_corruptions)
            )
            for name, table in tables.items()
        ),
        comparisons=compare_predictions(
            {name: table.predicted for name, table in tables.items()}, labels
        ),
        unknown_data=UnknownSource("cars", 60) if with_unknown else None,
        limits=limits or EvaluationLimits(),
        seconds=2.5,
        notes=("No images of: fox.",) if missing_class else (),
    )


def _fill_table(
    labels: NDArray[np.int32], logits: NDArray[np.float64], with_unknown: bool
) -> ScoreTable:
    generator = np.random.default_rng(1)
    exponentials = np.exp(logits)
    probabilities = (exponentials / exponentials.sum(1, keepdims=True)).astype(np.float32)
    levels = LEVELS if with_unknown else ()
    table = ScoreTable(len(labels), levels, with_unknown)
    scores = 0.8 + 0.2 * np.abs(generator.normal(size=len(labels)))
    for label, row, score in zip(labels.tolist(), probabilities, scores, strict=True):
        table.add(label, score_image(row, label, levels, score if with_unknown else None))
    return table


def _make_figures(
    table: ScoreTable, sites: NDArray[np.str_], names: Sequence[str], with_corruptions: bool
) -> EvaluationFigures:
    classes = score_classes(table.labels, table.predicted, names)
    calibration, risk_coverage = score_confidence(table.confidences, table.correct, table.brier)
    unknown_scores = np.random.default_rng(2).normal(1.6, 0.4, 60)
    corruptions = (
        CorruptionEvaluation(
            kind=kind,
            severity=severity,
            images=IMAGES,
            accuracy=estimate_share(classes.correct - step * severity, IMAGES),
            calibration_error=0.02 * severity,
            rejected=estimate_share(3 * severity, IMAGES),
        )
        for kind, step in (("gaussian_noise", 10), ("jpeg_compression", 3))
        for severity in range(1, 6)
    )
    return EvaluationFigures(
        accuracy=classes.accuracy,
        correct=classes.correct,
        balanced_accuracy=classes.balanced_accuracy,
        macro_f1=classes.macro_f1,
        top_k={"2": table.score_top_k(2)},
        per_class=classes.per_class,
        confusion=classes.confusion,
        calibration=calibration,
        risk_coverage=risk_coverage,
        unknown=table.score_unknown(unknown_scores),
        prediction_sets=table.score_prediction_sets(len(names)),
        groups=table.score_groups({"site": sites}, names),
        corruptions=tuple(corruptions) if with_corruptions else (),
        mistakes=tuple(
            ConfidentMistake(
                f"pets/test/{names[table.labels[row]]}/{row}.jpg",
                names[table.labels[row]],
                names[table.predicted[row]],
                float(table.confidences[row]),
            )
            for row in table.find_confident_mistakes(5).tolist()
        ),
    )

"""Figures against scikit-learn, and the coverage of their intervals in simulations."""

from __future__ import annotations

import tracemalloc
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import sklearn.calibration
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgetl.core.artifacts.evaluation import Estimate
from edgetl.core.statistics import calibration_error, class_scores, macro_f1
from edgetl.device.evaluation import metrics
from edgetl.device.evaluation.metrics import (
    RELIABILITY_BINS,
    assign_bins,
    average_classes,
    compare_predictions,
    compute_calibration_error,
    estimate_auroc,
    estimate_f1,
    estimate_mean,
    estimate_share,
    score_classes,
    score_confidence,
)

EXACT = {"abs": 1e-9, "rel": 0}


def draw_labels(
    images: int, classes: int, accuracy: float, seed: int
) -> tuple[NDArray[np.int32], NDArray[np.int32], list[str]]:
    """Return true and predicted classes; classes have unequal numbers of images."""
    generator = np.random.default_rng(seed)
    shares = generator.dirichlet(np.full(classes, 2.0))
    labels = generator.choice(classes, images, p=shares).astype(np.int32)
    guesses = generator.integers(0, classes, images).astype(np.int32)
    predicted = np.where(generator.random(images) < accuracy, labels, guesses)
    return labels, predicted.astype(np.int32), [f"class {index}" for index in range(classes)]


@pytest.mark.parametrize(("images", "classes"), [(7, 2), (220, 5), (400, 30), (3000, 1000)])
def test_class_figures_equal_scikit_learn(images: int, classes: int) -> None:
    labels, predicted, names = draw_labels(images, classes, 0.8, seed=images)
    figures = score_classes(labels, predicted, names)
    present = np.unique(labels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # classes that are never predicted
        precision, recall, f1, support = sklearn.metrics.precision_recall_fscore_support(
            labels, predicted, labels=range(classes), zero_division=0.0
        )
        balanced = sklearn.metrics.balanced_accuracy_score(labels, predicted)
        macro = sklearn.metrics.f1_score(labels, predicted, labels=present, average="macro")
    assert figures.accuracy.value == pytest.approx(
        sklearn.metrics.accuracy_score(labels, predicted), **EXACT
    )
    assert figures.balanced_accuracy.value == pytest.approx(balanced, **EXACT)
    assert figures.macro_f1.value == pytest.approx(macro, **EXACT)
    for index, name in enumerate(names):
        entry = figures.per_class[name]
        assert entry.images == support[index]
        assert entry.predicted == (predicted == index).sum()
        if entry.images == 0:
            assert entry.precision is entry.recall is entry.f1 is None
            continue
        assert entry.recall is not None
        assert entry.f1 is not None
        assert entry.recall.value == pytest.approx(recall[index], **EXACT)
        assert entry.f1.value == pytest.approx(f1[index], **EXACT)
        assert (entry.precision is None) == (entry.predicted == 0)
        if entry.precision is not None:
            assert entry.precision.value == pytest.approx(precision[index], **EXACT)
    matrix = sklearn.metrics.confusion_matrix(labels, predicted, labels=range(classes))
    counts = {(cell.label, cell.predicted): cell.images for cell in figures.confusion}
    assert counts == {
        (names[true], names[guess]): matrix[true, guess] for true, guess in np.argwhere(matrix)
    }


def test_class_figures_equal_those_of_training() -> None:
    labels, predicted, names = draw_labels(300, 4, 0.7, seed=1)
    confusion = [
        [int(((labels == i) & (predicted == j)).sum()) for j in range(4)] for i in range(4)
    ]
    figures = score_classes(labels, predicted, names)
    assert figures.macro_f1.value == pytest.approx(macro_f1(confusion), **EXACT)
    for name, score in zip(names, class_scores(confusion), strict=True):
        entry = figures.per_class[name]
        assert [entry.precision, entry.recall, entry.f1] != [None, None, None]
        assert entry.f1 is not None
        assert entry.f1.value == pytest.approx(score.f1, **EXACT)


def draw_probabilities(
    images: int, classes: int, seed: int, sharpness: float = 2.0
) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    """Return calibrated probabilities [images, classes] and classes drawn from them."""
    generator = np.random.default_rng(seed)
    logits = sharpness * generator.normal(size=(images, classes))
    probabilities = np.exp(logits - logits.max(1, keepdims=True))
    probabilities /= probabilities.sum(1, keepdims=True)
    thresholds = generator.random((images, 1))
    labels = (probabilities.cumsum(1) < thresholds).sum(1).clip(max=classes - 1)
    return probabilities, labels.astype(np.int32)


def score_probabilities(
    probabilities: NDArray[np.float64], labels: NDArray[np.int32]
) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.float64]]:
    truth = np.eye(probabilities.shape[1])[labels]
    correct = probabilities.argmax(1) == labels
    return probabilities.max(1), correct, ((probabilities - truth) ** 2).sum(1)


@pytest.mark.parametrize(("images", "classes"), [(1, 2), (40, 3), (1000, 10)])
def test_calibration_equals_scikit_learn(images: int, classes: int) -> None:
    probabilities, labels = draw_probabilities(images, classes, seed=images)
    confidences, correct, brier = score_probabilities(probabilities, labels)
    calibration, _ = score_confidence(confidences, correct, brier)
    expected = sklearn.metrics.brier_score_loss(
        labels, probabilities, labels=range(classes), scale_by_half=False
    )
    assert calibration.brier.value == pytest.approx(expected, **EXACT)
    accuracy, confidence = sklearn.calibration.calibration_curve(
        correct, confidences, n_bins=RELIABILITY_BINS
    )
    bins = calibration.bins
    assert [entry.accuracy for entry in bins] == pytest.approx(accuracy, **EXACT)
    assert [entry.confidence for entry in bins] == pytest.approx(confidence, **EXACT)
    weights = np.array([entry.images for entry in bins]) / images
    ece = float(weights @ np.abs(accuracy - confidence))
    assert calibration.calibration_error.value == pytest.approx(ece, **EXACT)
    assert ece == pytest.approx(calibration_error(confidences.tolist(), correct.tolist()), **EXACT)
    assert calibration.mean_confidence == pytest.approx(confidences.mean(), **EXACT)
    assert sum(entry.images for entry in bins) == images


def test_bins_are_open_on_the_left() -> None:
    edges = np.arange(RELIABILITY_BINS + 1) / RELIABILITY_BINS
    expected = [0, *range(RELIABILITY_BINS)]
    assert assign_bins(edges[[0, 5, 15]]).tolist() == [expected[0], expected[5], expected[15]]
    assert assign_bins(np.array([1e-12, 1.0])).tolist() == [0, RELIABILITY_BINS - 1]


def test_risk_coverage_is_mean_risk_of_most_confident() -> None:
    confidences = np.array([0.6, 0.9, 0.8, 0.7])
    correct = np.array([False, True, True, False])
    _, curve = score_confidence(confidences, correct, np.zeros(4))
    assert [point.risk for point in curve.points] == [0, 0, pytest.approx(1 / 3), 0.5]
    assert [point.min_confidence for point in curve.points] == [0.9, 0.8, 0.7, 0.6]
    assert [point.coverage for point in curve.points] == [0.25, 0.5, 0.75, 1]
    assert curve.aurc.value == pytest.approx((0 + 0 + 1 / 3 + 1 / 2) / 4)


def test_risk_coverage_does_not_depend_on_order_of_ties() -> None:
    generator = np.random.default_rng(0)
    confidences = generator.integers(1, 6, 200) / 5
    correct = generator.random(200) < confidences
    order = generator.permutation(200)
    _, first = score_confidence(confidences, correct, np.zeros(200))
    _, second = score_confidence(confidences[order], correct[order], np.zeros(200))
    assert first.aurc.value == pytest.approx(second.aurc.value, **EXACT)
    assert [point.risk for point in first.points] == pytest.approx(
        [point.risk for point in second.points], **EXACT
    )
    assert len(first.points) == 100
    assert first.points[-1].risk == pytest.approx(1 - correct.mean(), **EXACT)


@pytest.mark.parametrize("decimals", [0, 1, 8])
def test_auroc_equals_scikit_learn(decimals: int) -> None:
    generator = np.random.default_rng(decimals)
    known_scores = generator.normal(0, 1, 150).round(decimals)
    unknown_scores = generator.normal(1, 2, 70).round(decimals)
    truth = np.repeat([0, 1], [150, 70])
    expected = sklearn.metrics.roc_auc_score(truth, np.concatenate([known_scores, unknown_scores]))
    assert estimate_auroc(known_scores, unknown_scores).value == pytest.approx(expected, **EXACT)


def test_perfect_figures_keep_an_interval() -> None:
    labels = np.repeat(np.arange(5), 20).astype(np.int32)
    figures = score_classes(labels, labels, list("abcde"))
    calibration, curve = score_confidence(np.full(100, 0.999), np.full(100, True), np.zeros(100))
    for estimate in (figures.accuracy, figures.balanced_accuracy, figures.macro_f1):
        assert estimate.value == estimate.high == 1
        assert 0.9 < estimate.low < 0.985
    assert calibration.calibration_error.value == pytest.approx(0.001)
    # 3.7% of mistakes are compatible with none among 100.
    assert calibration.calibration_error.high == pytest.approx(0.036, abs=0.001)
    assert (curve.aurc.value, curve.aurc.low) == (0, 0)
    assert curve.aurc.high == pytest.approx(0.037, abs=0.001)
    auroc = estimate_auroc(np.zeros(100), np.ones(50))
    assert auroc.value == auroc.high == 1
    assert 0.95 < auroc.low < 1


@given(st.integers(1, 60), st.integers(2, 8), st.floats(0, 1), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_intervals_contain_their_figure(
    images: int, classes: int, accuracy: float, seed: int
) -> None:
    labels, predicted, names = draw_labels(images, classes, accuracy, seed)
    figures = score_classes(labels, predicted, names)
    generator = np.random.default_rng(seed)
    calibration, curve = score_confidence(
        generator.integers(0, 5, images) / 4, labels == predicted, 2 * generator.random(images)
    )
    scores = generator.integers(0, 4, images) / 2
    estimates: list[Estimate | None] = [
        figures.accuracy,
        figures.balanced_accuracy,
        figures.macro_f1,
        calibration.calibration_error,
        calibration.brier,
        curve.aurc,
        estimate_auroc(scores, scores[: images // 2 + 1] + 0.5),
    ]
    for entry in figures.per_class.values():
        estimates += [entry.precision, entry.recall, entry.f1]
    for estimate in filter(None, estimates):
        assert 0 <= estimate.low <= estimate.value <= estimate.high <= 2
    for point in curve.points:
        assert point.interval[0] <= point.risk <= point.interval[1]


def test_mean_has_interval_of_student() -> None:
    estimate = estimate_mean(np.array([1.0, 2.0, 4.0]), 0.0, 10.0)
    # Student's 97.5% quantile at two degrees of freedom is 4.3027.
    half_width = 4.3027 * np.std([1, 2, 4], ddof=1) / np.sqrt(3)
    assert estimate.interval == pytest.approx((0.0, 7 / 3 + half_width), abs=1e-3)
    assert estimate_mean(np.array([1.5]), 0.0, 2.0) == Estimate(1.5, (0.0, 2.0))


def test_f1_interval_is_transformed_share() -> None:
    low, high = estimate_share(8, 12).interval
    estimate = estimate_f1(correct=8, images=10, predicted=10)
    assert estimate.value == pytest.approx(0.8)
    assert estimate.interval == pytest.approx((2 * low / (1 + low), 2 * high / (1 + high)))


def test_mean_of_classes_adds_distances_in_squares() -> None:
    mean = average_classes([Estimate(0.9, (0.8, 0.94)), Estimate(0.7, (0.6, 0.77))])
    assert mean.value == pytest.approx(0.8)
    assert mean.interval == pytest.approx(
        (0.8 - np.hypot(0.1, 0.1) / 2, 0.8 + np.hypot(0.04, 0.07) / 2)
    )


def test_differences_are_paired_and_against_first() -> None:
    labels = np.zeros(100, np.int32)
    baseline = np.repeat([0, 1], [90, 10]).astype(np.int32)
    better = np.repeat([0, 1, 0], [88, 2, 10]).astype(np.int32)
    equal = baseline * 2
    first, second = compare_predictions({"a": baseline, "b": better, "c": equal}, labels)
    assert (first.baseline, first.candidate) == ("a", "b")
    assert (first.only_baseline, first.only_candidate, first.equal_labels) == (2, 10, 88)
    assert first.difference.value == pytest.approx(0.08)
    assert first.verdict == "better"
    assert first.p == pytest.approx(0.038574, abs=1e-6)  # twice P(X <= 2), X ~ B(12, 1/2)
    assert first.corrected_p == pytest.approx(2 * first.p)
    assert (second.only_baseline, second.only_candidate, second.equal_labels) == (0, 0, 90)
    assert second.verdict == "inconclusive"
    assert compare_predictions({"a": baseline}, labels) == ()


def count_covered(draw: Callable[[int], Estimate], truth: float, repetitions: int) -> float:
    estimates = [draw(seed) for seed in range(repetitions)]
    return float(np.mean([estimate.low <= truth <= estimate.high for estimate in estimates]))


def test_interval_of_calibration_error_covers_truth() -> None:
    """Calibrated probabilities have an error of 0, which a percentile bootstrap never contains."""

    def draw(seed: int) -> Estimate:
        probabilities, labels = draw_probabilities(150, 4, seed)
        return score_confidence(*score_probabilities(probabilities, labels))[0].calibration_error

    assert count_covered(draw, 0.0, 60) >= 0.9


def test_interval_of_larger_calibration_error_covers_truth() -> None:
    def draw_overconfident(images: int, seed: int) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        probabilities, labels = draw_probabilities(images, 4, seed)
        sharpened = probabilities**2 / (probabilities**2).sum(1, keepdims=True)
        return sharpened.max(1), sharpened.argmax(1) == labels

    confidences, correct = draw_overconfident(500_000, 1000)
    truth = compute_calibration_error(assign_bins(confidences), confidences - correct)
    assert truth > 0.1

    def draw(seed: int) -> Estimate:
        confidences, correct = draw_overconfident(200, seed)
        return score_confidence(confidences, correct, confidences)[0].calibration_error

    assert count_covered(draw, truth, 60) >= 0.9


def test_interval_of_macro_f1_covers_truth() -> None:
    matrix = np.array([[0.3, 0.02, 0.01], [0.015, 0.4, 0.01], [0.03, 0.015, 0.2]])
    truth = float(np.mean(2 * np.diag(matrix) / (matrix.sum(0) + matrix.sum(1))))

    def draw(seed: int) -> Estimate:
        cells = np.random.default_rng(seed).choice(9, 80, p=matrix.ravel() / matrix.sum())
        labels, predicted = (cells // 3).astype(np.int32), (cells % 3).astype(np.int32)
        return score_classes(labels, predicted, list("abc")).macro_f1

    assert count_covered(draw, truth, 300) >= 0.94


def test_memory_is_bounded_for_many_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "RESAMPLES", 30)
    generator = np.random.default_rng(0)
    images = 100_000
    confidences, correct = generator.random(images), generator.random(images) < 0.8
    tracemalloc.start()
    score_confidence(confidences, correct, confidences)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100 * 2**20


def test_calibration_error_of_resampled_bins() -> None:
    bins = np.array([0, 0, 3], np.int32)
    assert compute_calibration_error(bins, np.array([0.5, -0.5, 0.3])) == pytest.approx(0.1)

"""Temperature scaling of the probabilities (Guo et al., 2017), with cross-fitted figures."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgetl.core.artifacts.confidence import CalibrationFigures, CalibrationRecord
from edgetl.core.statistics import Z_975
from edgetl.device.evaluation.metrics import score_confidence
from edgetl.device.runtime.golden import softmax

Logits = NDArray[np.float64]
Labels = NDArray[np.int64]

_FOLDS = 10
_MIN_IMAGES = 2 * _FOLDS
"""Fewest images to fit a temperature on."""
_LARGEST_LOG = 3.0
"""Limit of |log temperature|."""
_BISECTIONS = 40


def calibrate(logits: Logits, labels: Labels) -> CalibrationRecord:
    """Fit a temperature on validation images and compare the probabilities with and without it.

    The figures with the temperature are cross-fitted: the images of each of ten folds are scored
    with the temperature of the other nine. The temperature is 1 unless scaling lowers the log loss
    significantly (paired z-test over images at 5%) without raising the calibration error.

    Args:
        logits: logits of a variant, [images, classes].
        labels: true classes, [images].
    """
    before = compute_figures(softmax(logits), labels)
    if len(labels) < _MIN_IMAGES:
        return CalibrationRecord(1.0, len(labels), before, before)
    cross_fitted = np.empty_like(logits)
    folds = _folds(labels)
    for fold in range(_FOLDS):
        held_out = folds == fold
        temperature = fit_temperature(logits[~held_out], labels[~held_out])
        cross_fitted[held_out] = softmax(logits[held_out], temperature)
    after = compute_figures(cross_fitted, labels)
    gains = _log_losses(softmax(logits), labels) - _log_losses(cross_fitted, labels)
    standard_error = float(gains.std(ddof=1)) / len(gains) ** 0.5
    is_significant = float(gains.mean()) > Z_975 * standard_error
    is_applied = is_significant and after.calibration_error <= before.calibration_error
    temperature = fit_temperature(logits, labels) if is_applied else 1.0
    return CalibrationRecord(temperature, len(labels), before, after)


def fit_temperature(logits: Logits, labels: Labels) -> float:
    """Return the temperature with the least log loss.

    The loss is convex in the inverse temperature, so that its derivative is bisected. As in Platt
    (1999), the target of the true class is (n + 1) / (n + 2) instead of 1, which keeps the
    temperature away from 0 if all images are classified correctly.

    Args:
        logits: [images, classes].
        labels: true classes, [images].
    """
    images, classes = logits.shape
    centered = logits - logits.max(1, keepdims=True)
    wrong_share = 1 / (images + 2)
    true_logits = np.take_along_axis(centered, labels[:, None], 1)[:, 0]
    other_logits = (centered.sum(1) - true_logits) / max(1, classes - 1)
    targets = (1 - wrong_share) * true_logits + wrong_share * other_logits
    low, high = -_LARGEST_LOG, _LARGEST_LOG  # of the logarithm of the inverse temperature
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        expected = (softmax(centered * np.exp(middle)) * centered).sum(1)
        if float((expected - targets).mean()) > 0:
            high = middle
        else:
            low = middle
    return float(np.exp(-(low + high) / 2))


def _folds(labels: Labels) -> Labels:
    """Return a fold for each image, so that every class is spread evenly over the folds."""
    folds = np.empty(len(labels), np.int64)
    folds[np.argsort(labels, kind="stable")] = np.arange(len(labels)) % _FOLDS
    return folds


def compute_figures(probabilities: Logits, labels: Labels) -> CalibrationFigures:
    """Return the quality of probabilities [images, classes] for true classes [images]."""
    true_probabilities = np.take_along_axis(probabilities, labels[:, None], 1)[:, 0]
    # |p - y|^2 with the true class as 1: sum of p^2, minus 2 p_true, plus 1.
    brier = np.square(probabilities).sum(1) - 2 * true_probabilities + 1
    correct = probabilities.argmax(1) == labels
    calibration, _ = score_confidence(probabilities.max(1), correct, brier)
    return CalibrationFigures(
        calibration_error=calibration.calibration_error.value,
        interval=calibration.calibration_error.interval,
        log_loss=float(_log_losses(probabilities, labels).mean()),
        brier=float(brier.mean()),
    )


def _log_losses(probabilities: Logits, labels: Labels) -> Logits:
    true_probabilities = np.take_along_axis(probabilities, labels[:, None], 1)[:, 0]
    return np.asarray(-np.log(true_probabilities.clip(1e-300)))

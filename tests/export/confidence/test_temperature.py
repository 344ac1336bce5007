"""Temperature scaling."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from edgetl.device.runtime.golden import softmax
from edgetl.export.confidence.temperature import calibrate, fit_temperature

CLASSES = 5


def _sample(temperature: float, images: int, seed: int = 0):
    """Draw labels from the softmax of logits, and return the logits times `temperature`."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(0, 2, (images, CLASSES))
    labels = np.array([generator.choice(CLASSES, p=row) for row in softmax(logits)])
    return logits * temperature, labels


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 5.0])
def test_fit_temperature_recovers_the_true_one(temperature):
    logits, labels = _sample(temperature, 5000)
    assert fit_temperature(logits, labels) == pytest.approx(temperature, rel=0.06)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), temperature=st.floats(0.3, 6))
def test_fit_temperature_minimizes_the_log_loss(seed, temperature):
    logits, labels = _sample(temperature, 400, seed)

    def loss(log_inverse: float) -> float:
        probabilities = softmax(logits * np.exp(log_inverse))
        return -np.log(probabilities[np.arange(len(labels)), labels]).mean()

    expected = np.exp(-minimize_scalar(loss, bounds=(-3, 3), method="bounded").x)
    # One pseudo-error in 402 images moves the minimum a little.
    assert fit_temperature(logits, labels) == pytest.approx(expected, rel=0.1)


def test_fit_temperature_is_bounded_if_all_images_are_correct():
    labels = np.arange(100) % CLASSES
    temperature = fit_temperature(5.0 * np.eye(CLASSES)[labels], labels)
    confidence = softmax(5.0 * np.eye(CLASSES)[labels] / temperature).max()
    assert confidence < 0.995


def test_calibrate_helps_overconfident_logits():
    record = calibrate(*_sample(3.0, 600))
    assert record.temperature == pytest.approx(3.0, rel=0.2)
    assert record.after.calibration_error < record.before.calibration_error / 2
    assert record.after.log_loss < record.before.log_loss
    low, high = record.after.interval
    assert low <= record.after.calibration_error <= high


@pytest.mark.parametrize("seed", range(5))
def test_calibrate_leaves_calibrated_logits_alone(seed):
    record = calibrate(*_sample(1.0, 400, seed))
    assert record.temperature == 1


def test_calibrate_fits_nothing_to_few_images():
    record = calibrate(*_sample(3.0, 19))
    assert (record.temperature, record.after) == (1, record.before)


def test_calibrate_scores_images_with_the_temperature_of_others():
    logits, labels = _sample(3.0, 600)
    record = calibrate(logits, labels)
    probabilities = softmax(logits / record.temperature)
    fitted = -np.log(probabilities[np.arange(len(labels)), labels]).mean()
    assert record.after.log_loss > fitted

"""Thresholds of prediction sets."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetl.device.runtime.golden import softmax
from edgetl.export.confidence.prediction_sets import conformal_levels


def test_levels_are_order_statistics():
    (level,) = conformal_levels(np.arange(1, 100) / 100, [0.95])
    # The fifth smallest of 99: 100 x 0.05.
    assert level.min_probability == pytest.approx(0.05, rel=1e-3)


def test_levels_contain_all_classes_for_few_images():
    assert conformal_levels(np.linspace(0.5, 1, 18), [0.95])[0].min_probability == 0


@settings(max_examples=50, deadline=None)
@given(count=st.integers(1, 400), coverage=st.floats(0.5, 0.99), seed=st.integers(0, 10**6))
def test_levels_cover_the_images_they_are_from(count, coverage, seed):
    probabilities = np.random.default_rng(seed).random(count)
    (level,) = conformal_levels(probabilities, [coverage])
    assert (probabilities >= level.min_probability).mean() >= coverage


def test_coverage_of_new_images_is_the_nominal_one():
    generator = np.random.default_rng(0)
    covered, total = 0, 0
    for _ in range(200):
        logits = generator.normal(0, 2, (300, 4))
        probabilities = softmax(logits)
        labels = np.array([generator.choice(4, p=row) for row in probabilities])
        true = probabilities[np.arange(300), labels]
        (level,) = conformal_levels(true[:100], [0.9])
        covered += int((true[100:] >= level.min_probability).sum())
        total += 200
    # 1 - 10/101 = 0.901; over 200 draws of 100 images the standard error is 0.002.
    assert 0.894 < covered / total < 0.908

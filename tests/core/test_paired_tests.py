from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from edgetl.core.paired_tests import (
    apply_holm_correction,
    compute_accuracy_difference,
    mcnemar,
    student_cdf,
    student_quantile,
)

answers = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=200)


@given(st.floats(-40, 40), st.floats(1, 500))
def test_student_cdf_matches_scipy(value: float, degrees: float) -> None:
    assert student_cdf(value, degrees) == pytest.approx(stats.t.cdf(value, degrees), abs=1e-7)


@given(st.floats(0.5, 0.9995), st.floats(1, 500))
def test_student_quantile_matches_scipy(share: float, degrees: float) -> None:
    assert student_quantile(share, degrees) == pytest.approx(
        stats.t.ppf(share, degrees), abs=1e-6, rel=1e-6
    )


@given(answers)
def test_mcnemar_matches_scipy_binomial_test(
    pairs: list[tuple[bool, bool]],
) -> None:
    first, second = zip(*pairs, strict=True)
    only_first, only_second, p = mcnemar(first, second)
    assert only_first - only_second == sum(first) - sum(second)
    discordant = only_first + only_second
    expected = stats.binomtest(only_first, discordant).pvalue if discordant else 1.0
    assert p == pytest.approx(expected)


@given(answers, st.integers(1, 4))
def test_difference_is_antisymmetric_within_interval(
    pairs: list[tuple[bool, bool]], seeds: int
) -> None:
    rows = [random.Random(seed).sample(pairs, len(pairs)) for seed in range(seeds)]
    first, second = ([[pair[index] for pair in row] for row in rows] for index in (0, 1))
    forward = compute_accuracy_difference(first, second)
    reverse = compute_accuracy_difference(second, first)
    assert -1 <= forward.low <= forward.value <= forward.high <= 1
    assert (forward.value, forward.low, forward.high) == pytest.approx(
        (-reverse.value, -reverse.high, -reverse.low)
    )
    assert forward.p == pytest.approx(reverse.p)
    assert 0 <= forward.p <= 1
    assert forward.value == pytest.approx(
        sum(map(sum, first)) / seeds / len(pairs) - sum(map(sum, second)) / seeds / len(pairs)
    )


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_correction_is_monotonic(values: list[float]) -> None:
    corrected = apply_holm_correction(values)
    assert all(value <= after <= 1 for value, after in zip(values, corrected, strict=True))
    assert [after for _, after in sorted(zip(values, corrected, strict=True))] == sorted(corrected)
    assert min(corrected) == pytest.approx(min(1.0, min(values) * len(values)))


@pytest.mark.parametrize("seeds", [1, 3])
def test_false_positive_rate_is_bounded(seeds: int) -> None:
    # The classifiers are equally accurate. Images differ in difficulty, and seeds shift accuracy.
    generator = random.Random(5)
    trials = 400
    false_positives = covered = 0
    for _ in range(trials):
        probabilities = [generator.betavariate(4, 1) for _ in range(200)]
        first, second = (
            [
                [generator.random() < min(1.0, max(0.0, p + shift)) for p in probabilities]
                for shift in _seed_shifts(generator, seeds)
            ]
            for _ in range(2)
        )
        difference = compute_accuracy_difference(first, second)
        false_positives += difference.p < 0.05
        covered += difference.low <= 0 <= difference.high
    # The test for one seed does not include the variation between seeds.
    assert false_positives <= (0.07 if seeds > 1 else 0.25) * trials
    assert covered >= (0.93 if seeds > 1 else 0.75) * trials


def test_true_difference_is_detected() -> None:
    generator = random.Random(3)
    detections = 0
    for _ in range(50):
        first, second = (
            [[generator.random() < rate for _ in range(220)] for _ in range(3)]
            for rate in (0.90, 0.72)
        )
        detections += compute_accuracy_difference(first, second).p < 0.05
    assert detections >= 48


def _seed_shifts(generator: random.Random, seeds: int) -> list[float]:
    return [generator.gauss(0, 0.03) for _ in range(seeds)]

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
    decided = only_first + only_second
    assert p == pytest.approx(stats.binomtest(only_first, decided).pvalue if decided else 1.0)


@given(answers, st.integers(1, 4))
def test_difference_is_antisymmetric_within_interval(
    pairs: list[tuple[bool, bool]], seeds: int
) -> None:
    rows = [random.Random(seed).sample(pairs, len(pairs)) for seed in range(seeds)]
    first, second = ([[pair[which] for pair in row] for row in rows] for which in (0, 1))
    one, other = (
        compute_accuracy_difference(first, second),
        compute_accuracy_difference(second, first),
    )
    assert -1 <= one.low <= one.value <= one.high <= 1
    assert (one.value, one.low, one.high) == pytest.approx((-other.value, -other.high, -other.low))
    assert one.p == pytest.approx(other.p)
    assert 0 <= one.p <= 1
    assert one.value == pytest.approx(
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
    """Both are right on the same share of images, some images are harder for both, and every seed moves both."""
    source, alarms, covered, trials = random.Random(5), 0, 0, 400
    for _ in range(trials):
        easy = [source.betavariate(4, 1) for _ in range(200)]
        first, second = (
            [
                [source.random() < min(1.0, max(0.0, chance + shift)) for chance in easy]
                for shift in _shifts(source, seeds)
            ]
            for _ in "ab"
        )
        found = compute_accuracy_difference(first, second)
        alarms += found.p < 0.05
        covered += found.low <= 0 <= found.high
    # One seed's test knows nothing of what another seed would have given.
    assert alarms <= (0.07 if seeds > 1 else 0.25) * trials
    assert covered >= (0.93 if seeds > 1 else 0.75) * trials


def test_true_difference_is_detected() -> None:
    source = random.Random(3)
    found = 0
    for _ in range(50):
        first, second = (
            [[source.random() < rate for _ in range(220)] for _ in range(3)]
            for rate in (0.90, 0.72)
        )
        seen = compute_accuracy_difference(first, second)
        found += seen.p < 0.05
    assert found >= 48


def _shifts(source: random.Random, seeds: int) -> list[float]:
    return [source.gauss(0, 0.03) for _ in range(seeds)]

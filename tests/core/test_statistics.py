from __future__ import annotations

import random
import time
from statistics import median

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetl.core.statistics import (
    MIN_SIGNED_RANK_VALUES,
    PERCENTILE_SUPPORT,
    calibration_error,
    class_scores,
    estimate_location,
    macro_f1,
    median_interval,
    paired_speedup,
    percentile,
    sign_test,
    sign_test_of_counts,
    unpaired_speedup,
    wilson_interval,
)

latencies = st.lists(st.integers(1, 10**10), min_size=1, max_size=200)


@given(latencies, st.sampled_from([50, 90, 95, 99, 25]))
def test_percentile_matches_numpy_when_supported(values: list[int], percent: int) -> None:
    value = percentile(values, percent)
    if len(values) < PERCENTILE_SUPPORT.get(percent, 1):
        assert value is None
    else:
        assert value == pytest.approx(np.percentile(values, percent), rel=1e-9)


@pytest.mark.parametrize(("percent", "fewest"), [(90, 64), (95, 130), (99, 662)])
def test_percentile_needs_enough_values(percent: int, fewest: int) -> None:
    assert percentile(range(fewest - 1), percent) is None
    assert percentile(range(fewest), percent) is not None


@pytest.mark.parametrize(
    ("hits", "total", "low", "high"),
    [
        # Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_interval_matches_newcombe(hits: int, total: int, low: float, high: float) -> None:
    assert wilson_interval(hits, total) == pytest.approx((low, high), abs=6e-5)


@given(st.integers(1, 500).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total))))
def test_wilson_interval_contains_rate_and_is_symmetric(counts: tuple[int, int]) -> None:
    hits, total = counts
    low, high = wilson_interval(hits, total)
    assert 0 <= low <= hits / total <= high <= 1
    assert wilson_interval(total - hits, total) == pytest.approx((1 - high, 1 - low), abs=1e-12)


def test_wilson_interval_of_no_trials_is_full_range() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)


def ratios(baseline: list[float], candidate: list[float]) -> list[float]:
    return [before / after for before, after in zip(baseline, candidate, strict=False)]


medians = st.lists(st.floats(1e3, 1e9), min_size=2, max_size=12)


@settings(max_examples=30)
@given(medians, st.floats(0.1, 10))
def test_constant_ratio_has_point_interval(baseline: list[float], factor: float) -> None:
    speedup = paired_speedup([factor for _ in baseline])
    assert (speedup.ratio, speedup.low, speedup.high) == (
        pytest.approx(factor),
        pytest.approx(factor),
        pytest.approx(factor),
    )


@settings(max_examples=60)
@given(medians, medians)
def test_speedup_interval_contains_ratio_and_inverts(
    baseline: list[float], candidate: list[float]
) -> None:
    for speedup, inverse in (
        (unpaired_speedup(baseline, candidate), unpaired_speedup(candidate, baseline)),
        (paired_speedup(ratios(baseline, candidate)), paired_speedup(ratios(candidate, baseline))),
    ):
        assert speedup.low <= speedup.ratio <= speedup.high
        assert (inverse.ratio, inverse.low, inverse.high) == pytest.approx(
            (1 / speedup.ratio, 1 / speedup.high, 1 / speedup.low)
        )


@given(medians)
def test_median_interval_is_within_range(values: list[float]) -> None:
    low, high = median_interval(values)
    assert low <= high
    if len(values) >= MIN_SIGNED_RANK_VALUES:
        assert min(values) * (1 - 1e-9) <= low
        assert high <= max(values) * (1 + 1e-9)


def test_paired_speedup_is_robust_to_outlier() -> None:
    ratios_without_outlier = [2.0, 2.02, 1.98, 2.01, 1.99, 2.0, 2.03]
    assert paired_speedup([*ratios_without_outlier, 20.0]).ratio == pytest.approx(2.0, rel=0.02)


def test_pairing_removes_shared_drift() -> None:
    drift = [1.0, 1.4, 0.8, 1.3, 0.9, 1.2, 0.7, 1.1]
    baseline = [2.0 * value for value in drift]
    candidate = [1.0 * value for value in drift]
    paired = paired_speedup(ratios(baseline, candidate))
    unpaired = unpaired_speedup(baseline, candidate)
    assert paired.high - paired.low < 1e-9
    assert unpaired.high - unpaired.low > 0.3


@settings(max_examples=40, deadline=None)
@given(st.integers(6, 14), st.integers(0, 10**6))
def test_paired_interval_inverts_scipy_wilcoxon(count: int, seed: int) -> None:
    # SciPy's exact test must reject at 5% outside the interval, but not inside.
    values = np.random.default_rng(seed).normal(0.3, 1, count)
    _, low, high = estimate_location(values.tolist())
    width = high - low
    for inside in (low + 1e-6 * width, high - 1e-6 * width):
        assert scipy.stats.wilcoxon(values - inside, method="exact").pvalue >= 0.05 - 1e-12
    for outside in (low - 1e-6 * width, high + 1e-6 * width):
        assert scipy.stats.wilcoxon(values - outside, method="exact").pvalue < 0.05


@settings(max_examples=40, deadline=None)
@given(st.integers(4, 10), st.integers(4, 10), st.integers(0, 10**6))
def test_unpaired_interval_inverts_scipy_mannwhitneyu(first: int, second: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    before, after = np.exp(generator.normal(0.3, 1, first)), np.exp(generator.normal(0, 1, second))
    speedup = unpaired_speedup(before.tolist(), after.tolist())
    low, high = np.log(speedup.low), np.log(speedup.high)
    width = high - low
    for shift, rejected in (
        (low + 1e-6 * width, False),
        (high - 1e-6 * width, False),
        (low - 1e-6 * width, True),
        (high + 1e-6 * width, True),
    ):
        pvalue = scipy.stats.mannwhitneyu(
            np.log(before) - shift, np.log(after), method="exact"
        ).pvalue
        assert bool(pvalue < 0.05) is rejected


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-10, 10), min_size=2, max_size=5, unique=True))
def test_few_rounds_use_t_interval_with_median(values: list[float]) -> None:
    expected = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.95)
    middle, low, high = estimate_location(values)
    # The table of quantiles has four decimals, and a bound may be near 0.
    width = expected.high - expected.low
    assert (low, high) == pytest.approx(
        (min(expected.low, median(values)), max(expected.high, median(values))),
        rel=1e-3,
        abs=1e-9 + 1e-4 * width,
    )
    assert middle == median(values)


def test_many_rounds_use_normal_approximation() -> None:
    generator = np.random.default_rng(0)
    before, after = np.exp(generator.normal(0.1, 0.1, 60)), np.exp(generator.normal(0, 0.1, 60))
    speedup = unpaired_speedup(before.tolist(), after.tolist())
    # SciPy's normal approximation with continuity correction must agree at both ends.
    for shift, rejected in (
        (np.log(speedup.low) - 1e-3, True),
        (np.log(speedup.high) + 1e-3, True),
        (np.log(speedup.ratio), False),
    ):
        assert (
            bool(scipy.stats.mannwhitneyu(np.log(before) - shift, np.log(after)).pvalue < 0.05)
            is rejected
        )
    identical = unpaired_speedup([1.0, 1.1] * 400, [1.0, 1.1] * 400)
    assert identical.low <= 1 <= identical.high


@pytest.mark.parametrize("spread", [0.01, 0.3])
@pytest.mark.parametrize("rounds", [2, 3, 5, 6, 8, 12])
def test_paired_interval_has_nominal_coverage(rounds: int, spread: float) -> None:
    generator = random.Random(rounds)
    true_speedup, trials = 2.0, 600
    covered = 0
    for _ in range(trials):
        shared = [generator.lognormvariate(0, 0.5) for _ in range(rounds)]
        baseline = [
            factor * generator.lognormvariate(0, spread) * true_speedup for factor in shared
        ]
        candidate = [factor * generator.lognormvariate(0, spread) for factor in shared]
        speedup = paired_speedup(ratios(baseline, candidate))
        covered += speedup.low <= true_speedup <= speedup.high
    # Three standard errors of 600 trials below 95%.
    assert covered / trials >= 0.923


def test_class_scores_of_known_confusion() -> None:
    scores = class_scores([[8, 2], [1, 9]])
    assert (scores[0].precision, scores[0].recall, scores[0].images) == (
        pytest.approx(8 / 9),
        pytest.approx(0.8),
        10,
    )
    assert scores[1].f1 == pytest.approx(2 * 9 / (11 + 10))
    assert macro_f1([[8, 2], [1, 9]]) == pytest.approx((scores[0].f1 + scores[1].f1) / 2)


def test_class_never_predicted_has_zero_scores() -> None:
    scores = class_scores([[5, 0], [5, 0]])
    assert (scores[1].precision, scores[1].recall, scores[1].f1) == (0.0, 0.0, 0.0)


def test_calibration_error_of_known_cases() -> None:
    assert calibration_error([1.0, 1.0], [True, True]) == 0
    assert calibration_error([1.0, 1.0], [True, False]) == pytest.approx(0.5)
    # 0.62 and 0.65 are in the same bin (0.6 to 0.667), 0.9 is in another.
    assert calibration_error([0.62, 0.65, 0.9], [True, False, True]) == pytest.approx(
        (abs(1 - 1.27) + abs(1 - 0.9)) / 3
    )
    assert calibration_error([], []) == 0


@given(
    st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60), st.integers(1, 30)
)
def test_calibration_error_is_at_least_overall_gap(
    images: list[tuple[float, bool]], bins: int
) -> None:
    confidences = [confidence for confidence, _ in images]
    correct = [hit for _, hit in images]
    error = calibration_error(confidences, correct, bins)
    assert -1e-12 <= error <= 1 + 1e-12
    assert error >= abs(sum(confidences) - sum(correct)) / len(images) - 1e-9


@pytest.mark.parametrize(
    ("wins", "losses", "expected"),
    [(6, 0, 0.03125), (5, 0, 0.0625), (5, 1, 0.21875), (0, 6, 0.03125), (3, 3, 1.0), (0, 0, 1.0)],
)
def test_sign_test_matches_tables(wins: int, losses: int, expected: float) -> None:
    baseline = [2.0] * wins + [1.0] * losses + [1.0]
    candidate = [1.0] * wins + [2.0] * losses + [1.0]
    assert sign_test(ratios(baseline, candidate)) == pytest.approx(expected)


def test_sign_test_has_nominal_error_rate() -> None:
    generator = random.Random(0)
    rounds = [
        [(generator.lognormvariate(0, 0.5), generator.lognormvariate(0, 0.5)) for _ in range(6)]
        for _ in range(4000)
    ]
    rejections = sum(
        sign_test([before / after for before, after in pairs]) < 0.05 for pairs in rounds
    )
    assert rejections / len(rounds) == pytest.approx(0.03125, abs=0.01)


@given(st.integers(0, 60), st.integers(0, 60))
def test_sign_test_equals_scipy(wins: int, losses: int) -> None:
    expected = scipy.stats.binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    assert sign_test_of_counts(wins, losses) == pytest.approx(expected, rel=1e-9)


def test_sign_test_of_many_images_takes_no_minutes() -> None:
    start = time.process_time()
    assert sign_test_of_counts(10_000, 9_990) == pytest.approx(0.9492447, abs=1e-6)
    assert time.process_time() - start < 5

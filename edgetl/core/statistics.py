"""Statistics in pure Python, so that devices need no further packages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median, stdev, variance

PERCENTILE_SUPPORT = {50: 1, 90: 64, 95: 130, 99: 662}
"""Fewest latencies that support a percentile, by MLPerf Inference's early-stopping criterion."""
Z_975 = 1.959964
"""97.5% quantile of the normal distribution."""
MIN_SIGNED_RANK_VALUES = 6
"""Fewest values with which the signed-rank test can reach the 5% level."""
_MAX_EXACT_PAIRS = 2500
_T_975 = (math.inf, 12.7062, 4.3027, 3.1824, 2.7764)
"""97.5% quantile of Student's t for 0, 1, 2, ... degrees of freedom."""


def percentile(values: Sequence[float], percent: int) -> float | None:
    """Return a percentile, or None if there are fewer values than PERCENTILE_SUPPORT requires.

    Linear interpolation of order statistics (type 7 of Hyndman and Fan, 1996; numpy's default).
    """
    if len(values) < max(1, PERCENTILE_SUPPORT.get(percent, 1)):
        return None
    ordered = sorted(values)
    position = (len(ordered) - 1) * percent / 100
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def wilson_interval(hits: float, total: int) -> tuple[float, float]:
    """Return the 95% interval of a proportion (Wilson, 1927); (0, 1) for no trials."""
    if total == 0:
        return 0.0, 1.0
    rate = hits / total
    z2 = Z_975**2
    center = (rate + z2 / (2 * total)) / (1 + z2 / total)
    scaled_variance = rate * (1 - rate) / total + z2 / (4 * total * total)
    half_width = Z_975 / (1 + z2 / total) * math.sqrt(scaled_variance)
    # With 0 or `total` hits, the bound equals the rate; rounding must not exclude it.
    return min(rate, max(0.0, center - half_width)), max(rate, min(1.0, center + half_width))


@dataclass(frozen=True)
class ClassScore:
    """Precision, recall and F1 of one class."""

    images: int
    precision: float
    recall: float
    f1: float


def class_scores(confusion: Sequence[Sequence[int]]) -> list[ClassScore]:
    """Return the scores of each class from counts [true][predicted].

    Precision, recall and F1 with a denominator of 0 are 0.
    """
    scores = []
    predictions = [sum(column) for column in zip(*confusion, strict=True)]
    for index, (row, predicted) in enumerate(zip(confusion, predictions, strict=True)):
        hits, images = row[index], sum(row)
        precision = hits / predicted if predicted else 0.0
        recall = hits / images if images else 0.0
        f1 = 2 * hits / (images + predicted) if images + predicted else 0.0
        scores.append(ClassScore(images, precision, recall, f1))
    return scores


def macro_f1(confusion: Sequence[Sequence[int]]) -> float:
    """Return the unweighted mean of the classes' F1."""
    scores = class_scores(confusion)
    return sum(score.f1 for score in scores) / len(scores)


def calibration_error(
    confidences: Sequence[float], correct: Sequence[bool], bins: int = 15
) -> float:
    """Return the expected calibration error: mean |accuracy - confidence| over equal-width bins.

    Source: Naeini et al., 2015; Guo et al., 2017.

    Args:
        confidences: Highest probability of each image, in [0, 1].
        correct: Whether the prediction of each image is correct.
        bins: Number of bins.
    """
    sums: dict[int, list[float]] = {}
    for confidence, hit in zip(confidences, correct, strict=True):
        # Bins are open on the left, as in the papers; a confidence of 0 is in the first bin.
        entry = sums.setdefault(max(0, math.ceil(confidence * bins) - 1), [0.0, 0.0])
        entry[0] += confidence
        entry[1] += hit
    gaps = sum(abs(confidence - hits) for confidence, hits in sums.values())
    return gaps / max(1, len(confidences))


@dataclass(frozen=True)
class Speedup:
    """Speed-up (baseline p50 / candidate p50) with a 95% interval."""

    ratio: float
    low: float
    high: float


def paired_speedup(ratios: Sequence[float]) -> Speedup:
    """Return the speed-up from the ratios of rounds that measured both sides.

    Slowdowns of a whole round cancel out in its ratio. For estimate and interval, computed on
    logarithms, see `estimate_location`.

    Args:
        ratios: Baseline latency over candidate latency in each round, two or more.
    """
    return Speedup(*map(math.exp, estimate_location([math.log(ratio) for ratio in ratios])))


def unpaired_speedup(baseline: Sequence[float], candidate: Sequence[float]) -> Speedup:
    """Return the speed-up from latencies of rounds that did not measure both sides.

    Estimate: median of all differences of logarithms (Hodges and Lehmann, 1963). Interval: inverted
    rank-sum test (Mann and Whitney, 1947), or, with too few rounds for a rank test at 5%, Welch's t
    (1947) with the smaller sample's degrees of freedom.
    """
    before = [math.log(value) for value in baseline]
    after = [math.log(value) for value in candidate]
    differences = sorted(log_before - log_after for log_before in before for log_after in after)
    estimate = median(differences)
    cut = _rank_sum_cut(len(before), len(after))
    if cut is not None:
        return Speedup(*map(math.exp, (estimate, differences[cut], differences[-1 - cut])))
    standard_error = math.sqrt(sum(variance(values) / len(values) for values in (before, after)))
    half_width = _T_975[min(len(before), len(after)) - 1] * standard_error
    center = fmean(before) - fmean(after)
    low, high = min(estimate, center - half_width), max(estimate, center + half_width)
    return Speedup(*map(math.exp, (estimate, low, high)))


def median_interval(medians: Sequence[float]) -> tuple[float, float]:
    """Return the 95% interval of the location of two or more rounds' medians, in their unit.

    It is computed on logarithms, see `estimate_location`.
    """
    _, low, high = estimate_location([math.log(value) for value in medians])
    return math.exp(low), math.exp(high)


def estimate_location(values: Sequence[float], tail: float = 0.025) -> tuple[float, float, float]:
    """Estimate the center of a symmetric distribution from two or more values.

    From six values on, the estimate is the median of all pairwise averages (Hodges and Lehmann,
    1963), which is robust to a single outlier, and the interval inverts the signed-rank test
    (Wilcoxon, 1945), whose coverage is at least the nominal one. Fewer values cannot reach 5% in a
    rank test: the estimate is then the median, and the interval that of Student's t (1908) at 95%,
    widened to contain the median.

    Args:
        values: Sample.
        tail: Largest probability outside the interval at either end, for six or more values.

    Returns:
        Estimate and interval: (center, low, high).
    """
    if len(values) >= MIN_SIGNED_RANK_VALUES:
        averages = sorted(
            (first + second) / 2 for index, first in enumerate(values) for second in values[index:]
        )
        cut = _count_trimmed_ranks(_signed_rank_counts(len(values)), tail) or 0
        return median(averages), averages[cut], averages[-1 - cut]
    half_width = _T_975[len(values) - 1] * stdev(values) / math.sqrt(len(values))
    center, estimate = fmean(values), median(values)
    return estimate, min(estimate, center - half_width), max(estimate, center + half_width)


def _signed_rank_counts(count: int) -> list[int]:
    """Return the null distribution of the signed-rank statistic as counts for 0, 1, 2, ...

    An entry is the number of the 2**count assignments of signs to 1..count with that positive sum.
    """
    counts = [1]
    for rank in range(1, count + 1):
        with_negative_rank = [*counts, *[0] * rank]
        with_positive_rank = [*[0] * rank, *counts]
        counts = [
            negative + positive
            for negative, positive in zip(with_negative_rank, with_positive_rank, strict=True)
        ]
    return counts


def _rank_sum_cut(first: int, second: int) -> int | None:
    """Return the number of sorted differences outside the 95% interval at either end.

    For large samples, the normal approximation is used, because exact counts would take long.
    """
    pairs = first * second
    if pairs > _MAX_EXACT_PAIRS:
        deviation = math.sqrt(pairs * (first + second + 1) / 12)
        return max(0, math.floor(pairs / 2 - 1.96 * deviation) - 1)
    return _count_trimmed_ranks(_rank_sum_counts(first, second))


def _rank_sum_counts(first: int, second: int) -> list[int]:
    """Return the null distribution of the rank-sum statistic as counts for 0, 1, 2, ...

    An entry is the number of arrangements of `first` and `second` values with that many pairs in
    descending order. The entries are the coefficients of the Gaussian binomial: the product of
    (1 - q^(second + i)) / (1 - q^i) for i from 1 to `first`.
    """
    counts = [1] + [0] * (first * second)
    for step in range(1, first + 1):
        for total in range(len(counts) - 1, second + step - 1, -1):
            counts[total] -= counts[total - second - step]
        for total in range(step, len(counts)):
            counts[total] += counts[total - step]
    return counts


def _count_trimmed_ranks(counts: Sequence[int], tail: float = 0.025) -> int | None:
    """Return how many values may be trimmed at either end within probability `tail`.

    None if even the extreme values have a larger probability.
    """
    total, cumulative = sum(counts), 0
    for rank, count in enumerate(counts):
        cumulative += count
        if cumulative > tail * total:
            return rank - 1 if rank else None
    return None


def sign_test(ratios: Sequence[float]) -> float:
    """Return the two-sided p-value of the sign test that ratios are 1 (Dixon and Mood, 1946).

    The test makes no assumption on the distribution of latencies, only that the order within a pair
    is random. Ties are ignored.
    """
    return sign_test_of_counts(
        sum(ratio > 1 for ratio in ratios), sum(ratio < 1 for ratio in ratios)
    )


def sign_test_of_counts(wins: int, losses: int) -> float:
    """Return the two-sided p-value of the sign test, from the binomial distribution."""
    decided = wins + losses
    tail, coefficient = 0, 1
    # Each coefficient follows from the one before: math.comb takes minutes for 10,000 of them.
    for count in range(min(wins, losses) + 1):
        tail += coefficient
        coefficient = coefficient * (decided - count) // (count + 1)
    return min(1.0, float(2 * tail / 2**decided))

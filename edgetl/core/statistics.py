"""Statistics with stated sources; pure Python, so that the device needs nothing more."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median, stdev, variance

PERCENTILE_SUPPORT = {50: 1, 90: 64, 95: 130, 99: 662}
"""Fewest latencies that support a percentile: the least that MLPerf Inference's early-stopping criterion accepts."""
MIN_SIGNED_RANK_VALUES = 6
"""Values from which on the signed-rank test can decide at 5%."""
_MAX_EXACT_PAIRS = 2500
_T_975 = (math.inf, 12.7062, 4.3027, 3.1824, 2.7764)
"""97.5% quantile of Student's t for 0, 1, 2, ... degrees of freedom."""


def percentile(values: Sequence[float], percent: int) -> float | None:
    """The percentile by linear interpolation between order statistics (type 7 of Hyndman and Fan, 1996; numpy's default).

    None where there are fewer values than PERCENTILE_SUPPORT asks for: a tail that was hardly seen is not reported.
    """
    if len(values) < max(1, PERCENTILE_SUPPORT.get(percent, 1)):
        return None
    ordered = sorted(values)
    position = (len(ordered) - 1) * percent / 100
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def wilson_interval(hits: int, total: int, z: float = 1.959964) -> tuple[float, float]:
    """95% interval of a proportion (Wilson, 1927); (0, 1) when nothing was seen."""
    if total == 0:
        return 0.0, 1.0
    rate, z2 = hits / total, z * z
    centre = (rate + z2 / (2 * total)) / (1 + z2 / total)
    half = z / (1 + z2 / total) * math.sqrt(rate * (1 - rate) / total + z2 / (4 * total * total))
    # At 0 and at `total` hits the bound is exactly the rate; rounding must not push it past.
    return min(rate, max(0.0, centre - half)), max(rate, min(1.0, centre + half))


@dataclass(frozen=True)
class ClassScore:
    """How one class was recognised."""

    images: int
    precision: float
    recall: float
    f1: float


def class_scores(confusion: Sequence[Sequence[int]]) -> list[ClassScore]:
    """Precision, recall and F1 per class from counts[true][predicted]; a class never predicted has precision 0."""
    scores = []
    predictions = [sum(column) for column in zip(*confusion, strict=True)]
    for index, (row, predicted) in enumerate(zip(confusion, predictions, strict=True)):
        hits, images = row[index], sum(row)
        precision, recall = hits / predicted if predicted else 0.0, hits / images if images else 0.0
        scores.append(
            ClassScore(
                images,
                precision,
                recall,
                2 * hits / (images + predicted) if images + predicted else 0.0,
            )
        )
    return scores


def macro_f1(confusion: Sequence[Sequence[int]]) -> float:
    """Unweighted mean of the classes' F1."""
    scores = class_scores(confusion)
    return sum(score.f1 for score in scores) / len(scores)


def calibration_error(
    confidences: Sequence[float], correct: Sequence[bool], bins: int = 15
) -> float:
    """Expected calibration error (Naeini et al., 2015; Guo et al., 2017): mean |accuracy - confidence| over bins of equal width.

    Args:
        confidences: highest probability of each image, in [0, 1].
        correct: whether that class was right.
    """
    sums: dict[int, list[float]] = {}
    for confidence, hit in zip(confidences, correct, strict=True):
        # Bins are open on the left, as in the papers; a confidence of 0 falls into the first.
        entry = sums.setdefault(max(0, math.ceil(confidence * bins) - 1), [0.0, 0.0])
        entry[0] += confidence
        entry[1] += hit
    return sum(abs(confidence - hits) for confidence, hits in sums.values()) / max(
        1, len(confidences)
    )


@dataclass(frozen=True)
class Speedup:
    """Baseline p50 / candidate p50 with a 95% interval."""

    ratio: float
    low: float
    high: float


def paired_speedup(ratios: Sequence[float]) -> Speedup:
    """Speed-up from the ratios of rounds in which both ran: what slows a whole round down falls out of its ratio.

    Estimate and interval of their logarithms, see `location`.

    Args:
        ratios: baseline's latency over candidate's, one a round, two or more.
    """
    return Speedup(*map(math.exp, estimate_location([math.log(ratio) for ratio in ratios])))


def unpaired_speedup(baseline: Sequence[float], candidate: Sequence[float]) -> Speedup:
    """As `paired_speedup` for rounds that did not run side by side.

    Median of all differences of logarithms (Hodges and Lehmann, 1963), its interval by inverting the rank-sum test
    (Mann and Whitney, 1947); where there are too few rounds for a rank test at 5%, Welch's t (1947) with the fewest degrees of freedom.
    """
    before, after = ([math.log(value) for value in values] for values in (baseline, candidate))
    differences = sorted(one - other for one in before for other in after)
    middle = median(differences)
    cut = _rank_sum_cut(len(before), len(after))
    if cut is not None:
        return Speedup(*map(math.exp, (middle, differences[cut], differences[-1 - cut])))
    error = math.sqrt(sum(variance(values) / len(values) for values in (before, after)))
    half, centre = _T_975[min(len(before), len(after)) - 1] * error, fmean(before) - fmean(after)
    return Speedup(*map(math.exp, (middle, min(middle, centre - half), max(middle, centre + half))))


def median_interval(medians: Sequence[float]) -> tuple[float, float]:
    """95% interval of what the rounds' medians scatter around (`location` of their logarithms), in their unit; two rounds or more."""
    _, low, high = estimate_location([math.log(value) for value in medians])
    return math.exp(low), math.exp(high)


def estimate_location(values: Sequence[float], tail: float = 0.025) -> tuple[float, float, float]:
    """(centre, low, high) of two or more values from a symmetric distribution; the interval leaves out at most `tail` at either end.

    From six values on the median of all averages of two (Hodges and Lehmann, 1963), which one bad round does not move, with the interval
    that inverts the signed-rank test (Wilcoxon, 1945); it covers at least as often as it says. Fewer values cannot decide a rank test
    at 5%: then the median with Student's t around the mean (1908), 95%, stretched to hold it.
    """
    if len(values) >= MIN_SIGNED_RANK_VALUES:
        averages = sorted(
            (one + other) / 2 for index, one in enumerate(values) for other in values[index:]
        )
        cut = _count_trimmed_ranks(_signed_rank_counts(len(values)), tail) or 0
        return median(averages), averages[cut], averages[-1 - cut]
    half = _T_975[len(values) - 1] * stdev(values) / math.sqrt(len(values))
    centre, middle = fmean(values), median(values)
    return middle, min(middle, centre - half), max(middle, centre + half)


def _signed_rank_counts(count: int) -> list[int]:
    """In how many of the 2**count ways to give 1..count a sign the positive ones add up to 0, 1, 2, ..."""
    ways = [1]
    for rank in range(1, count + 1):
        ways = [
            (ways[total] if total < len(ways) else 0) + (ways[total - rank] if total >= rank else 0)
            for total in range(len(ways) + rank)
        ]
    return ways


def _rank_sum_cut(first: int, second: int) -> int | None:
    """How many of the sorted differences to leave out at either end for 95%; by the normal approximation where counting would take long."""
    pairs = first * second
    if pairs > _MAX_EXACT_PAIRS:
        return max(
            0, math.floor(pairs / 2 - 1.96 * math.sqrt(pairs * (first + second + 1) / 12)) - 1
        )
    return _count_trimmed_ranks(_rank_sum_counts(first, second))


def _rank_sum_counts(first: int, second: int) -> list[int]:
    """In how many arrangements of `first` and `second` values 0, 1, 2, ... pairs are in descending order.

    They are the coefficients of the Gaussian binomial: the product of (1 - q^(second + i)) / (1 - q^i) for i from 1 to `first`.
    """
    counts = [1] + [0] * (first * second)
    for step in range(1, first + 1):
        for total in range(len(counts) - 1, second + step - 1, -1):
            counts[total] -= counts[total - second - step]
        for total in range(step, len(counts)):
            counts[total] += counts[total - step]
    return counts


def _count_trimmed_ranks(counts: Sequence[int], tail: float = 0.025) -> int | None:
    """How many values may be left out at either end; None where even the extremes leave out more than `tail`."""
    total, seen = sum(counts), 0
    for rank, ways in enumerate(counts):
        seen += ways
        if seen > tail * total:
            return rank - 1 if rank else None
    return None


def sign_test(ratios: Sequence[float]) -> float:
    """Two-sided p-value of as many ratios above 1 as there are, if both were alike (Dixon and Mood, 1946).

    It supposes nothing about how latencies are distributed, only that within a pair either could have come first. Ties say nothing.
    """
    wins, losses = sum(ratio > 1 for ratio in ratios), sum(ratio < 1 for ratio in ratios)
    decided = wins + losses
    tail = sum(math.comb(decided, count) for count in range(max(wins, losses), decided + 1))
    return min(1.0, float(2 * tail / 2**decided))

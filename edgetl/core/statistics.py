"""Statistics with stated sources; pure Python, so that the device needs nothing more."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

PERCENTILE_SUPPORT = {50: 1, 90: 64, 95: 130, 99: 662}
"""Fewest latencies that support a percentile: the least that MLPerf Inference's early-stopping criterion accepts."""


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
    for index, row in enumerate(confusion):
        hits, images, predicted = row[index], sum(row), sum(other[index] for other in confusion)
        precision, recall = hits / predicted if predicted else 0.0, hits / images if images else 0.0
        scores.append(ClassScore(images, precision, recall, 2 * hits / (images + predicted) if images + predicted else 0.0))
    return scores


def macro_f1(confusion: Sequence[Sequence[int]]) -> float:
    """Unweighted mean of the classes' F1."""
    scores = class_scores(confusion)
    return sum(score.f1 for score in scores) / len(scores)


def calibration_error(confidences: Sequence[float], correct: Sequence[bool], bins: int = 15) -> float:
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
    return sum(abs(confidence - hits) for confidence, hits in sums.values()) / max(1, len(confidences))


@dataclass(frozen=True)
class Speedup:
    """Baseline p50 / candidate p50 with a 95% interval."""

    ratio: float
    low: float
    high: float


def paired_speedup(baseline: Sequence[float], candidate: Sequence[float], resamples: int = 4000, seed: int = 0) -> Speedup:
    """Ratio of the medians of per-round medians; percentile bootstrap over rounds, kept in pairs (Efron and Tibshirani, 1993).

    Args:
        baseline: one median latency a round.
        candidate: the same rounds' medians of the candidate; any unit, the same for both.
    """
    if len(baseline) != len(candidate):
        raise ValueError("paired rounds need equal numbers")
    rounds = list(zip(baseline, candidate, strict=True))
    generator = random.Random(seed)
    ratios = []
    for _ in range(resamples):
        drawn = generator.choices(rounds, k=len(rounds))
        ratios.append(median(pair[0] for pair in drawn) / median(pair[1] for pair in drawn))
    return _speedup(median(baseline) / median(candidate), ratios)


def sign_test(baseline: Sequence[float], candidate: Sequence[float]) -> float:
    """Two-sided p-value of as many wins as the candidate has over the baseline, pair by pair, if both were alike (Dixon and Mood, 1946).

    It supposes nothing about how latencies are distributed, only that within a pair either could have come first. Ties say nothing.
    """
    wins = sum(other < one for one, other in zip(baseline, candidate, strict=True))
    losses = sum(other > one for one, other in zip(baseline, candidate, strict=True))
    decided = wins + losses
    tail = sum(math.comb(decided, count) for count in range(max(wins, losses), decided + 1))
    return min(1.0, float(2 * tail / 2**decided))


def unpaired_speedup(baseline: Sequence[float], candidate: Sequence[float], resamples: int = 4000, seed: int = 0) -> Speedup:
    """As `paired_speedup` for rounds that did not run side by side: each set is resampled by itself."""
    generator = random.Random(seed)
    ratios = [
        median(generator.choices(baseline, k=len(baseline))) / median(generator.choices(candidate, k=len(candidate)))
        for _ in range(resamples)
    ]
    return _speedup(median(baseline) / median(candidate), ratios)


def _speedup(ratio: float, ratios: list[float]) -> Speedup:
    ratios.sort()
    low, high = ratios[math.floor(0.025 * (len(ratios) - 1))], ratios[math.ceil(0.975 * (len(ratios) - 1))]
    return Speedup(ratio, min(low, ratio), max(high, ratio))

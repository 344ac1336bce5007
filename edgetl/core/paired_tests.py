"""Paired significance tests for two classifiers on the same images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from edgetl.core.statistics import Z_975, sign_test_of_counts

SIGNIFICANCE_LEVEL = 0.05
"""Significance level of p-values corrected for the number of comparisons."""


@dataclass(frozen=True)
class AccuracyDifference:
    """Accuracy of the first classifier minus that of the second, with its 95% interval.

    Accuracies are shares from 0 to 1.
    """

    value: float
    low: float
    """Lower bound of the 95% interval."""
    high: float
    """Upper bound of the 95% interval."""
    p: float
    """Two-sided p-value."""


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> tuple[int, int, float]:
    """McNemar's exact test (1947): the sign test on the images on which they differ.

    Args:
        first: Whether the first classifier is correct on each image.
        second: The same for the second classifier, with images in the same order.

    Returns:
        Number of images that only the first classifies correctly, number that only the second does,
        and the two-sided p-value.
    """
    only_first = sum(a and not b for a, b in zip(first, second, strict=True))
    only_second = sum(b and not a for a, b in zip(first, second, strict=True))
    return only_first, only_second, sign_test_of_counts(only_first, only_second)


def compute_accuracy_difference(
    first: Sequence[Sequence[bool]], second: Sequence[Sequence[bool]]
) -> AccuracyDifference:
    """Compute the difference in accuracy of two classifiers over one or more seeds.

    One seed: McNemar's exact p-value and the interval of Agresti and Min (2005) for paired
    proportions, which does not include the variation between seeds.

    Several seeds: images and seeds are crossed random factors, like cases and readers in diagnostic
    studies (Obuchowski and Rockette, 1995). The variance of the mean difference is
    (MS_images + MS_seeds - MS_rest) / (seeds * images), but at least that of either factor alone;
    the interval uses Student's t with degrees of freedom by Satterthwaite (1946).

    Args:
        first: Whether the first classifier is correct, [seeds][images].
        second: The same for the second classifier, with the same seeds and the same order of images.
    """
    if len(first) == 1:
        return _compare_single_seed(first[0], second[0])
    seeds, images = len(first), len(first[0])
    differences = [
        [int(a) - int(b) for a, b in zip(*rows, strict=True)]
        for rows in zip(first, second, strict=True)
    ]
    mean = sum(map(sum, differences)) / (seeds * images)
    seed_means = [sum(row) / images for row in differences]
    image_means = [sum(column) / seeds for column in zip(*differences, strict=True)]
    ss_total = sum((value - mean) ** 2 for row in differences for value in row)
    ss_seeds = images * sum((value - mean) ** 2 for value in seed_means)
    ss_images = seeds * sum((value - mean) ** 2 for value in image_means)
    sums_of_squares = (ss_seeds, ss_images, max(0.0, ss_total - ss_seeds - ss_images))
    freedom = (seeds - 1, images - 1, (seeds - 1) * (images - 1))
    mean_squares = [
        square / max(1, degrees) for square, degrees in zip(sums_of_squares, freedom, strict=True)
    ]
    combined = max(mean_squares[0] + mean_squares[1] - mean_squares[2], *mean_squares[:2])
    if combined <= 0:
        # All differences are equal, so only the sampling of images contributes to the variance.
        return _compare_single_seed(first[0], second[0])
    degrees = combined**2 / sum(
        square**2 / max(1, count)
        for square, count in zip(mean_squares, freedom, strict=True)
        if square > 0
    )
    standard_error = math.sqrt(combined / (seeds * images))
    half_width = student_quantile(0.975, degrees) * standard_error
    return AccuracyDifference(
        value=mean,
        low=max(-1.0, mean - half_width),
        high=min(1.0, mean + half_width),
        p=2 * (1 - student_cdf(abs(mean) / standard_error, degrees)),
    )


def apply_holm_correction(values: Sequence[float]) -> list[float]:
    """Return p-values corrected for multiple comparisons (Holm, 1979), in the same order."""
    corrected = [0.0] * len(values)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(values)), key=lambda index: values[index])):
        highest = max(highest, min(1.0, (len(values) - rank) * values[index]))
        corrected[index] = highest
    return corrected


def student_cdf(value: float, degrees: float) -> float:
    """Return the cumulative distribution function of Student's t.

    Source: Abramowitz and Stegun, 26.7.1, with the incomplete beta function as a continued fraction
    (26.5.8).
    """
    tail = 0.5 * _incomplete_beta(degrees / 2, 0.5, degrees / (degrees + value * value))
    return 1 - tail if value > 0 else tail


def student_quantile(share: float, degrees: float) -> float:
    """Return the quantile of Student's t; `share` must be at least 0.5."""
    low, high = 0.0, 2.0
    while student_cdf(high, degrees) < share:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        if student_cdf(middle, degrees) < share:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _compare_single_seed(first: Sequence[bool], second: Sequence[bool]) -> AccuracyDifference:
    only_first, only_second, p = mcnemar(first, second)
    images = len(first)
    # Agresti and Min add half an observation to each of the four cells of the table.
    center = (only_first - only_second) / (images + 2)
    variance = max(0.0, (only_first + only_second + 1) / (images + 2) - center**2) / (images + 2)
    half_width = Z_975 * math.sqrt(variance)
    value = (only_first - only_second) / images
    return AccuracyDifference(
        value=value,
        low=min(value, max(-1.0, center - half_width)),
        high=max(value, min(1.0, center + half_width)),
        p=p,
    )


def _incomplete_beta(a: float, b: float, x: float) -> float:
    if x <= 0 or x >= 1:
        return min(1.0, max(0.0, x))
    if x > (a + 1) / (a + b + 2):
        return 1 - _incomplete_beta(b, a, 1 - x)
    log_inverse_beta = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    factor = math.exp(log_inverse_beta + a * math.log(x) + b * math.log(1 - x)) / a
    # Lentz's method; the fraction converges in a few steps on this side of the mean.
    tiny = 1e-300
    fraction, c, d = 1.0, 1.0, 0.0
    for step in range(400):
        half = step // 2
        if step == 0:
            numerator = 1.0
        elif step % 2 == 0:
            numerator = half * (b - half) * x / ((a + 2 * half - 1) * (a + 2 * half))
        else:
            numerator = -(a + half) * (a + b + half) * x / ((a + 2 * half) * (a + 2 * half + 1))
        d = 1 / ((1 + numerator * d) or tiny)
        c = (1 + numerator / c) or tiny
        fraction *= c * d
        if abs(1 - c * d) < 1e-14:
            break
    return factor * (fraction - 1)

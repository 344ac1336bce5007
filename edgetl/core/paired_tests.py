"""Is one classifier better than another? Tests on the same images, of which each answers some rightly."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

SIGNIFICANCE_LEVEL = 0.05
"""Largest p-value, corrected for the number of comparisons, that counts as a difference."""
_Z_975 = 1.959964


@dataclass(frozen=True)
class AccuracyDifference:
    """Accuracy of the first minus that of the second, 0 to 1."""

    value: float
    low: float
    """95% interval."""
    high: float
    p: float
    """Two-sided, of a difference as large where there is none."""


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> tuple[int, int, float]:
    """(images that only the first has right, only the second, exact two-sided p) (McNemar, 1947, by the binomial distribution).

    Args:
        first: for each image whether it was answered rightly.
        second: the same images in the same order.
    """
    only_first = sum(one and not other for one, other in zip(first, second, strict=True))
    only_second = sum(other and not one for one, other in zip(first, second, strict=True))
    decided = only_first + only_second
    tail = sum(
        math.comb(decided, count) for count in range(max(only_first, only_second), decided + 1)
    )
    return only_first, only_second, min(1.0, float(2 * tail / 2**decided))


def compute_accuracy_difference(
    first: Sequence[Sequence[bool]], second: Sequence[Sequence[bool]]
) -> AccuracyDifference:
    """How much more accurate the first is, over seeds [seeds][images]; as many seeds of both, and the same images in the same order.

    One seed: McNemar's exact p, and the interval of Agresti and Min (2005) for paired proportions; how training by another seed would
    have ended is not in it. Several seeds: images and seeds are both drawn by chance and crossed, as cases and readers in studies of
    diagnosis (Obuchowski and Rockette, 1995): the variance of the mean difference is (MS_images + MS_seeds - MS_rest) / (seeds * images),
    never less than with either alone, Student's t with the degrees of freedom of Satterthwaite (1946).
    """
    if len(first) == 1:
        return _compare_single_seed(first[0], second[0])
    seeds, images = len(first), len(first[0])
    table = [
        [int(one) - int(other) for one, other in zip(*rows, strict=True)]
        for rows in zip(first, second, strict=True)
    ]
    mean = sum(map(sum, table)) / (seeds * images)
    of_seeds = [sum(row) / images for row in table]
    of_images = [sum(column) / seeds for column in zip(*table, strict=True)]
    total = sum((value - mean) ** 2 for row in table for value in row)
    between_seeds = images * sum((value - mean) ** 2 for value in of_seeds)
    between_images = seeds * sum((value - mean) ** 2 for value in of_images)
    freedom = (seeds - 1, images - 1, (seeds - 1) * (images - 1))
    mean_squares = [
        square / max(1, degrees)
        for square, degrees in zip(
            (between_seeds, between_images, max(0.0, total - between_seeds - between_images)),
            freedom,
            strict=True,
        )
    ]
    combined = max(mean_squares[0] + mean_squares[1] - mean_squares[2], *mean_squares[:2])
    if (
        combined <= 0
    ):  # the same answers, or the same difference, everywhere: what is left is the chance of the images
        return _compare_single_seed(first[0], second[0])
    degrees = combined**2 / sum(
        square**2 / max(1, count)
        for square, count in zip(mean_squares, freedom, strict=True)
        if square > 0
    )
    error = math.sqrt(combined / (seeds * images))
    half = student_quantile(0.975, degrees) * error
    return AccuracyDifference(
        mean,
        max(-1.0, mean - half),
        min(1.0, mean + half),
        2 * (1 - student_cdf(abs(mean) / error, degrees)),
    )


def apply_holm_correction(values: Sequence[float]) -> list[float]:
    """p-values corrected for their number (Holm, 1979), in the order given."""
    corrected = [0.0] * len(values)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(values)), key=lambda index: values[index])):
        highest = max(highest, min(1.0, (len(values) - rank) * values[index]))
        corrected[index] = highest
    return corrected


def student_cdf(value: float, degrees: float) -> float:
    """Student's t distribution function by the incomplete beta function's continued fraction (Abramowitz and Stegun, 26.5.8 and 26.7.1)."""
    tail = 0.5 * _incomplete_beta(degrees / 2, 0.5, degrees / (degrees + value * value))
    return 1 - tail if value > 0 else tail


def student_quantile(share: float, degrees: float) -> float:
    """The value below which `share` of Student's t lies; `share` is at least one half."""
    low, high = 0.0, 2.0
    while student_cdf(high, degrees) < share:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if student_cdf(middle, degrees) < share else (low, middle)
    return (low + high) / 2


def _compare_single_seed(first: Sequence[bool], second: Sequence[bool]) -> AccuracyDifference:
    only_first, only_second, p = mcnemar(first, second)
    images = len(first)
    # Half an image is added to each of the four fields of the table.
    centre = (only_first - only_second) / (images + 2)
    half = _Z_975 * math.sqrt(
        max(0.0, (only_first + only_second + 1) / (images + 2) - centre**2) / (images + 2)
    )
    value = (only_first - only_second) / images
    return AccuracyDifference(
        value, min(value, max(-1.0, centre - half)), max(value, min(1.0, centre + half)), p
    )


def _incomplete_beta(a: float, b: float, x: float) -> float:
    if x <= 0 or x >= 1:
        return min(1.0, max(0.0, x))
    if x > (a + 1) / (a + b + 2):
        return 1 - _incomplete_beta(b, a, 1 - x)
    front = (
        math.exp(
            math.lgamma(a + b)
            - math.lgamma(a)
            - math.lgamma(b)
            + a * math.log(x)
            + b * math.log(1 - x)
        )
        / a
    )
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
    return front * (fraction - 1)

"""Checks of a benchmark result against limits, for CI: held, broken or undecided."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from edgetl.core.config.bench import Limits
from edgetl.core.statistics import PERCENTILE_SUPPORT

if TYPE_CHECKING:
    from edgetl.core.artifacts.bench import BenchResult
    from edgetl.core.artifacts.bench_rows import BenchRow
    from edgetl.core.artifacts.comparison import RowComparison

LimitOutcome = Literal["held", "broken", "undecided"]


@dataclass(frozen=True)
class LimitCheck:
    """Outcome of one limit for one row of a benchmark or variant of an evaluation."""

    limit: str
    """Name of the option without dashes: `max-regression`."""
    row: str
    """Id of the row, or name of the variant."""
    bound: float
    value: float | None
    """Measured value in the unit of the bound; None if not measured or not supported by the
    data."""
    outcome: LimitOutcome
    why: str
    """Explanation in one sentence."""


def check_limits(result: BenchResult, limits: Limits) -> list[LimitCheck]:
    """Check every limit for every row that it applies to.

    An outcome is decided only if the whole 95% interval is on one side of the bound; on a noisy
    device, the interval is widened first. A limit that applies to no row is undecided.
    """
    limit_kinds = (
        ("max-regression", limits.max_regression, _check_regressions),
        ("max-p99", limits.max_p99_ms, _check_p99),
        ("min-speedup", limits.min_speedup, _check_speedup),
    )
    checks: list[LimitCheck] = []
    for name, bound, check in limit_kinds:
        if bound is not None:
            why = "no measured row to check"
            checks += list(check(result, bound)) or [
                LimitCheck(name, "", bound, None, "undecided", why)
            ]
    if result.is_emulated:
        hint = "; the CPU is emulated: measure on the device"
        return [replace(check, outcome="undecided", why=check.why + hint) for check in checks]
    return checks


def _check_regressions(result: BenchResult, bound: float) -> Iterator[LimitCheck]:
    pairs = {
        pair.candidate: pair
        for pair in result.comparisons
        if pair.earlier_row is not None and pair.earlier_row.same_configuration
    }
    for row in result.rows:
        if row.runtime == "pytorch" or row.has_failed_gate:
            continue
        pair = pairs.get(row.id)
        if pair is None or pair.earlier_row is None:
            why = f"{row.id}: the earlier result lacks this configuration or has too few rounds"
            yield LimitCheck("max-regression", row.id, bound, None, "undecided", why)
            continue
        # A speed-up of r is a regression of 1/r - 1.
        low, high = _widen_interval(pair, result)
        value, best, worst = (1 / ratio - 1 for ratio in (pair.speedup.ratio, high, low))
        outcome = decide_outcome(worst <= bound, best > bound, pair.earlier_row.cross_device)
        why = (
            f"{row.id}: latency changed by {value:+.1%} [{best:+.1%}, {worst:+.1%}], "
            f"limit {bound:+.1%}"
        )
        if pair.earlier_row.cross_device:
            why += "; the earlier result was measured on another device"
        else:
            why += _format_hint(outcome, result.noise.is_noisy)
        yield LimitCheck("max-regression", row.id, bound, value, outcome, why)


def _check_p99(result: BenchResult, bound: float) -> Iterator[LimitCheck]:
    # Only the recommended configuration counts, including its rows with paced arrivals, because
    # that is how it will be used.
    for row in _select_recommended_rows(result):
        p99_ms = row.percentile_ms(99)
        if p99_ms is None:
            count, needed = len(row.latencies_ns), PERCENTILE_SUPPORT[99]
            why = f"{row.id}: p99 needs at least {needed} runs, got {count}; increase --rounds"
            yield LimitCheck("max-p99", row.id, bound, None, "undecided", why)
            continue
        # Noise can only increase latency, so a p99 within the bound is conclusive even on a noisy
        # device.
        exceeded = p99_ms > bound
        outcome = decide_outcome(not exceeded, exceeded, result.noise.is_noisy and exceeded)
        why = f"{row.id}: p99 is {p99_ms:.2f} ms, limit {bound:g} ms"
        why += _format_hint(outcome, result.noise.is_noisy)
        yield LimitCheck("max-p99", row.id, bound, p99_ms, outcome, why)


def _select_recommended_rows(result: BenchResult) -> list[BenchRow]:
    recommendation = result.recommendation
    if recommendation is None:
        return []
    recommended_id = recommendation.latency.row
    return [row for row in result.rows if replace(row, rate=None).id == recommended_id]


def _check_speedup(result: BenchResult, bound: float) -> Iterator[LimitCheck]:
    recommendation = result.recommendation
    pair = None
    if recommendation is not None:
        pair = result.find_eager_comparison(recommendation.latency.row)
    if pair is None:
        why = "no speed-up: eager PyTorch was not measured in the same rounds"
        yield LimitCheck("min-speedup", "", bound, None, "undecided", why)
        return
    low, high = _widen_interval(pair, result)
    outcome = decide_outcome(low >= bound, high < bound, False)
    why = (
        f"{pair.candidate}: speed-up over eager PyTorch is {pair.speedup.ratio:.2f} "
        f"[{low:.2f}, {high:.2f}], limit {bound:g}"
    )
    why += _format_hint(outcome, result.noise.is_noisy)
    yield LimitCheck("min-speedup", pair.candidate, bound, pair.speedup.ratio, outcome, why)


def _widen_interval(pair: RowComparison, result: BenchResult) -> tuple[float, float]:
    margin = 1 + result.compute_noise_margin(pair)
    return pair.speedup.low / margin, pair.speedup.high * margin


def decide_outcome(passed: bool, failed: bool, inconclusive: bool) -> LimitOutcome:
    """Return the outcome of a limit: undecided if it is inconclusive, or neither side is certain."""
    if inconclusive or passed == failed:
        return "undecided"
    return "held" if passed else "broken"


def _format_hint(outcome: LimitOutcome, noisy: bool) -> str:
    if outcome != "undecided":
        return ""
    if noisy:
        return "; the device was not quiet: measure again when it is"
    return "; the interval contains the limit: increase --rounds"

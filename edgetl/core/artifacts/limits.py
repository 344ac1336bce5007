"""What a measurement must keep to, for CI: held, broken, or not decided by the data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from edgetl.core.config.bench import Limits

if TYPE_CHECKING:
    from edgetl.core.artifacts.bench import BenchResult
    from edgetl.core.artifacts.comparison import RowComparison

LimitOutcome = Literal["held", "broken", "undecided"]


@dataclass(frozen=True)
class LimitCheck:
    """One limit, held against one row."""

    limit: str
    """As the command line names it: `max-regression`."""
    row: str
    """Id of the row."""
    bound: float
    value: float | None
    """What was measured, in the unit of the bound; None where it was not measured or is withheld."""
    outcome: LimitOutcome
    why: str
    """One sentence for people."""

    def to_json(self) -> dict[str, Any]:
        """As it stands in the result."""
        return vars(self).copy()


def check_limits(result: BenchResult, limits: Limits) -> list[LimitCheck]:
    """Every limit held against every row that it is about; a limit that nothing could be held against is undecided, never kept.

    Decided is only what the whole 95% interval decides, widened where the device was not quiet.
    """
    kinds = (
        ("max-regression", limits.max_regression, _check_regressions),
        ("max-p99", limits.max_p99_ms, _check_p99),
        ("min-speedup", limits.min_speedup, _check_speedup),
    )
    found: list[LimitCheck] = []
    for name, bound, judge in kinds:
        if bound is not None:
            found += list(judge(result, bound)) or [
                LimitCheck(
                    name,
                    "",
                    bound,
                    None,
                    "undecided",
                    "nothing was measured that it could be held against",
                )
            ]
    if result.is_emulated:
        elsewhere = "; the processor is emulated: measure on the device"
        return [
            replace(judged, outcome="undecided", why=judged.why + elsewhere) for judged in found
        ]
    return found


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
            told = f"{row.id}: the earlier result has not measured this configuration, or there are too few rounds"
            yield LimitCheck("max-regression", row.id, bound, None, "undecided", told)
            continue
        # A speed-up of r is a regression of 1/r - 1.
        low, high = _widen_interval(pair, result)
        value, best, worst = (1 / ratio - 1 for ratio in (pair.speedup.ratio, high, low))
        outcome = _decide_outcome(worst <= bound, best > bound, pair.earlier_row.cross_device)
        told = f"{row.id} takes {value:+.1%} [{best:+.1%}, {worst:+.1%}] longer than before, allowed are {bound:.1%}"
        elsewhere = "; it was measured on another device" if pair.earlier_row.cross_device else ""
        yield LimitCheck(
            "max-regression",
            row.id,
            bound,
            value,
            outcome,
            told + (elsewhere or _format_hint(outcome, result.noise.is_noisy)),
        )


def _check_p99(result: BenchResult, bound: float) -> Iterator[LimitCheck]:
    chosen = result.recommendation
    # Of a sweep one configuration is taken; its paced arrivals are how it will be used.
    for row in [
        row
        for row in result.rows
        if chosen is not None and replace(row, rate=None).id == chosen.latency.row
    ]:
        value = row.percentile_ms(99)
        if value is None:
            told = f"{row.id}: p99 is withheld, {len(row.latencies_ns)} runs do not support it: more --rounds"
            yield LimitCheck("max-p99", row.id, bound, None, "undecided", told)
            continue
        # Noise only ever adds: a tail within the bound on a noisy device is within it.
        outcome = _decide_outcome(
            value <= bound, value > bound, result.noise.is_noisy and value > bound
        )
        told = f"{row.id}: p99 is {value:.2f} ms, allowed are {bound:g} ms"
        yield LimitCheck(
            "max-p99",
            row.id,
            bound,
            value,
            outcome,
            told + _format_hint(outcome, result.noise.is_noisy),
        )


def _check_speedup(result: BenchResult, bound: float) -> Iterator[LimitCheck]:
    chosen = result.recommendation
    pair = None if chosen is None else result.find_eager_comparison(chosen.latency.row)
    if pair is None:
        told = "there is no speed-up: eager PyTorch was not measured beside it"
        yield LimitCheck("min-speedup", "", bound, None, "undecided", told)
        return
    low, high = _widen_interval(pair, result)
    outcome = _decide_outcome(low >= bound, high < bound, False)
    told = f"{pair.candidate} is {pair.speedup.ratio:.2f} [{low:.2f}, {high:.2f}] times as fast as eager PyTorch, asked for {bound:g}"
    yield LimitCheck(
        "min-speedup",
        pair.candidate,
        bound,
        pair.speedup.ratio,
        outcome,
        told + _format_hint(outcome, result.noise.is_noisy),
    )


def _widen_interval(pair: RowComparison, result: BenchResult) -> tuple[float, float]:
    widened = 1 + result.compute_noise_margin(pair)
    return pair.speedup.low / widened, pair.speedup.high * widened


def _decide_outcome(held: bool, broken: bool, doubtful: bool) -> LimitOutcome:
    return "undecided" if doubtful or held == broken else "held" if held else "broken"


def _format_hint(outcome: LimitOutcome, noisy: bool) -> str:
    if outcome != "undecided":
        return ""
    return (
        "; the device was not quiet: measure again when it is"
        if noisy
        else "; the interval does not decide: more --rounds"
    )

"""What a measurement must keep to, for CI: held, broken, or not decided by the data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from edgetl.core.options import raise_all

if TYPE_CHECKING:
    from edgetl.core.comparisons import Comparison
    from edgetl.core.results import BenchResult
    from edgetl.core.rows import Row

Outcome = Literal["held", "broken", "undecided"]


@dataclass(frozen=True)
class Limits:
    """Bounds that a result is judged by; None is no bound."""

    max_regression: float | None = None
    """Largest share by which a configuration may be slower than in the earlier result: 0.05 is 5%."""
    max_p99_ms: float | None = None
    """Largest p99 of every ONNX Runtime row in the first scope, milliseconds."""
    min_speedup: float | None = None
    """Least speed-up over eager PyTorch of the recommended configuration."""

    def __post_init__(self) -> None:
        raise_all(
            [
                None if self.max_regression is None or self.max_regression >= 0 else "--max-regression is at least 0%.",
                None if self.max_p99_ms is None or self.max_p99_ms > 0 else "--max-p99 is above 0.",
                None if self.min_speedup is None or self.min_speedup > 0 else "--min-speedup is above 0.",
            ]
        )


@dataclass(frozen=True)
class Judged:
    """One limit, held against one row."""

    limit: str
    """As the command line names it: `max-regression`."""
    row: str
    """Id of the row."""
    bound: float
    value: float | None
    """What was measured, in the unit of the bound; None where it was not measured or is withheld."""
    outcome: Outcome
    why: str
    """One sentence for people."""

    def to_json(self) -> dict[str, Any]:
        """As it stands in the result."""
        return vars(self).copy()


def judge_limits(result: BenchResult, limits: Limits) -> list[Judged]:
    """Every limit held against every row that it is about.

    Decided is only what the whole 95% interval decides, or what a quiet device showed.
    """
    return [*_regressions(result, limits.max_regression), *_tails(result, limits.max_p99_ms), *_speedups(result, limits.min_speedup)]


def _regressions(result: BenchResult, bound: float | None) -> Iterator[Judged]:
    if bound is None:
        return
    for pair in result.comparisons:
        if pair.earlier is None or not pair.earlier.same_configuration:
            continue
        # A speed-up of r is a regression of 1/r - 1.
        value, best, worst = (1 / ratio - 1 for ratio in (pair.speedup.ratio, pair.speedup.high, pair.speedup.low))
        outcome = _decide(worst <= bound, best > bound, pair.verdict == "noisy")
        told = f"{pair.candidate} takes {value:+.1%} [{best:+.1%}, {worst:+.1%}] longer than before, allowed are {bound:.1%}"
        yield Judged("max-regression", pair.candidate, bound, value, outcome, told + _doubt(outcome, pair.verdict == "noisy"))


def _tails(result: BenchResult, bound: float | None) -> Iterator[Judged]:
    if bound is None:
        return
    for row in _own_rows(result):
        value = row.percentile_ms(99)
        if value is None:
            told = f"{row.id}: p99 is withheld, {len(row.latencies_ns)} runs do not support it: more --rounds"
            yield Judged("max-p99", row.id, bound, None, "undecided", told)
            continue
        # Noise only ever adds: a tail within the bound on a noisy device is within it.
        outcome = _decide(value <= bound, value > bound, result.noise.noisy and value > bound)
        told = f"{row.id}: p99 is {value:.2f} ms, allowed are {bound:g} ms"
        yield Judged("max-p99", row.id, bound, value, outcome, told + _doubt(outcome, result.noise.noisy))


def _speedups(result: BenchResult, bound: float | None) -> Iterator[Judged]:
    if bound is None:
        return
    chosen = result.recommendation
    pair = None if chosen is None else _against_eager(result, chosen.latency.row)
    if chosen is None or pair is None:
        yield Judged("min-speedup", "", bound, None, "undecided", "there is no speed-up: eager PyTorch was not measured beside it")
        return
    noisy = pair.verdict == "noisy"
    outcome = _decide(pair.speedup.low >= bound, pair.speedup.high < bound, noisy)
    told = f"{pair.candidate} is {pair.speedup.ratio:.2f} [{pair.speedup.low:.2f}, {pair.speedup.high:.2f}] times as fast as eager PyTorch"
    yield Judged("min-speedup", pair.candidate, bound, pair.speedup.ratio, outcome, f"{told}, asked for {bound:g}{_doubt(outcome, noisy)}")


def _against_eager(result: BenchResult, row_id: str) -> Comparison | None:
    pairs = [pair for pair in result.comparisons if pair.earlier is None and pair.candidate == row_id]
    return next((pair for pair in pairs if result.row(pair.baseline).runtime == "pytorch"), None)


def _own_rows(result: BenchResult) -> list[Row]:
    measured = [row for row in result.rows if row.rounds and row.runtime != "pytorch"]
    first = measured[0].scope if measured else ""
    return [row for row in measured if row.scope == first]


def _decide(held: bool, broken: bool, doubtful: bool) -> Outcome:
    return "undecided" if doubtful or held == broken else "held" if held else "broken"


def _doubt(outcome: Outcome, noisy: bool) -> str:
    if outcome != "undecided":
        return ""
    return "; the device was not quiet: measure again when it is" if noisy else "; the interval does not decide: more --rounds"

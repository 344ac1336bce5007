"""Comparison of two rows: speed-up, 95% interval and verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from edgetl.core.statistics import Speedup, estimate_location
from edgetl.core.typed_json import FieldError, JsonObject, parse_as, to_json

SpeedupVerdict = Literal["faster", "slower", "inconclusive", "noisy"]
SAME_RUN, EARLIER_RESULT = "same run", "earlier result"


@dataclass(frozen=True)
class EarlierRow:
    """Baseline of a comparison from an earlier result, not measured in the same rounds."""

    path: str
    created: str
    cross_device: bool
    """Whether it was measured on another device; the ratio then compares devices, not runtimes."""
    same_model: bool
    """Whether both rows measured the same model."""
    threads: int
    noisy: bool
    p50_ms: float
    round_medians_ns: tuple[float, ...]
    same_configuration: bool = False
    """Whether runtime, variant, scope, provider, batch, threads and rate are the same."""

    @property
    def description(self) -> str:
        """Differences from the candidate, for people: device, model, configuration, noise."""
        parts = [
            "another device" if self.cross_device else "this device",
            "the same model" if self.same_model else "another model",
            "" if self.same_configuration else "another configuration",
            "noisy" if self.noisy else "",
        ]
        return ", ".join(filter(None, parts))

    def __post_init__(self) -> None:
        if not self.round_medians_ns or min(self.round_medians_ns) <= 0 or self.p50_ms <= 0:
            raise FieldError("an earlier row must have latencies, all above 0")


@dataclass(frozen=True)
class Pair:
    """Two rows of a result, measured in the same rounds."""

    baseline: str
    """Id of a row."""
    candidate: str


@dataclass(frozen=True)
class EarlierPair:
    """A row of a result with a baseline from an earlier result."""

    baseline: str
    """Id of the row in the earlier result."""
    candidate: str
    earlier_row: EarlierRow


@dataclass(frozen=True)
class RowComparison:
    """Speed-up of a candidate over a baseline (baseline p50 / candidate p50) with its verdict."""

    baseline: str
    candidate: str
    speedup: Speedup
    verdict: SpeedupVerdict
    earlier_row: EarlierRow | None = None

    def to_json(self) -> JsonObject:
        """Return an entry of the field `comparisons` of a result."""
        return {
            "kind": SAME_RUN if self.earlier_row is None else EARLIER_RESULT,
            "baseline": self.baseline,
            "candidate": self.candidate,
            "speedup": self.speedup.ratio,
            "ci95": [self.speedup.low, self.speedup.high],
            "verdict": self.verdict,
            **({} if self.earlier_row is None else to_json(self.earlier_row)),
        }


def parse_pair(content: Mapping[str, object]) -> Pair | EarlierPair:
    """Parse the output of `RowComparison.to_json`; its statistics are ignored.

    Raises:
        FieldError: A field is missing, unknown or of the wrong type.
    """
    entry = {
        name: value for name, value in content.items() if name not in ("speedup", "ci95", "verdict")
    }
    kind: str = parse_as(
        Literal["same run", "earlier result"],  # type: ignore[arg-type]
        entry.pop("kind", None),
        "kind",
    )
    if kind == SAME_RUN:
        return parse_as(Pair, entry, "a comparison")
    ids = parse_as(
        Pair, {name: entry.pop(name, None) for name in ("baseline", "candidate")}, "a comparison"
    )
    earlier_row = parse_as(EarlierRow, entry, "an earlier row")
    return EarlierPair(ids.baseline, ids.candidate, earlier_row)


_VERDICT_TAIL = 0.01
"""Tail of the 98% interval required for a verdict; 95% would be wrong once in twenty."""
_MIN_VERDICT_ROUNDS = 7
"""Fewest rounds from which a signed-rank test can reach 98%."""


def are_ratios_consistent(ratios: Sequence[float]) -> bool:
    """Return whether the rounds agree enough for a verdict.

    Among eight rounds, at most the one with the smallest effect may disagree. With fewer than seven
    rounds there is no such test, and the result is True.
    """
    if len(ratios) < _MIN_VERDICT_ROUNDS:
        return True
    _, low, high = estimate_location([math.log(ratio) for ratio in ratios], _VERDICT_TAIL)
    return low > 0 or high < 0


def decide_verdict(
    speedup: Speedup, noisy: bool, noise_margin: float, consistent: bool = True
) -> SpeedupVerdict:
    """Return the verdict on a speed-up.

    Args:
        speedup: Ratio with its 95% interval.
        noisy: The device was not quiet. The interval is then widened on both sides by
            `noise_margin` and must still exclude 1.
        noise_margin: Relative uncertainty added by noise: 0.1 is 10%.
        consistent: Whether the rounds agree, see `are_ratios_consistent`.
    """
    margin = 1 + noise_margin if noisy else 1.0
    if not consistent or speedup.low / margin <= 1 <= speedup.high * margin:
        return "noisy" if noisy else "inconclusive"
    return "faster" if speedup.ratio > 1 else "slower"

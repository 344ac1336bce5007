"""Two rows held against each other: the speed-up, its interval, and the verdict that the data allow."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from edgetl.core.statistics import Speedup, estimate_location
from edgetl.core.typed_json import FieldError, parse_as

SpeedupVerdict = Literal["faster", "slower", "inconclusive", "noisy"]
SAME_RUN, EARLIER_RESULT = "same run", "earlier result"


@dataclass(frozen=True)
class EarlierRow:
    """The baseline of a comparison that was not measured side by side."""

    path: str
    created: str
    cross_device: bool
    """Measured on another device: the ratio is between devices, not between runtimes."""
    same_model: bool
    """Both rows hold the same network."""
    same_configuration: bool
    """Both rows were measured alike: runtime, variant, scope, provider, batch, threads and rate."""
    threads: int
    noisy: bool
    p50_ms: float
    round_medians_ns: tuple[float, ...]

    @property
    def description(self) -> str:
        """What a reader of the comparison must know of it."""
        told = [
            "another device" if self.cross_device else "this device",
            "the same model" if self.same_model else "another model",
            "" if self.same_configuration else "another configuration",
            "noisy" if self.noisy else "",
        ]
        return ", ".join(filter(None, told))

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> EarlierRow:
        """Read from a comparison's JSON object, which holds more fields than these."""
        fields = {
            name: content.get(name, False) if name == "same_configuration" else content[name]
            for name in cls.__dataclass_fields__
        }
        row = parse_as(cls, fields, "an earlier row")
        if not row.round_medians_ns or min(row.round_medians_ns) <= 0 or row.p50_ms <= 0:
            raise FieldError("an earlier row has no latencies, or some that are not above 0")
        return row


@dataclass(frozen=True)
class RowComparison:
    """Baseline p50 / candidate p50, with the verdict that the data allow."""

    baseline: str
    candidate: str
    speedup: Speedup
    verdict: SpeedupVerdict
    earlier_row: EarlierRow | None = None

    def to_json(self) -> dict[str, Any]:
        """As it stands in the result."""
        return {
            "kind": SAME_RUN if self.earlier_row is None else EARLIER_RESULT,
            "baseline": self.baseline,
            "candidate": self.candidate,
            "speedup": self.speedup.ratio,
            "ci95": [self.speedup.low, self.speedup.high],
            "verdict": self.verdict,
            **({} if self.earlier_row is None else asdict(self.earlier_row)),
        }


_VERDICT_TAIL = 0.01
"""A verdict wants 98%: an interval of 95% alone would be wrong once in twenty."""
_MIN_VERDICT_ROUNDS = 7
"""Rounds from which on a signed-rank test can be that sure."""


def are_ratios_consistent(ratios: Sequence[float]) -> bool:
    """Whether the rounds say the same clearly enough for a verdict: of eight, at most the one that says least may disagree."""
    if len(ratios) < _MIN_VERDICT_ROUNDS:
        return True
    _, low, high = estimate_location([math.log(ratio) for ratio in ratios], _VERDICT_TAIL)
    return low > 0 or high < 0


def decide_verdict(
    speedup: Speedup, noisy: bool, doubt: float, agreed: bool = True
) -> SpeedupVerdict:
    """What a speed-up's interval decides.

    Args:
        speedup: ratio with its 95% interval.
        noisy: the device was not quiet; then the interval, widened on both sides by `doubt`, must still exclude 1.
        doubt: by which share the noise may have favoured one of the two: 0.1 is 10%.
        agreed: whether the rounds agree, see `agree`.
    """
    widened = 1 + doubt if noisy else 1.0
    if not agreed or speedup.low / widened <= 1 <= speedup.high * widened:
        return "noisy" if noisy else "inconclusive"
    return "faster" if speedup.ratio > 1 else "slower"

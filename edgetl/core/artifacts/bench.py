"""What `edgetl bench` leaves behind: raw latencies, and the statistics that are computed from them on every reading.

A result file holds the same object that `edgetl bench --json` prints. The statistics in it are for people with `jq`;
`read_result` takes only the raw latencies and computes them anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from edgetl.core.artifacts.bench_rows import BenchRow, relative_spread, round_ratios
from edgetl.core.artifacts.comparison import (
    EarlierRow,
    RowComparison,
    are_ratios_consistent,
    decide_verdict,
)
from edgetl.core.artifacts.limits import LimitCheck, check_limits
from edgetl.core.artifacts.recommendation import Recommendation, recommend
from edgetl.core.artifacts.sustained import SustainedResult
from edgetl.core.config.bench import Limits
from edgetl.core.files import SCHEMA
from edgetl.core.statistics import paired_speedup, unpaired_speedup
from edgetl.core.typed_json import parse_as

EAGER_VARIANT = "fp32"
"""The variant of the PyTorch row that speed-ups are taken against: eager, as it was trained."""
MIN_ROUNDS = 2
"""Fewer rounds have no interval."""


_DISTURBANCE_KEYS = ("disturbance", "other_cpu", "steal", "cpu_pressure")


@dataclass(frozen=True)
class Noise:
    """Whether the device was left alone while it was measured."""

    reasons: tuple[str, ...]
    """In words; none means quiet."""
    measured: Mapping[str, Any] = field(default_factory=dict)
    """The figures behind the reasons; None where the device does not tell."""

    @property
    def is_noisy(self) -> bool:
        """Whether there is any reason to doubt."""
        return bool(self.reasons)

    @property
    def disturbance(self) -> float:
        """The largest share of the CPU's time that something else took; 0 where the device does not tell."""
        # Results from before it was recorded have its parts.
        parts = (
            _DISTURBANCE_KEYS[:1]
            if _DISTURBANCE_KEYS[0] in self.measured
            else _DISTURBANCE_KEYS[1:]
        )
        return max(float(self.measured.get(part) or 0.0) for part in parts)

    def to_json(self) -> dict[str, Any]:
        """As it stands in the result."""
        return {
            "verdict": "noisy" if self.is_noisy else "quiet",
            "reasons": list(self.reasons),
            "measured": dict(self.measured),
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Noise:
        """Read what `to_json` gave.

        Raises:
            FieldError: a value of a wrong type.
        """
        noise = parse_as(cls, {name: content[name] for name in ("reasons", "measured")}, "noise")
        for name, value in noise.measured.items():
            if name in _DISTURBANCE_KEYS:
                parse_as(float | None, value, f"noise.measured.{name}")  # type: ignore[arg-type]
        return noise


@dataclass(frozen=True)
class BenchResult:
    """One run of `edgetl bench`."""

    created: str
    """UTC, ISO 8601."""
    edgetl: str
    """The version that measured."""
    target: str
    model: Mapping[str, Any]
    """{"name", "run_id"}; None where a lone ONNX file does not say."""
    device: Mapping[str, Any]
    noise: Noise
    protocol: Mapping[str, Any]
    order: tuple[tuple[str, ...], ...]
    """For each round, in which order the processes ran."""
    rows: tuple[BenchRow, ...]
    pairs: tuple[tuple[str, str], ...]
    """(baseline, candidate) row ids that ran side by side."""
    earlier_pairs: tuple[tuple[str, str, EarlierRow], ...] = ()
    """(its row id, candidate row id, the earlier row)."""
    notes: tuple[str, ...] = ()
    sustained: SustainedResult | None = None
    profiles: Mapping[str, Any] = field(default_factory=dict)
    """Row id to where its time goes: {"runs", "clock", "operators": [{"operator", "nodes", "provider", "us", "share"}], "nodes": [...]}.

    `clock` says what the times are, see `edgetl.core.formatting.PROFILE_CLOCKS`.
    """
    limits: Limits = field(default_factory=Limits)
    """What it must keep to."""
    interrupted: bool = False
    path: Path | None = None
    """The file it lies in."""

    def get_row(self, row_id: str) -> BenchRow:
        """The row of that id."""
        return next(row for row in self.rows if row.id == row_id)

    @property
    def failed_rows(self) -> list[BenchRow]:
        """Rows whose gate was closed."""
        return [row for row in self.rows if row.has_failed_gate]

    @property
    def is_emulated(self) -> bool:
        """Whether another kind of processor played this one: it works, and its times are nobody's."""
        return bool(self.device.get("emulated"))

    @cached_property
    def recommendation(self) -> Recommendation | None:
        """The fastest configurations; None where nothing of ONNX Runtime was timed."""
        return recommend(self.rows)

    @cached_property
    def limit_checks(self) -> list[LimitCheck]:
        """The limits held against what was measured."""
        return check_limits(self, self.limits)

    @cached_property
    def comparisons(self) -> list[RowComparison]:
        """Speed-ups of all pairs that were measured."""
        return list(self._iterate_comparisons())

    def find_eager_comparison(self, row_id: str) -> RowComparison | None:
        """The comparison of a row with eager PyTorch in this run."""
        return next(
            (
                pair
                for pair in self.comparisons
                if pair.earlier_row is None and pair.candidate == row_id and self._is_eager(pair)
            ),
            None,
        )

    def _is_eager(self, pair: RowComparison) -> bool:
        base = self.get_row(pair.baseline)
        return (base.runtime, base.variant) == ("pytorch", EAGER_VARIANT)

    def compute_noise_margin(self, pair: RowComparison) -> float:
        """By which share noise may have favoured one of the two; 0 on a quiet device."""
        earlier = pair.earlier_row
        if earlier is None:
            return self.noise.disturbance if self.noise.is_noisy else 0.0
        if not (self.noise.is_noisy or earlier.noisy):
            return 0.0
        # Measured at different times: nothing says that the device was as fast then as it is now.
        return relative_spread(earlier.round_medians_ns) + self.get_row(pair.candidate).spread

    def _iterate_comparisons(self) -> Iterator[RowComparison]:
        for baseline, candidate in self.pairs:
            before, after = self.get_row(baseline), self.get_row(candidate)
            # An interruption may have left one of them without its last round.
            ratios = round_ratios(before, after)
            if len(ratios) >= MIN_ROUNDS:
                speedup = paired_speedup(ratios)
                decided = (
                    "noisy"
                    if self.is_emulated
                    else decide_verdict(
                        speedup,
                        self.noise.is_noisy,
                        self.noise.disturbance,
                        are_ratios_consistent(ratios),
                    )
                )
                yield RowComparison(baseline, candidate, speedup, decided)
        for baseline, candidate, earlier in self.earlier_pairs:
            after = self.get_row(candidate)
            if min(len(earlier.round_medians_ns), len(after.rounds)) >= MIN_ROUNDS:
                speedup = unpaired_speedup(earlier.round_medians_ns, after.round_medians_ns)
                pair = RowComparison(baseline, candidate, speedup, "inconclusive", earlier)
                decided = decide_verdict(
                    speedup, self.noise.is_noisy or earlier.noisy, self.compute_noise_margin(pair)
                )
                yield replace(pair, verdict="noisy" if self.is_emulated else decided)

    def to_json(self) -> dict[str, Any]:
        """What `edgetl bench --json` prints and the result file holds."""
        return {
            "schema": SCHEMA,
            "kind": "bench",
            "created": self.created,
            "edgetl": self.edgetl,
            "target": self.target,
            "model": dict(self.model),
            "device": dict(self.device),
            "noise": self.noise.to_json(),
            "protocol": dict(self.protocol),
            "order": [list(names) for names in self.order],
            "interrupted": self.interrupted,
            "notes": list(self.notes),
            "rows": [row.to_json() for row in self.rows],
            "comparisons": [comparison.to_json() for comparison in self.comparisons],
            "recommendation": None
            if self.recommendation is None
            else self.recommendation.to_json(),
            "limits": {
                **asdict(self.limits),
                "judged": [judged.to_json() for judged in self.limit_checks],
            },
            "sustained": None if self.sustained is None else self.sustained.to_json(),
            "profiles": dict(self.profiles),
        }

"""Results of `edgetl bench`: raw latencies and the statistics computed from them.

A result file holds the object that `edgetl bench --json` prints. The statistics in it are for use
with `jq`; `read_bench_result` reads only the raw latencies and recomputes the statistics.
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
"""Variant of the PyTorch row that serves as baseline of speed-ups: eager mode, as trained."""
MIN_ROUNDS = 2
"""Fewest rounds from which an interval can be computed."""


_DISTURBANCE_KEYS = ("disturbance", "other_cpu", "steal", "cpu_pressure")


@dataclass(frozen=True)
class Noise:
    """Interference by other load during a measurement."""

    reasons: tuple[str, ...]
    """Signs of interference, for people; empty if the device was quiet."""
    measured: Mapping[str, Any] = field(default_factory=dict)
    """The values behind the reasons; None for those that the device does not report."""

    @property
    def is_noisy(self) -> bool:
        """Whether there are signs of interference."""
        return bool(self.reasons)

    @property
    def disturbance(self) -> float:
        """Largest share of CPU time taken by something else; 0 if the device does not report it."""
        # Results of older versions lack the total and have only its parts.
        total_key, *part_keys = _DISTURBANCE_KEYS
        keys = [total_key] if total_key in self.measured else part_keys
        return max(float(self.measured.get(key) or 0.0) for key in keys)

    def to_json(self) -> dict[str, Any]:
        """Return the field `noise` of a result."""
        return {
            "verdict": "noisy" if self.is_noisy else "quiet",
            "reasons": list(self.reasons),
            "measured": dict(self.measured),
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Noise:
        """Parse the output of `to_json`.

        Raises:
            FieldError: A value has the wrong type.
        """
        noise = parse_as(cls, {name: content[name] for name in ("reasons", "measured")}, "noise")
        for name, value in noise.measured.items():
            if name in _DISTURBANCE_KEYS:
                parse_as(float | None, value, f"noise.measured.{name}")  # type: ignore[arg-type]
        return noise


@dataclass(frozen=True)
class BenchResult:
    """Result of one `edgetl bench` command."""

    created: str
    """Time of the measurement, UTC, ISO 8601."""
    edgetl: str
    """Version of edgetl that measured."""
    target: str
    model: Mapping[str, Any]
    """{"name", "run_id"}; None for values missing from a single ONNX file."""
    device: Mapping[str, Any]
    noise: Noise
    protocol: Mapping[str, Any]
    order: tuple[tuple[str, ...], ...]
    """Order of the processes in each round."""
    rows: tuple[BenchRow, ...]
    pairs: tuple[tuple[str, str], ...]
    """(baseline, candidate) row ids measured in the same rounds."""
    earlier_pairs: tuple[tuple[str, str, EarlierRow], ...] = ()
    """(row id in the earlier result, candidate row id, earlier row)."""
    notes: tuple[str, ...] = ()
    sustained: SustainedResult | None = None
    profiles: Mapping[str, Any] = field(default_factory=dict)
    """Time by operator and by node, by row id.

    {"runs", "clock", "operators": [{"operator", "nodes", "provider", "us", "share"}],
    "nodes": [...]}; for `clock` see `edgetl.core.formatting.PROFILE_CLOCK_DESCRIPTIONS`.
    """
    limits: Limits = field(default_factory=Limits)
    """Limits that the result is checked against."""
    interrupted: bool = False
    path: Path | None = None
    """The result file."""

    def get_row(self, row_id: str) -> BenchRow:
        """Return the row with this id."""
        return next(row for row in self.rows if row.id == row_id)

    @property
    def failed_rows(self) -> list[BenchRow]:
        """Rows that failed the gate."""
        return [row for row in self.rows if row.has_failed_gate]

    @property
    def is_emulated(self) -> bool:
        """Whether the CPU was emulated, so that latencies are not those of a real device."""
        return bool(self.device.get("emulated"))

    @cached_property
    def recommendation(self) -> Recommendation | None:
        """The fastest configurations; None if no ONNX Runtime row was timed."""
        return recommend(self.rows)

    @cached_property
    def limit_checks(self) -> list[LimitCheck]:
        """Outcomes of all limits."""
        return check_limits(self, self.limits)

    @cached_property
    def comparisons(self) -> list[RowComparison]:
        """Speed-ups of all measured pairs."""
        return list(self._iterate_comparisons())

    def find_eager_comparison(self, row_id: str) -> RowComparison | None:
        """Return the comparison of a row with eager PyTorch in this result, or None."""
        return next(
            (
                pair
                for pair in self.comparisons
                if pair.earlier_row is None and pair.candidate == row_id and self._is_eager(pair)
            ),
            None,
        )

    def _is_eager(self, pair: RowComparison) -> bool:
        baseline = self.get_row(pair.baseline)
        return (baseline.runtime, baseline.variant) == ("pytorch", EAGER_VARIANT)

    def compute_noise_margin(self, pair: RowComparison) -> float:
        """Return the relative uncertainty added by noise; 0 on a quiet device."""
        earlier = pair.earlier_row
        if earlier is None:
            return self.noise.disturbance if self.noise.is_noisy else 0.0
        if not (self.noise.is_noisy or earlier.noisy):
            return 0.0
        # The rows were measured at different times, possibly at different speeds of the device.
        return relative_spread(earlier.round_medians_ns) + self.get_row(pair.candidate).spread

    def _iterate_comparisons(self) -> Iterator[RowComparison]:
        for baseline, candidate in self.pairs:
            # After an interruption, one of the two rows may lack the last round.
            ratios = round_ratios(self.get_row(baseline), self.get_row(candidate))
            if len(ratios) >= MIN_ROUNDS:
                speedup = paired_speedup(ratios)
                verdict = decide_verdict(
                    speedup,
                    self.noise.is_noisy,
                    self.noise.disturbance,
                    are_ratios_consistent(ratios),
                )
                yield RowComparison(
                    baseline, candidate, speedup, "noisy" if self.is_emulated else verdict
                )
        for baseline, candidate, earlier in self.earlier_pairs:
            row = self.get_row(candidate)
            if min(len(earlier.round_medians_ns), len(row.rounds)) >= MIN_ROUNDS:
                speedup = unpaired_speedup(earlier.round_medians_ns, row.round_medians_ns)
                pair = RowComparison(baseline, candidate, speedup, "inconclusive", earlier)
                verdict = decide_verdict(
                    speedup, self.noise.is_noisy or earlier.noisy, self.compute_noise_margin(pair)
                )
                yield replace(pair, verdict="noisy" if self.is_emulated else verdict)

    def to_json(self) -> dict[str, Any]:
        """Return the content of the result file, which `edgetl bench --json` prints as well."""
        recommendation, sustained = self.recommendation, self.sustained
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
            "recommendation": None if recommendation is None else recommendation.to_json(),
            "limits": {
                **asdict(self.limits),
                "judged": [check.to_json() for check in self.limit_checks],
            },
            "sustained": None if sustained is None else sustained.to_json(),
            "profiles": dict(self.profiles),
        }

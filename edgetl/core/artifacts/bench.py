"""What `edgetl bench` leaves behind: raw latencies, and the statistics that are computed from them on every reading.

A result file holds the same object that `edgetl bench --json` prints. The statistics in it are for people with `jq`;
`read_result` takes only the raw latencies and computes them anew.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from edgetl.core.artifacts.bench_rows import BenchRow, relative_spread, round_ratios
from edgetl.core.artifacts.comparison import (
    EARLIER_RESULT,
    SAME_RUN,
    EarlierRow,
    RowComparison,
    are_ratios_consistent,
    decide_verdict,
)
from edgetl.core.artifacts.limits import LimitCheck, check_limits
from edgetl.core.artifacts.recommendation import Recommendation, recommend
from edgetl.core.artifacts.sustained import SustainedResult
from edgetl.core.config.bench import Limits
from edgetl.core.errors import BenchError, ConfigError
from edgetl.core.files import SCHEMA, read_json
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


def read_bench_result(path: Path) -> BenchResult:
    """A result file, its statistics computed from the raw latencies.

    Raises:
        BenchError: missing, not a bench result, or broken.
    """
    content = read_json(path, BenchError, "The bench result")
    if content.get("kind") != "bench":
        raise BenchError(
            f"{path} is no bench result but of kind {content.get('kind')!r}. Give one that `edgetl bench` made of a run, bundle or file."
        )
    try:
        rows = {
            entry["id"]: BenchRow.from_json(entry)
            for entry in parse_as(list[dict[str, Any]], content["rows"], "rows")
        }
        # Ids are read through the rows: those of an earlier edgetl were shorter.
        comparisons = [
            {**entry, "candidate": rows[entry["candidate"]].id}
            | ({"baseline": rows[entry["baseline"]].id} if entry["kind"] == SAME_RUN else {})
            for entry in parse_as(list[dict[str, Any]], content["comparisons"], "comparisons")
        ]
        sustained, limits = content.get("sustained"), content.get("limits", {})
        return BenchResult(
            created=parse_as(str, content["created"], "created"),
            edgetl=parse_as(str, content["edgetl"], "edgetl"),
            target=parse_as(str, content["target"], "target"),
            model=parse_as(dict[str, Any], content["model"], "model"),
            device=parse_as(dict[str, Any], content["device"], "device"),
            protocol=parse_as(dict[str, Any], content["protocol"], "protocol"),
            interrupted=parse_as(bool, content["interrupted"], "interrupted"),
            noise=Noise.from_json(content["noise"]),
            order=parse_as(tuple[tuple[str, ...], ...], content["order"], "order"),
            rows=tuple(rows.values()),
            pairs=tuple(
                (entry["baseline"], entry["candidate"])
                for entry in comparisons
                if entry["kind"] == SAME_RUN
            ),
            earlier_pairs=tuple(
                (entry["baseline"], entry["candidate"], EarlierRow.from_json(entry))
                for entry in comparisons
                if entry["kind"] == EARLIER_RESULT
            ),
            notes=parse_as(tuple[str, ...], content["notes"], "notes"),
            sustained=None if sustained is None else SustainedResult.from_json(sustained),
            profiles=_parse_profiles(content.get("profiles", {})),
            limits=parse_as(
                Limits, {name: limits.get(name) for name in Limits.__dataclass_fields__}, "limits"
            ),
            path=path,
        )
    except (KeyError, TypeError, AttributeError, ValueError, ConfigError) as cause:
        raise BenchError(f"{path} is a broken bench result: {cause!r}. Measure again.") from cause


@dataclass(frozen=True)
class _OperatorTime:
    operator: str
    provider: str
    nodes: int
    us: float
    share: float


@dataclass(frozen=True)
class _NodeTime:
    node: str
    operator: str
    provider: str
    us: float
    share: float


def _parse_profiles(content: Any) -> dict[str, Any]:
    profiles = parse_as(dict[str, dict[str, Any]], content, "profiles")
    for name, profile in profiles.items():
        parse_as(int, profile["runs"], f"profiles.{name}.runs")
        for key, kind in (("operators", _OperatorTime), ("nodes", _NodeTime)):
            parse_as(list[kind], profile[key], f"profiles.{name}.{key}", extra="ignore")  # type: ignore[valid-type]
    return profiles


class JsonSerializable(Protocol):
    """What a result file is made from."""

    def to_json(self) -> dict[str, Any]:
        """The object that the file holds."""


def write_result(result: JsonSerializable, path: Path) -> None:
    """Write a result to a file that does not exist yet.

    Raises:
        BenchError: the file exists, or cannot be written; no half-written file stays.
    """
    text = json.dumps(result.to_json(), ensure_ascii=False, allow_nan=False) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as stream:
            try:
                stream.write(text)
                stream.flush()
            except BaseException:
                path.unlink(missing_ok=True)
                raise
    except FileExistsError as cause:
        raise BenchError(
            f"{path} exists already and results are never overwritten. Choose another --output."
        ) from cause
    except OSError as cause:
        raise BenchError(
            f"The result cannot be written to {path} ({cause.strerror or cause}). Choose another --output."
        ) from cause

"""Results of `edgetl bench`: raw latencies and the statistics computed from them.

A result file holds the object that `edgetl bench --json` prints. The statistics in it are for use
with `jq`; `read_result` reads only the raw latencies and recomputes the statistics.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from edgetl.core.artifacts.bench_rows import BenchRow, relative_spread, round_ratios
from edgetl.core.artifacts.comparison import (
    EarlierPair,
    EarlierRow,
    Pair,
    RowComparison,
    are_ratios_consistent,
    decide_verdict,
    parse_pair,
)
from edgetl.core.artifacts.device import DeviceInfo
from edgetl.core.artifacts.limits import LimitCheck, check_limits
from edgetl.core.artifacts.noise import NoiseReport
from edgetl.core.artifacts.recommendation import Recommendation, recommend
from edgetl.core.artifacts.session import OperatorProfile
from edgetl.core.artifacts.sustained import SustainedResult
from edgetl.core.config.bench import Limits
from edgetl.core.config.export import MAX_ACCURACY_DROP
from edgetl.core.files import SCHEMA
from edgetl.core.statistics import paired_speedup, unpaired_speedup
from edgetl.core.typed_json import (
    FieldError,
    JsonObject,
    computed_as,
    in_json,
    parse_as,
    to_json,
)

EAGER_VARIANT = "fp32"
"""Variant of the PyTorch row that serves as baseline of speed-ups: eager mode, as trained."""
MIN_ROUNDS = 2
"""Fewest rounds from which an interval can be computed."""


@dataclass(frozen=True)
class BenchedModel:
    """Model of a bundle or an ONNX file."""

    name: str
    """Architecture; the name of a single ONNX file."""
    run_id: str | None
    """None for a single ONNX file."""
    max_accuracy_drop: float = field(default=MAX_ACCURACY_DROP, metadata=in_json(omit_default=True))
    """Largest loss of top-1 accuracy, in percentage points, of a recommended variant."""


@dataclass(frozen=True)
class _RowIdentity:
    id: str


@dataclass(frozen=True)
class BenchResult:
    """Result of one `edgetl bench` command."""

    created: str
    """Time of the measurement, UTC, ISO 8601."""
    edgetl: str
    """Version of edgetl that measured."""
    target: str
    model: BenchedModel
    device: DeviceInfo
    noise: NoiseReport
    protocol: Mapping[str, int | float | str]
    """Durations and counts of the protocol, with `rounds` and `seed`."""
    order: tuple[tuple[str, ...], ...]
    """Order of the processes in each round."""
    rows: tuple[BenchRow, ...]
    pairs: tuple[Pair, ...] = field(default=(), metadata=in_json(stored=False))
    """Comparisons within this result."""
    earlier_pairs: tuple[EarlierPair, ...] = field(default=(), metadata=in_json(stored=False))
    notes: tuple[str, ...] = ()
    sustained: SustainedResult | None = None
    profiles: Mapping[str, OperatorProfile] = field(default_factory=dict)
    """Time by operator and by node, by row id."""
    limits: Limits = field(default=Limits(), metadata=in_json(stored=False))
    """Limits that the result is checked against."""
    interrupted: bool = False
    path: Path | None = field(default=None, metadata=in_json(stored=False))
    """The result file."""

    def __post_init__(self) -> None:
        ids = {row.id for row in self.rows}
        row_ids = [
            *(pair.baseline for pair in self.pairs),
            *(pair.candidate for pair in self.pairs),
            *(pair.candidate for pair in self.earlier_pairs),
        ]
        unknown = [row_id for row_id in row_ids if row_id not in ids]
        if unknown:
            raise FieldError(f"comparisons has {unknown[0]!r}, which is no row")

    def __repr__(self) -> str:
        return f"BenchResult({self.target!r}, {len(self.rows)} rows, path={str(self.path)!r})"

    def get_row(self, row_id: str) -> BenchRow:
        """Return the row with this id."""
        return next(row for row in self.rows if row.id == row_id)

    @property
    def failed_rows(self) -> list[BenchRow]:
        """Rows that failed the gate."""
        return [row for row in self.rows if row.has_failed_gate]

    def list_refusals(self) -> list[tuple[str, str]]:
        """Return the names of the rows that failed the gate, each with its reason."""
        refusals = [(row.name, row.gate.reason or "no reason recorded") for row in self.failed_rows]
        return list(dict.fromkeys(refusals))

    @property
    def is_emulated(self) -> bool:
        """Whether the CPU was emulated, so that latencies are not those of a real device."""
        return self.device.emulated

    @cached_property
    def recommendation(self) -> Recommendation | None:
        """The fastest configurations; None if nothing but PyTorch was timed."""
        return recommend(self.rows, self.model.max_accuracy_drop)

    def is_recommended(self, row: BenchRow) -> bool:
        """Return whether the row has the recommended configuration for latency."""
        return self.recommendation is not None and self.recommendation.latency.row == row.id

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

    def compare_rows(self, baseline: BenchRow, candidate: BenchRow) -> RowComparison | None:
        """Compare two rows measured in the same rounds; None if they are too few."""
        # After an interruption, one of the two rows may lack the last round.
        ratios = round_ratios(baseline, candidate)
        if len(ratios) < MIN_ROUNDS:
            return None
        speedup = paired_speedup(ratios)
        verdict = decide_verdict(
            speedup, self.noise.is_noisy, self.noise.disturbance, are_ratios_consistent(ratios)
        )
        return RowComparison(
            baseline.id, candidate.id, speedup, "noisy" if self.is_emulated else verdict
        )

    def compare_with_earlier(self, pair: EarlierPair) -> RowComparison | None:
        """Compare a row with one that was not measured in its rounds; None if rounds are too few."""
        row, earlier = self.get_row(pair.candidate), pair.earlier_row
        if min(len(earlier.round_medians_ns), len(row.rounds)) < MIN_ROUNDS:
            return None
        speedup = unpaired_speedup(earlier.round_medians_ns, row.round_medians_ns)
        comparison = RowComparison(pair.baseline, row.id, speedup, "inconclusive", earlier)
        verdict = decide_verdict(
            speedup,
            self.noise.is_noisy or earlier.noisy,
            self.compute_noise_margin(comparison),
        )
        return replace(comparison, verdict="noisy" if self.is_emulated else verdict)

    def as_earlier_row(
        self, row: BenchRow, device: DeviceInfo, *, same_model: bool, same_configuration: bool
    ) -> EarlierRow:
        """Return a row of this result as the baseline of one that was measured on `device`."""
        return EarlierRow(
            path=str(self.path),
            created=self.created,
            cross_device=not self.device.is_same_device(device),
            same_model=same_model,
            same_configuration=same_configuration,
            threads=row.threads,
            noisy=self.noise.is_noisy,
            p50_ms=row.p50_ms or 0.0,
            round_medians_ns=tuple(row.round_medians_ns),
        )

    def _iterate_comparisons(self) -> Iterator[RowComparison]:
        comparisons = [
            *(
                self.compare_rows(self.get_row(pair.baseline), self.get_row(pair.candidate))
                for pair in self.pairs
            ),
            *map(self.compare_with_earlier, self.earlier_pairs),
        ]
        return (comparison for comparison in comparisons if comparison is not None)

    def to_json(self) -> JsonObject:
        """Return the content of the result file, which `edgetl bench --json` prints as well."""
        return {"schema": SCHEMA, "kind": "bench", **to_json(self)}

    @classmethod
    def from_json(cls, content: JsonObject) -> BenchResult:
        """Parse the output of `to_json`; its statistics are ignored.

        Raises:
            FieldError: A field is missing, unknown or of the wrong type, or fields contradict each
                other.
        """
        fields = {name: value for name, value in content.items() if name not in ("schema", "kind")}
        result = parse_as(cls, fields, "the result")
        limits = parse_as(dict[str, object], content.get("limits", {}), "limits")
        limits.pop("judged", None)
        identities = parse_as(tuple[_RowIdentity, ...], content["rows"], "rows", extra="ignore")
        entries = parse_as(tuple[dict[str, object], ...], content.get("comparisons"), "comparisons")
        # Row ids of older versions were shorter, so they are translated through the rows.
        ids = {stored.id: row.id for stored, row in zip(identities, result.rows, strict=True)}
        pairs, earlier_pairs = [], []
        for entry in entries:
            pair = parse_pair(entry)
            candidate = ids.get(pair.candidate, pair.candidate)
            if isinstance(pair, Pair):
                pairs.append(Pair(ids.get(pair.baseline, pair.baseline), candidate))
            else:
                earlier_pairs.append(replace(pair, candidate=candidate))
        return replace(
            result,
            limits=parse_as(Limits, limits, "limits"),
            pairs=tuple(pairs),
            earlier_pairs=tuple(earlier_pairs),
        )

    @computed_as("comparisons")
    def _stored_comparisons(self) -> list[RowComparison]:
        return self.comparisons

    @computed_as("recommendation")
    def _stored_recommendation(self) -> Recommendation | None:
        return self.recommendation

    @computed_as("limits")
    def _stored_limits(self) -> JsonObject:
        return {**to_json(self.limits), "judged": [to_json(check) for check in self.limit_checks]}

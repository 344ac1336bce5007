"""What `edgetl bench` leaves behind: raw latencies, and the statistics that are computed from them on every reading.

A result file holds the same object that `edgetl bench --json` prints. The statistics in it are for people with `jq`;
`read_result` takes only the raw latencies and computes them anew.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any, Literal

from edgetl.core.errors import BenchError
from edgetl.core.files import SCHEMA, read_json
from edgetl.core.statistics import Speedup, paired_speedup, percentile, unpaired_speedup

Verdict = Literal["faster", "slower", "inconclusive", "noisy"]
SAME_RUN, EARLIER_RESULT = "same run", "earlier result"


@dataclass(frozen=True)
class ColdStart:
    """The first moments of one fresh process; its files were in the page cache."""

    import_ms: float
    """Loading the runtime and what it needs."""
    session_ms: float
    """From file to a model that can answer."""
    first_inference_ms: float
    """The first answer, in the first scope that the process measured."""
    peak_memory_bytes: int | None
    """Largest resident memory of the process over its whole block."""


@dataclass(frozen=True)
class Round:
    """One block: one row measured in one process."""

    latencies_ns: tuple[int, ...]
    """Every run's latency in the order measured."""
    cold: ColdStart
    """The same for all scopes of one process."""
    steady: bool = True
    """Whether warm-up ended because two windows agreed, not because it was cut off."""
    warmup_medians_ns: tuple[float, ...] = ()
    """Median of each warm-up window."""
    stages_ns: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Where the latency went, run by run; empty for scopes of one stage."""
    frequency_khz: int | None = None
    """The fastest core's clock right after the block."""

    @cached_property
    def median_ns(self) -> float:
        """Median latency of the block."""
        return median(self.latencies_ns)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Round:
        """The inverse of `asdict` after a trip through JSON."""
        return cls(
            latencies_ns=tuple(content["latencies_ns"]),
            cold=ColdStart(**content["cold"]),
            steady=bool(content["steady"]),
            warmup_medians_ns=tuple(content["warmup_medians_ns"]),
            stages_ns={stage: tuple(times) for stage, times in content["stages_ns"].items()},
            frequency_khz=content["frequency_khz"],
        )


@dataclass(frozen=True)
class Row:
    """One runtime, variant and scope, with every latency measured."""

    runtime: str
    variant: str
    scope: str
    provider: str
    batch: int
    threads: int
    input: str
    """What one run was given; rows with different inputs are not comparable."""
    file_sha256: str
    """Of the ONNX file, or of the run's weights."""
    file_bytes: int
    gate: Mapping[str, Any]
    """The golden images' verdict: {"checked", "passed", ...}; a row that failed was not timed."""
    session: Mapping[str, Any]
    """How the runtime was configured."""
    rounds: tuple[Round, ...] = ()

    @property
    def id(self) -> str:
        """Unique within a result."""
        return f"{self.runtime}-{self.variant}-{self.scope}"

    @property
    def failed(self) -> bool:
        """Whether the gate was closed."""
        return self.gate.get("passed") is False

    @cached_property
    def latencies_ns(self) -> list[int]:
        """All rounds together; none is left out."""
        return [latency for block in self.rounds for latency in block.latencies_ns]

    def percentile_ms(self, percent: int) -> float | None:
        """Over all rounds; None where there are too few runs to support it."""
        value = percentile(self.latencies_ns, percent)
        return None if value is None else value / 1e6

    @property
    def images_per_second(self) -> float | None:
        """Images divided by the time spent on them."""
        return self.batch * len(self.latencies_ns) / (sum(self.latencies_ns) / 1e9) if self.latencies_ns else None

    @property
    def medians_ns(self) -> list[float]:
        """One median a round."""
        return [block.median_ns for block in self.rounds]

    @property
    def spread(self) -> float:
        """(largest - smallest) / median of the rounds' medians; 0 without rounds."""
        return relative_spread(self.medians_ns)

    @property
    def steady(self) -> bool:
        """Whether every round's warm-up reached steadiness."""
        return all(block.steady for block in self.rounds)

    def cold(self) -> dict[str, Any]:
        """Medians over the rounds' fresh processes, and the largest memory; empty when not measured."""
        if not self.rounds:
            return {}
        starts = [block.cold for block in self.rounds]
        parts = {name: median(getattr(start, name) for start in starts) for name in ("import_ms", "session_ms", "first_inference_ms")}
        memory = [start.peak_memory_bytes for start in starts if start.peak_memory_bytes is not None]
        return {**parts, "total_ms": sum(parts.values()), "peak_memory_bytes": max(memory, default=None), "processes": len(starts)}

    def stages_ms(self) -> dict[str, float]:
        """Median of each stage over all rounds."""
        names = self.rounds[0].stages_ns if self.rounds else ()
        return {name: median(time for block in self.rounds for time in block.stages_ns[name]) / 1e6 for name in names}

    def to_json(self) -> dict[str, Any]:
        """As it stands in the result."""
        return {
            "id": self.id,
            **{name: getattr(self, name) for name in ("runtime", "variant", "scope", "provider", "batch", "threads", "input")},
            "gate": dict(self.gate),
            **{f"p{percent}_ms": self.percentile_ms(percent) for percent in (50, 90, 99)},
            "images_per_second": self.images_per_second,
            "steady": self.steady,
            "stages_ms": self.stages_ms(),
            "cold": self.cold(),
            "session": dict(self.session),
            "file_sha256": self.file_sha256,
            "file_bytes": self.file_bytes,
            "rounds": [asdict(block) for block in self.rounds],
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Row:
        """The inverse of `to_json`; its statistics are ignored."""
        fields = {name: value for name, value in content.items() if name in cls.__dataclass_fields__}
        return cls(**{**fields, "rounds": tuple(Round.from_json(block) for block in content["rounds"])})


@dataclass(frozen=True)
class EarlierRow:
    """The baseline of a comparison that was not measured side by side."""

    path: str
    created: str
    cross_device: bool
    """Measured on another device: the ratio is between devices, not between runtimes."""
    same_model: bool
    """Both rows hold the same network."""
    threads: int
    noisy: bool
    p50_ms: float
    round_medians_ns: tuple[float, ...]

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> EarlierRow:
        """Read from a comparison's JSON object, which holds more fields than these."""
        fields = {name: content[name] for name in cls.__dataclass_fields__}
        return cls(**{**fields, "round_medians_ns": tuple(content["round_medians_ns"])})


@dataclass(frozen=True)
class Comparison:
    """Baseline p50 / candidate p50, with the verdict that the data allow."""

    baseline: str
    candidate: str
    speedup: Speedup
    verdict: Verdict
    earlier: EarlierRow | None = None

    def to_json(self) -> dict[str, Any]:
        """As it stands in the result."""
        return {
            "kind": SAME_RUN if self.earlier is None else EARLIER_RESULT,
            "baseline": self.baseline,
            "candidate": self.candidate,
            "speedup": self.speedup.ratio,
            "ci95": [self.speedup.low, self.speedup.high],
            "verdict": self.verdict,
            **({} if self.earlier is None else asdict(self.earlier)),
        }


@dataclass(frozen=True)
class Noise:
    """Whether the device was left alone while it was measured."""

    reasons: tuple[str, ...]
    """In words; none means quiet."""
    measured: Mapping[str, Any] = field(default_factory=dict)
    """The figures behind the reasons; None where the device does not tell."""

    @property
    def noisy(self) -> bool:
        """Whether there is any reason to doubt."""
        return bool(self.reasons)

    def to_json(self) -> dict[str, Any]:
        """As it stands in the result."""
        return {"verdict": "noisy" if self.noisy else "quiet", "reasons": list(self.reasons), "measured": dict(self.measured)}


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
    rows: tuple[Row, ...]
    pairs: tuple[tuple[str, str], ...]
    """(baseline, candidate) row ids that ran side by side."""
    earlier: tuple[tuple[str, str, EarlierRow], ...] = ()
    """(its row id, candidate row id, the earlier row)."""
    notes: tuple[str, ...] = ()
    interrupted: bool = False
    path: Path | None = None
    """The file it lies in."""

    def row(self, row_id: str) -> Row:
        """The row of that id."""
        return next(row for row in self.rows if row.id == row_id)

    @property
    def failed(self) -> list[Row]:
        """Rows whose gate was closed."""
        return [row for row in self.rows if row.failed]

    @cached_property
    def comparisons(self) -> list[Comparison]:
        """Speed-ups of all pairs that were measured."""
        return list(self._compare())

    def _compare(self) -> Iterator[Comparison]:
        for baseline, candidate in self.pairs:
            before, after = self.row(baseline), self.row(candidate)
            if before.rounds and after.rounds:
                speedup = paired_speedup(before.medians_ns, after.medians_ns)
                yield Comparison(baseline, candidate, speedup, verdict(speedup, self.noise.noisy, before.spread + after.spread))
        for baseline, candidate, earlier in self.earlier:
            after = self.row(candidate)
            if after.rounds:
                speedup = unpaired_speedup(earlier.round_medians_ns, after.medians_ns)
                spread = relative_spread(earlier.round_medians_ns) + after.spread
                yield Comparison(baseline, candidate, speedup, verdict(speedup, self.noise.noisy or earlier.noisy, spread), earlier)

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
        }


def relative_spread(medians: Iterator[float] | list[float] | tuple[float, ...]) -> float:
    """(largest - smallest) / median; 0 for an empty list."""
    values = list(medians)
    return (max(values) - min(values)) / median(values) if values else 0.0


def verdict(speedup: Speedup, noisy: bool, spread: float) -> Verdict:
    """What a speed-up's interval decides.

    Args:
        speedup: ratio with its 95% interval.
        noisy: the device was not quiet; then the interval, widened on both sides by `spread`, must still exclude 1.
        spread: sum of both rows' relative spread of round medians.
    """
    if speedup.low <= 1 <= speedup.high:
        return "inconclusive"
    if noisy and speedup.low / (1 + spread) <= 1 <= speedup.high * (1 + spread):
        return "noisy"
    return "faster" if speedup.ratio > 1 else "slower"


def read_result(path: Path) -> BenchResult:
    """A result file, its statistics computed from the raw latencies.

    Raises:
        BenchError: missing, not a bench result, or broken.
    """
    content = read_json(path, BenchError, "The bench result")
    if content.get("kind") != "bench":
        raise BenchError(f"{path} is no bench result (kind {content.get('kind')!r}). Give a file that `edgetl bench` wrote.")
    try:
        comparisons = content["comparisons"]
        return BenchResult(
            **{name: content[name] for name in ("created", "edgetl", "target", "model", "device", "protocol", "interrupted")},
            noise=Noise(tuple(content["noise"]["reasons"]), content["noise"]["measured"]),
            order=tuple(tuple(names) for names in content["order"]),
            rows=tuple(Row.from_json(row) for row in content["rows"]),
            pairs=tuple((entry["baseline"], entry["candidate"]) for entry in comparisons if entry["kind"] == SAME_RUN),
            earlier=tuple(
                (entry["baseline"], entry["candidate"], EarlierRow.from_json(entry))
                for entry in comparisons
                if entry["kind"] == EARLIER_RESULT
            ),
            notes=tuple(content["notes"]),
            path=path,
        )
    except (KeyError, TypeError, AttributeError) as cause:
        raise BenchError(f"{path} is a broken bench result: {cause!r}. Measure again.") from cause


def write_result(result: BenchResult, path: Path) -> None:
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
        raise BenchError(f"{path} exists already and results are never overwritten. Choose another --output.") from cause
    except OSError as cause:
        raise BenchError(f"The result cannot be written to {path} ({cause.strerror or cause}). Choose another --output.") from cause

"""Rows of a benchmark result: raw latencies by round and the statistics computed from them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import accumulate
from statistics import median
from typing import Any

from edgetl.core.statistics import median_interval, percentile
from edgetl.core.typed_json import FieldError, parse_as

_PLAIN_FIELDS = (
    "runtime", "variant", "scope", "provider", "batch", "threads", "rate", "input"
)  # fmt: skip
"""Fields of a row that the result file holds unchanged."""


@dataclass(frozen=True)
class ColdStart:
    """Cold start of one fresh process; its files were in the page cache."""

    import_ms: float
    """Time to import the runtime and its dependencies."""
    session_ms: float
    """Time to load the file into a model that is ready for inference."""
    first_inference_ms: float
    """Latency of the first inference, in the first scope that the process measured."""
    peak_memory_bytes: int | None
    """Largest resident memory of the process during its block."""


@dataclass(frozen=True)
class _GpuReading:
    """Fields of `GpuWatch.summary` that are summarized over rounds."""

    sm_clocks_mhz: tuple[float, ...]
    max_sm_clock_mhz: float | None
    throttle_reasons: tuple[str, ...]
    temperature_c: float | None
    power_w: float | None
    memory_used_bytes: int | None


@dataclass(frozen=True)
class BlockResult:
    """One block: one row measured in one process."""

    latencies_ns: tuple[int, ...]
    """Latencies of all inferences in the order measured."""
    cold: ColdStart
    """Cold start of the process, the same for all its scopes."""
    steady: bool = True
    """Whether the warm-up converged (two windows agreed) before it reached its time limit."""
    warmup_medians_ns: tuple[float, ...] = ()
    """Median of each warm-up window."""
    stages_ns: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Latency by stage, one value an inference; empty for scopes with a single stage."""
    frequency_khz: int | None = None
    """Clock of the fastest core right after the block."""
    slices: tuple[int, ...] = ()
    """Number of latencies in each slice; the round's other processes run between slices."""
    waited: int = 0
    """Paced arrivals that waited for the previous inference; the wait is part of their latency."""
    memory_growth_bytes: int | None = None
    """Growth of the process's resident memory from the end of warm-up to the end of the block."""
    energy_j: Mapping[str, float] = field(default_factory=dict)
    """Energy of the block by counter, idle power included; empty without a counter."""
    gpu: Mapping[str, Any] = field(default_factory=dict)
    """GPU state right after the block's slices, see `GpuWatch.summary`; empty without NVML."""

    @cached_property
    def median_ns(self) -> float:
        """Median latency of the block."""
        return median(self.latencies_ns)

    @cached_property
    def slice_medians_ns(self) -> list[float]:
        """Median latency of each slice; a single one if the block was not sliced."""
        ends = list(accumulate(self.slices or (len(self.latencies_ns),)))
        return [
            median(self.latencies_ns[start:end])
            for start, end in zip((0, *ends), ends, strict=False)
        ]

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> BlockResult:
        """Parse the JSON form of `asdict`.

        Raises:
            FieldError: A value has the wrong type, there are no latencies, or counts contradict
                each other.
        """
        block = parse_as(cls, content, "a round", extra="ignore")
        if block.gpu:
            parse_as(_GpuReading, dict(block.gpu), "a round.gpu", extra="ignore")
        count = len(block.latencies_ns)
        if not count or min(block.latencies_ns) <= 0:
            raise FieldError("a round must have latencies, all above 0")
        if block.slices and (min(block.slices) <= 0 or sum(block.slices) != count):
            raise FieldError("a round's slices do not add up to its number of latencies")
        if any(len(times) != count for times in block.stages_ns.values()):
            raise FieldError("a round's stages and latencies differ in number")
        if not 0 <= block.waited <= count:
            raise FieldError("a round's waited must be 0 to its number of latencies")
        return block


@dataclass(frozen=True)
class BenchRow:
    """Measurements of one runtime, variant and scope, with all latencies."""

    runtime: str
    variant: str
    scope: str
    provider: str
    batch: int
    threads: int
    input: str
    """Input of one inference; rows with different inputs are not comparable."""
    file_sha256: str
    """SHA-256 of the ONNX file or of the run's weights."""
    file_bytes: int
    gate: Mapping[str, Any]
    """Result of the gate: {"checked", "passed", ...}; a row that failed was not timed."""
    session: Mapping[str, Any]
    """Configuration of the runtime."""
    rounds: tuple[BlockResult, ...] = ()
    rate: float | None = None
    """Arrivals a second; None is a single stream of back-to-back calls."""

    @property
    def id(self) -> str:
        """Identifier, unique within a result."""
        rate = "" if self.rate is None else f"-r{self.rate:g}"
        runtime = f"{self.runtime}-{self.variant}-{self.scope}-{self.provider}"
        return f"{runtime}-b{self.batch}-t{self.threads}{rate}"

    @property
    def comparison_key(self) -> tuple[str, str, int, int, float | None]:
        """Properties that two rows of a result must share to be compared."""
        return self.scope, self.input, self.batch, self.threads, self.rate

    @property
    def has_failed_gate(self) -> bool:
        """Whether the row failed the gate."""
        return self.gate.get("passed") is False

    @cached_property
    def latencies_ns(self) -> list[int]:
        """Latencies of all rounds, without exception."""
        return [latency for block in self.rounds for latency in block.latencies_ns]

    def percentile_ms(self, percent: int) -> float | None:
        """Return a percentile over all rounds, or None if there are too few latencies for it."""
        value = percentile(self.latencies_ns, percent)
        return None if value is None else value / 1e6

    @cached_property
    def p50_interval_ms(self) -> tuple[float, float] | None:
        """95% interval of p50, from the rounds' medians; None for fewer than two rounds."""
        if len(self.rounds) < 2:
            return None
        low, high = median_interval(self.round_medians_ns)
        return low / 1e6, high / 1e6

    @property
    def images_per_second(self) -> float | None:
        """Throughput: images divided by the sum of the latencies; None if not timed."""
        if not self.latencies_ns:
            return None
        return self.batch * len(self.latencies_ns) / (sum(self.latencies_ns) / 1e9)

    @property
    def round_medians_ns(self) -> list[float]:
        """Median latency of each round."""
        return [block.median_ns for block in self.rounds]

    @property
    def spread(self) -> float:
        """(largest - smallest) / median of the rounds' medians; 0 without rounds."""
        return relative_spread(self.round_medians_ns)

    @property
    def steady(self) -> bool:
        """Whether the warm-up converged in every round."""
        return all(block.steady for block in self.rounds)

    def summarize_cold_starts(self) -> dict[str, Any]:
        """Return median cold-start times and the peak memory over rounds; empty if not timed."""
        if not self.rounds:
            return {}
        starts = [block.cold for block in self.rounds]
        parts = {
            name: median(getattr(start, name) for start in starts)
            for name in ("import_ms", "session_ms", "first_inference_ms")
        }
        memory = [
            start.peak_memory_bytes for start in starts if start.peak_memory_bytes is not None
        ]
        return {
            **parts,
            "total_ms": sum(parts.values()),
            "peak_memory_bytes": max(memory, default=None),
            "processes": len(starts),
        }

    def summarize_stages_ms(self) -> dict[str, float]:
        """Return the median of each stage over all rounds."""
        names = self.rounds[0].stages_ns if self.rounds else ()
        return {
            name: median(time for block in self.rounds for time in block.stages_ns[name]) / 1e6
            for name in names
        }

    @property
    def waiting_share(self) -> float:
        """Share of paced arrivals that waited for the previous inference."""
        if not self.latencies_ns:
            return 0.0
        return sum(block.waited for block in self.rounds) / len(self.latencies_ns)

    @property
    def memory_growth_bytes(self) -> int | None:
        """Median memory growth over the rounds; None if it was not measured."""
        growths = [
            block.memory_growth_bytes
            for block in self.rounds
            if block.memory_growth_bytes is not None
        ]
        return round(median(growths)) if growths else None

    def summarize_gpu(self) -> dict[str, Any]:
        """Summarize the GPU state over the rounds; empty if it was not read.

        Returns the range of SM clocks, the largest temperature, memory and power, and all throttle
        reasons.
        """
        readings = [block.gpu for block in self.rounds if block.gpu]
        if not readings:
            return {}
        clocks = [clock for reading in readings for clock in reading["sm_clocks_mhz"]]
        reasons = {reason for reading in readings for reason in reading["throttle_reasons"]}
        peaks = ("temperature_c", "power_w", "memory_used_bytes")
        return {
            "sm_clock_mhz": [min(clocks), max(clocks)] if clocks else None,
            "max_sm_clock_mhz": readings[0]["max_sm_clock_mhz"],
            **{
                name: max(
                    (reading[name] for reading in readings if reading[name] is not None),
                    default=None,
                )
                for name in peaks
            },
            "throttle_reasons": sorted(reasons),
        }

    def summarize_energy_mj(self) -> dict[str, float]:
        """Return millijoules an image by counter, median over the rounds, idle power included."""
        names = {name for block in self.rounds for name in block.energy_j}
        by_round = {
            name: [
                1000 * block.energy_j[name] / (self.batch * len(block.latencies_ns))
                for block in self.rounds
                if name in block.energy_j
            ]
            for name in sorted(names)
        }
        return {name: median(values) for name, values in by_round.items()}

    def to_json(self) -> dict[str, Any]:
        """Return an entry of the field `rows` of a result."""
        interval = self.p50_interval_ms
        return {
            "id": self.id,
            **{name: getattr(self, name) for name in _PLAIN_FIELDS},
            "gate": dict(self.gate),
            **{f"p{percent}_ms": self.percentile_ms(percent) for percent in (50, 90, 99)},
            "p50_ci95_ms": None if interval is None else list(interval),
            "images_per_second": self.images_per_second,
            "steady": self.steady,
            "stages_ms": self.summarize_stages_ms(),
            "waited": self.waiting_share,
            "memory_growth_bytes": self.memory_growth_bytes,
            "energy_mj": self.summarize_energy_mj(),
            "gpu": self.summarize_gpu(),
            "cold": self.summarize_cold_starts(),
            "session": dict(self.session),
            "file_sha256": self.file_sha256,
            "file_bytes": self.file_bytes,
            "rounds": [asdict(block) for block in self.rounds],
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> BenchRow:
        """Parse the output of `to_json`; its statistics are ignored.

        Raises:
            FieldError: A value has the wrong type, a batch or number of threads is below 1, or
                rounds contradict themselves.
        """
        rounds = parse_as(tuple[dict[str, Any], ...], content["rounds"], "rounds")
        fields = {
            name: value
            for name, value in content.items()
            if name in cls.__dataclass_fields__ and name != "rounds"
        }
        row = parse_as(cls, fields, "a row")
        for name in ("max_logit_difference", "tolerance", "model_scope_difference"):
            parse_as(float | None, row.gate.get(name), f"gate.{name}")  # type: ignore[arg-type]
        if row.batch < 1 or row.threads < 1:
            raise FieldError(f"batch and threads of row {row.id} must be >= 1")
        blocks = tuple(BlockResult.from_json(block) for block in rounds)
        if len({frozenset(block.stages_ns) for block in blocks}) > 1:
            raise FieldError(f"row {row.id} has rounds with different stages")
        return replace(row, rounds=blocks)


def round_ratios(before: BenchRow, after: BenchRow) -> list[float]:
    """Return the speed-up of `after` over `before` for each round that both rows have.

    For interleaved slices, a round's speed-up is the median of the slices' ratios, which is robust
    to changes of the machine's speed between slices.
    """
    return [
        _compute_ratio(block_before, block_after)
        for block_before, block_after in zip(before.rounds, after.rounds, strict=False)
    ]


def _compute_ratio(before: BlockResult, after: BlockResult) -> float:
    if len(before.slices) != len(after.slices):
        return before.median_ns / after.median_ns
    slices = zip(before.slice_medians_ns, after.slice_medians_ns, strict=True)
    return median(slice_before / slice_after for slice_before, slice_after in slices)


def relative_spread(medians: Iterator[float] | list[float] | tuple[float, ...]) -> float:
    """Return (largest - smallest) / median; 0 if there are no values."""
    values = list(medians)
    return (max(values) - min(values)) / median(values) if values else 0.0

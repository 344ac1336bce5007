"""What was measured of one runtime in one scope: raw latencies by rounds, and the figures computed from them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import accumulate
from statistics import median
from typing import Any

from edgetl.core.statistics import median_interval, percentile
from edgetl.core.typed_json import FieldError, parse_as


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
class _GpuReading:
    """What of `GpuWatch.summary` is summarised over rounds."""

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
    slices: tuple[int, ...] = ()
    """How many of the latencies each slice of the block holds; in between, the round's other processes took their turns."""
    waited: int = 0
    """Of paced arrivals those that found the one before still being answered; their waiting is part of their latency."""
    memory_growth_bytes: int | None = None
    """Resident memory of the process at the end of the block less that at its start, after warm-up."""
    energy_j: Mapping[str, float] = field(default_factory=dict)
    """Energy of the block by the counter that it was read from, idle power included; empty where there is no counter."""
    gpu: Mapping[str, Any] = field(default_factory=dict)
    """State of the GPU right after the block's slices, see `GpuWatch.summary`; empty without NVML."""

    @cached_property
    def median_ns(self) -> float:
        """Median latency of the block."""
        return median(self.latencies_ns)

    @cached_property
    def slice_medians_ns(self) -> list[float]:
        """Median latency of each slice; one for the whole block where it was not sliced."""
        ends = list(accumulate(self.slices or (len(self.latencies_ns),)))
        return [
            median(self.latencies_ns[begin:end])
            for begin, end in zip((0, *ends), ends, strict=False)
        ]

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> BlockResult:
        """Read what `asdict` gave, after a trip through JSON.

        Raises:
            FieldError: a value of a wrong type, no latencies, or counts that contradict each other.
        """
        block = parse_as(cls, content, "a round", extra="ignore")
        if block.gpu:
            parse_as(_GpuReading, dict(block.gpu), "a round.gpu", extra="ignore")
        runs = len(block.latencies_ns)
        if not runs or min(block.latencies_ns) <= 0:
            raise FieldError("a round has no latencies, or some that are not above 0")
        if block.slices and (min(block.slices) <= 0 or sum(block.slices) != runs):
            raise FieldError("a round's slices do not add up to its latencies")
        if any(len(times) != runs for times in block.stages_ns.values()):
            raise FieldError("a round's stages have other numbers of runs than its latencies")
        if not 0 <= block.waited <= runs:
            raise FieldError("a round's waited runs are more than its latencies")
        return block


@dataclass(frozen=True)
class BenchRow:
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
    rounds: tuple[BlockResult, ...] = ()
    rate: float | None = None
    """Arrivals a second; None is a single stream, in which a call follows on the one before."""

    @property
    def id(self) -> str:
        """Unique within a result."""
        paced = "" if self.rate is None else f"-r{self.rate:g}"
        return f"{self.runtime}-{self.variant}-{self.scope}-{self.provider}-b{self.batch}-t{self.threads}{paced}"

    @property
    def comparison_key(self) -> tuple[str, str, int, int, float | None]:
        """What two rows of one result must have in common to be compared."""
        return self.scope, self.input, self.batch, self.threads, self.rate

    @property
    def has_failed_gate(self) -> bool:
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

    @cached_property
    def p50_interval_ms(self) -> tuple[float, float] | None:
        """95% interval of p50, from the rounds' medians; None for fewer than two rounds."""
        found = median_interval(self.round_medians_ns) if len(self.rounds) > 1 else None
        return None if found is None else (found[0] / 1e6, found[1] / 1e6)

    @property
    def images_per_second(self) -> float | None:
        """Images divided by the time spent on them."""
        return (
            self.batch * len(self.latencies_ns) / (sum(self.latencies_ns) / 1e9)
            if self.latencies_ns
            else None
        )

    @property
    def round_medians_ns(self) -> list[float]:
        """One median a round."""
        return [block.median_ns for block in self.rounds]

    @property
    def spread(self) -> float:
        """(largest - smallest) / median of the rounds' medians; 0 without rounds."""
        return relative_spread(self.round_medians_ns)

    @property
    def steady(self) -> bool:
        """Whether every round's warm-up reached steadiness."""
        return all(block.steady for block in self.rounds)

    def summarize_cold_starts(self) -> dict[str, Any]:
        """Medians over the rounds' fresh processes, and the largest memory; empty when not measured."""
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
        """Median of each stage over all rounds."""
        names = self.rounds[0].stages_ns if self.rounds else ()
        return {
            name: median(time for block in self.rounds for time in block.stages_ns[name]) / 1e6
            for name in names
        }

    @property
    def waiting_share(self) -> float:
        """Share of paced arrivals that found the one before still being answered."""
        return (
            sum(block.waited for block in self.rounds) / len(self.latencies_ns)
            if self.latencies_ns
            else 0.0
        )

    @property
    def memory_growth_bytes(self) -> int | None:
        """Median over the rounds; None where it was not measured."""
        grown = [
            block.memory_growth_bytes
            for block in self.rounds
            if block.memory_growth_bytes is not None
        ]
        return round(median(grown)) if grown else None

    def summarize_gpu(self) -> dict[str, Any]:
        """Summarize the GPU's state over the rounds: range of SM clocks, hottest, most memory and power, all throttle reasons.

        Empty where it wasn't read.
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
        """Millijoules an image by counter, median over the rounds, idle power included."""
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
        """As it stands in the result."""
        interval = self.p50_interval_ms
        return {
            "id": self.id,
            **{
                name: getattr(self, name)
                for name in (
                    "runtime",
                    "variant",
                    "scope",
                    "provider",
                    "batch",
                    "threads",
                    "rate",
                    "input",
                )
            },
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
        """Read what `to_json` gave; its statistics are ignored.

        Raises:
            FieldError: as `Round.from_json`; or a batch or number of threads below 1.
        """
        rounds = parse_as(tuple[dict[str, Any], ...], content["rounds"], "rounds")
        stated = {
            name: value
            for name, value in content.items()
            if name in cls.__dataclass_fields__ and name != "rounds"
        }
        row = parse_as(cls, stated, "a row")
        for name in ("max_logit_difference", "tolerance", "model_scope_difference"):
            parse_as(float | None, row.gate.get(name), f"gate.{name}")  # type: ignore[arg-type]
        if row.batch < 1 or row.threads < 1:
            raise FieldError(f"row {row.id} has a batch or number of threads below 1")
        blocks = tuple(BlockResult.from_json(block) for block in rounds)
        if len({frozenset(block.stages_ns) for block in blocks}) > 1:
            raise FieldError(f"row {row.id} has rounds with different stages")
        return replace(row, rounds=blocks)


def round_ratios(before: BenchRow, after: BenchRow) -> list[float]:
    """For each round that both rows have, how many times as fast `after` was.

    Of slices that took turns it is the median of their ratios: a machine that changes its speed between two slices does not touch it.
    """
    return [
        _compute_ratio(one, other) for one, other in zip(before.rounds, after.rounds, strict=False)
    ]


def _compute_ratio(before: BlockResult, after: BlockResult) -> float:
    if len(before.slices) != len(after.slices):
        return before.median_ns / after.median_ns
    return median(
        one / other
        for one, other in zip(before.slice_medians_ns, after.slice_medians_ns, strict=True)
    )


def relative_spread(medians: Iterator[float] | list[float] | tuple[float, ...]) -> float:
    """(largest - smallest) / median; 0 for an empty list."""
    values = list(medians)
    return (max(values) - min(values)) / median(values) if values else 0.0

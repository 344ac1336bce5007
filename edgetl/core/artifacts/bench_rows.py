"""Rows of a benchmark result: raw latencies by round and the statistics computed from them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from statistics import median
from typing import TypeVar

from edgetl.core.artifacts.bundle import AccuracyRecord
from edgetl.core.artifacts.gate import GateResult
from edgetl.core.artifacts.session import SessionRecord
from edgetl.core.statistics import median_interval, percentile
from edgetl.core.typed_json import FieldError, computed, computed_as, in_json

Number = TypeVar("Number", int, float)


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
class ColdStartSummary(ColdStart):
    """Median times and the largest memory of all processes of a row."""

    processes: int

    @computed
    def total_ms(self) -> float:
        """Time from the start of the import to the first result."""
        return self.import_ms + self.session_ms + self.first_inference_ms


@dataclass(frozen=True)
class GpuReading:
    """State of a GPU right after the slices of a block, read while the clocks are the work's."""

    sm_clocks_mhz: tuple[int, ...]
    """Clock after each slice."""
    max_sm_clock_mhz: int | None
    throttle_reasons: tuple[str, ...]
    """Reasons after any slice."""
    temperature_c: float | None
    """Largest value, as for power and memory."""
    power_w: float | None
    memory_used_bytes: int | None
    memory_clocks_mhz: tuple[int, ...] = ()
    index: int = 0
    """NVML's index of the GPU."""


@dataclass(frozen=True)
class GpuSummary:
    """State of a GPU over the rounds of a row: largest values, and all throttle reasons."""

    sm_clock_mhz: tuple[int, int] | None
    """Smallest and largest clock; None if the driver does not report it."""
    max_sm_clock_mhz: int | None
    temperature_c: float | None
    power_w: float | None
    memory_used_bytes: int | None
    throttle_reasons: tuple[str, ...]

    @classmethod
    def from_readings(cls, readings: Sequence[GpuReading]) -> GpuSummary:
        """Summarize the readings of at least one round."""
        clocks = [clock for reading in readings for clock in reading.sm_clocks_mhz]
        return cls(
            sm_clock_mhz=(min(clocks), max(clocks)) if clocks else None,
            max_sm_clock_mhz=readings[0].max_sm_clock_mhz,
            temperature_c=largest(reading.temperature_c for reading in readings),
            power_w=largest(reading.power_w for reading in readings),
            memory_used_bytes=largest(reading.memory_used_bytes for reading in readings),
            throttle_reasons=tuple(
                sorted({reason for reading in readings for reason in reading.throttle_reasons})
            ),
        )


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
    gpu: GpuReading | None = field(default=None, metadata=in_json(none_is_empty=True))
    """None without NVML and on a CPU."""
    cpu_ns: int | None = field(default=None, metadata=in_json(omit_default=True))
    """Processor time of all threads in the timed slices, waiting threads that spin included. None
    in older results."""

    def __post_init__(self) -> None:
        count = len(self.latencies_ns)
        if not count or min(self.latencies_ns) <= 0:
            raise FieldError("a round must have latencies, all above 0")
        if self.slices and (min(self.slices) <= 0 or sum(self.slices) != count):
            raise FieldError("a round's slices do not add up to its number of latencies")
        if any(len(times) != count for times in self.stages_ns.values()):
            raise FieldError("a round's stages and latencies differ in number")
        if not 0 <= self.waited <= count:
            raise FieldError("a round's waited must be 0 to its number of latencies")

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


class RoundStatistics:
    """Statistics of the rounds of a row."""

    rounds: tuple[BlockResult, ...]

    @property
    def images_per_inference(self) -> int:
        """Batch size."""
        return 1

    @cached_property
    def latencies_ns(self) -> list[int]:
        """Latencies of all rounds, without exception."""
        return [latency for block in self.rounds for latency in block.latencies_ns]

    def percentile_ms(self, percent: int) -> float | None:
        """Return a percentile over all rounds, or None if there are too few latencies for it."""
        value = percentile(self.latencies_ns, percent)
        return None if value is None else value / 1e6

    @computed
    def p50_ms(self) -> float | None:
        """Median latency over all rounds; None if not timed."""
        return self.percentile_ms(50)

    @computed
    def p90_ms(self) -> float | None:
        """90th percentile over all rounds; None if there are too few latencies for it."""
        return self.percentile_ms(90)

    @cached_property
    def p50_interval_ms(self) -> tuple[float, float] | None:
        """95% interval of p50, from the rounds' medians; None for fewer than two rounds."""
        if len(self.rounds) < 2:
            return None
        low, high = median_interval(self.round_medians_ns)
        return low / 1e6, high / 1e6

    @computed
    def images_per_second(self) -> float | None:
        """Throughput: images divided by the sum of the latencies; None if not timed."""
        if not self.latencies_ns:
            return None
        images = self.images_per_inference * len(self.latencies_ns)
        return images / (sum(self.latencies_ns) / 1e9)

    @property
    def round_medians_ns(self) -> list[float]:
        """Median latency of each round."""
        return [block.median_ns for block in self.rounds]

    @property
    def spread(self) -> float:
        """(largest - smallest) / median of the rounds' medians; 0 without rounds."""
        return relative_spread(self.round_medians_ns)

    @computed
    def steady(self) -> bool:
        """Whether the warm-up converged in every round."""
        return all(block.steady for block in self.rounds)


@dataclass(frozen=True)
class BenchRow(RoundStatistics):
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
    gate: GateResult
    """A row that failed was not timed."""
    session: SessionRecord
    rounds: tuple[BlockResult, ...] = ()
    rate: float | None = None
    """Arrivals a second; None is a single stream of back-to-back calls."""
    accuracy: AccuracyRecord | None = field(default=None, metadata=in_json(omit_default=True))
    """Accuracy of the variant at the export, with its runtime and precision; None if unknown."""

    def __post_init__(self) -> None:
        if self.batch < 1 or self.threads < 1:
            raise FieldError(f"batch and threads of row {self.id} must be >= 1")
        if len({frozenset(block.stages_ns) for block in self.rounds}) > 1:
            raise FieldError(f"row {self.id} has rounds with different stages")

    @computed
    def id(self) -> str:
        """Identifier, unique within a result."""
        rate = "" if self.rate is None else f"-r{self.rate:g}"
        # OpenVINO may run both its own file, openvino-int8, and the ONNX file of int8.
        runtime = f"{self.runtime}-{self.variant}-{self.scope}-{self.provider}"
        return f"{runtime}-b{self.batch}-t{self.threads}{rate}"

    @property
    def name(self) -> str:
        """Runtime and variant, without the runtime twice: `onnxruntime int8`, `openvino-int8`."""
        if self.variant.startswith(f"{self.runtime}-"):
            return self.variant
        return f"{self.runtime} {self.variant}"

    @property
    def precision(self) -> str | None:
        """Precision that ran, as far as it is recorded."""
        return self.session.precision or self.session.dtype

    @property
    def precision_bits(self) -> int | None:
        """Bits of a number in the precision that ran, or else in that of the variant's name."""
        match = re.search(r"(?:fp|bf|float|int)(\d+)", self.precision or self.variant)
        return None if match is None else int(match[1])

    @property
    def images_per_inference(self) -> int:
        """Batch size."""
        return self.batch

    @property
    def comparison_key(self) -> tuple[str, str, int, int, float | None]:
        """Properties that two rows of a result must share to be compared."""
        return self.scope, self.input, self.batch, self.threads, self.rate

    @property
    def has_failed_gate(self) -> bool:
        """Whether the row failed the gate."""
        return self.gate.passed is False

    @computed
    def p99_ms(self) -> float | None:
        """99th percentile over all rounds; None if there are too few latencies for it."""
        return self.percentile_ms(99)

    @computed_as("p50_ci95_ms")
    def _p50_interval(self) -> tuple[float, float] | None:
        return self.p50_interval_ms

    @computed_as("cold", none_is_empty=True)
    def cold(self) -> ColdStartSummary | None:
        """Cold start over all rounds; None if not timed."""
        if not self.rounds:
            return None
        starts = [block.cold for block in self.rounds]
        return ColdStartSummary(
            import_ms=median(start.import_ms for start in starts),
            session_ms=median(start.session_ms for start in starts),
            first_inference_ms=median(start.first_inference_ms for start in starts),
            peak_memory_bytes=largest(start.peak_memory_bytes for start in starts),
            processes=len(starts),
        )

    @computed
    def stages_ms(self) -> dict[str, float]:
        """Median of each stage over all rounds."""
        names = self.rounds[0].stages_ns if self.rounds else ()
        return {
            name: median(time for block in self.rounds for time in block.stages_ns[name]) / 1e6
            for name in names
        }

    @computed_as("waited")
    def waiting_share(self) -> float:
        """Share of paced arrivals that waited for the previous inference."""
        if not self.latencies_ns:
            return 0.0
        return sum(block.waited for block in self.rounds) / len(self.latencies_ns)

    @computed
    def memory_growth_bytes(self) -> int | None:
        """Median memory growth over the rounds; None if it was not measured."""
        growths = [
            block.memory_growth_bytes
            for block in self.rounds
            if block.memory_growth_bytes is not None
        ]
        return round(median(growths)) if growths else None

    @computed_as("gpu", none_is_empty=True)
    def gpu(self) -> GpuSummary | None:
        """State of the GPU over the rounds; None if it was not read."""
        readings = [block.gpu for block in self.rounds if block.gpu is not None]
        return GpuSummary.from_readings(readings) if readings else None

    @computed
    def energy_mj(self) -> dict[str, float]:
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

    @property
    def cpu_ms(self) -> float | None:
        """Processor time of all threads an image, median over the rounds; None if not recorded."""
        values = [
            block.cpu_ns / 1e6 / (self.batch * len(block.latencies_ns))
            for block in self.rounds
            if block.cpu_ns is not None
        ]
        return median(values) if values else None


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


def relative_spread(medians: Iterable[float]) -> float:
    """Return (largest - smallest) / median; 0 if there are no values."""
    values = list(medians)
    return (max(values) - min(values)) / median(values) if values else 0.0


def largest(values: Iterable[Number | None]) -> Number | None:
    """Return the largest value that is not None, or None."""
    return max((value for value in values if value is not None), default=None)

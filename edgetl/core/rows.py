"""What was measured of one runtime in one scope: raw latencies by rounds, and the figures computed from them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from statistics import median
from typing import Any

from edgetl.core.statistics import percentile


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


def relative_spread(medians: Iterator[float] | list[float] | tuple[float, ...]) -> float:
    """(largest - smallest) / median; 0 for an empty list."""
    values = list(medians)
    return (max(values) - min(values)) / median(values) if values else 0.0

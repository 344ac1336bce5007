"""Results of `edgetl loadgen`: latencies by MLPerf LoadGen and by edgetl's own loop."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Literal

from edgetl.core.artifacts.bench import BenchedModel
from edgetl.core.artifacts.bench_rows import BenchRow
from edgetl.core.artifacts.device import DeviceInfo
from edgetl.core.artifacts.gate import GateResult
from edgetl.core.artifacts.loadgen_logs import LoadgenSummary
from edgetl.core.artifacts.noise import NoiseReport
from edgetl.core.artifacts.session import SessionRecord
from edgetl.core.config.loadgen import Scenario
from edgetl.core.files import SCHEMA
from edgetl.core.typed_json import JsonObject, computed, computed_as, in_json, to_json

MLPERF_MIN_DURATION_S = 600.0
"""Minimum duration of a performance run by MLPerf's rules."""
AGREEMENT_TOLERANCE = 0.05
"""Largest relative difference at which LoadGen and edgetl agree."""
MLPERF_ACCURACY_SHARE = 0.99
"""Share of the accuracy at export that an accuracy run must reach, as MLPerf requires."""


@dataclass(frozen=True)
class WrongPrediction:
    """Wrongly classified image."""

    file: str
    answer: str
    expected: str = field(metadata=in_json(key="wanted"))


@dataclass(frozen=True)
class LoadgenAccuracy:
    """LoadGen's accuracy run, compared with labels or reference predictions."""

    against: Literal["labels", "reference"]
    """Ground truth: the labels given by folder names, or the bundle's PyTorch predictions."""
    images: int
    wrong: tuple[WrongPrediction, ...]
    least: float | None
    """Required accuracy; None if there is no requirement."""
    summary: LoadgenSummary

    @computed_as("right")
    def correct_images(self) -> int:
        """Number of correctly classified images."""
        return self.images - len(self.wrong)

    @computed_as("share")
    def accuracy(self) -> float:
        """Share of correctly classified images."""
        return self.correct_images / self.images

    @computed
    def passed(self) -> bool:
        """Whether the required accuracy is reached."""
        return self.least is None or self.accuracy >= self.least


@dataclass(frozen=True)
class LoadgenPerformance:
    """LoadGen's performance run and edgetl's own loop over the same model in the same process.

    Latencies are those of a query; in scenario `offline` they are the time for one sample.
    """

    scenario: Scenario
    summary: LoadgenSummary
    before_ns: tuple[int, ...]
    """Query latencies of edgetl's loop before LoadGen's test."""
    after_ns: tuple[int, ...]
    """Query latencies of edgetl's loop after LoadGen's test."""
    inside_ns: tuple[int, ...]
    """Duration of edgetl's callback for each query of LoadGen, by edgetl's clock."""
    model_ns: tuple[int, ...]
    """Part of `inside_ns` spent in the model, which is what edgetl's loop measures."""
    loop_images: int
    """Images in each query of edgetl's loop."""
    issued: int
    """Samples requested by LoadGen."""
    steady: bool = True
    """Whether the warm-up of edgetl's loop converged."""

    @property
    def is_throughput(self) -> bool:
        """Whether the scenario reports samples a second instead of latency."""
        return self.scenario == "offline"

    @cached_property
    def loadgen_ns(self) -> float:
        """p50 latency by LoadGen."""
        if self.is_throughput:
            return 1e9 / self.summary.get_figure("Samples per second")
        return self.summary.get_figure("50.00 percentile latency (ns)")

    @cached_property
    def edgetl_ns(self) -> float:
        """p50 latency by edgetl's loop."""
        return self._compute_loop_ns((*self.before_ns, *self.after_ns))

    @cached_property
    def callback_ns(self) -> float:
        """p50 duration of edgetl's callback during LoadGen's test, by edgetl's clock."""
        return sum(self.inside_ns) / self.issued if self.is_throughput else median(self.inside_ns)

    @cached_property
    def inference_ns(self) -> float:
        """p50 time spent in the model during LoadGen's test, by edgetl's clock."""
        return sum(self.model_ns) / self.issued if self.is_throughput else median(self.model_ns)

    @property
    def ratio(self) -> float:
        """LoadGen's latency over edgetl's; in `offline`, LoadGen's throughput over edgetl's."""
        if self.is_throughput:
            return self.edgetl_ns / self.loadgen_ns
        return self.loadgen_ns / self.edgetl_ns

    @property
    def is_within_tolerance(self) -> bool:
        """Whether LoadGen and edgetl are within 5% of each other."""
        return abs(self.ratio - 1) <= AGREEMENT_TOLERANCE

    @property
    def disagreement(self) -> str:
        """Probable cause of a difference between LoadGen and edgetl; empty if they agree."""
        if self.is_within_tolerance:
            return ""
        inside = self.callback_ns - self.inference_ns
        outside = self.loadgen_ns - self.callback_ns
        if (inside + outside) / self.inference_ns <= AGREEMENT_TOLERANCE:
            before = self._compute_loop_ns(self.before_ns)
            after = self._compute_loop_ns(self.after_ns)
            return (
                "the machine changed its speed: during LoadGen's test both clocks agree "
                f"({self.loadgen_ns / self.inference_ns:.2f}), but edgetl's loop took "
                f"{before / 1e6:.3g} ms before the test and {after / 1e6:.3g} ms after it. "
                "Measure again when nothing else runs"
            )
        if outside > inside:
            return (
                f"{outside / 1e6:.3g} ms are spent outside edgetl's callback: "
                "in LoadGen, its bindings and the call into Python"
            )
        return (
            f"{inside / 1e6:.3g} ms are spent on Python in edgetl's callback, "
            "which gathers samples and returns predictions"
        )

    def _compute_loop_ns(self, latencies: tuple[int, ...]) -> float:
        if self.is_throughput:
            return sum(latencies) / len(latencies) / self.loop_images
        return median(latencies)

    @computed
    def comparison(self) -> JsonObject:
        """Figures by both clocks: p50 latencies, or throughputs in scenario `offline`."""
        latencies = {
            name: getattr(self, f"{name}_ns")
            for name in ("loadgen", "edgetl", "callback", "inference")
        }
        statistics = {f"{name}_p50_ms": ns / 1e6 for name, ns in latencies.items()}
        if self.is_throughput:
            statistics = {f"{name}_samples_per_second": 1e9 / ns for name, ns in latencies.items()}
        return {
            **statistics,
            "ratio": self.ratio,
            "agrees": self.is_within_tolerance,
            "within": AGREEMENT_TOLERANCE,
            "reason": self.disagreement or None,
        }


@dataclass(frozen=True)
class LoadgenConfiguration:
    """Measured configuration: the fields of a row of `edgetl bench`."""

    id: str
    variant: str
    scope: str
    provider: str
    batch: int
    threads: int
    input: str
    file_sha256: str
    gate: GateResult
    session: SessionRecord

    @classmethod
    def from_row(cls, row: BenchRow) -> LoadgenConfiguration:
        """Return the configuration of a row."""
        return cls(**{field.name: getattr(row, field.name) for field in fields(cls)})


@dataclass(frozen=True)
class SampleSetRecord:
    """Images that LoadGen issues."""

    kind: Literal["labels", "reference"]
    """Ground truth, see `LoadgenAccuracy.against`."""
    images: int
    resident: int
    """Number of samples loaded at once."""
    description: str


@dataclass(frozen=True)
class LoadgenResult:
    """Result of one `edgetl loadgen` command."""

    created: str
    """Time of the measurement, UTC, ISO 8601."""
    edgetl: str
    """Version of edgetl that measured."""
    loadgen: str
    """Version of the package mlcommons-loadgen."""
    target: str
    model: BenchedModel
    scenario: Scenario
    configuration: LoadgenConfiguration
    samples: SampleSetRecord
    min_duration_s: float
    device: DeviceInfo
    noise: NoiseReport
    accuracy: LoadgenAccuracy | None = None
    performance: LoadgenPerformance | None = None
    notes: tuple[str, ...] = ()
    logs: str | None = None
    """Folder of LoadGen's log files, beside the result."""
    path: Path | None = field(default=None, compare=False, metadata=in_json(stored=False))
    """The result file."""

    def __repr__(self) -> str:
        return f"LoadgenResult({self.target!r}, {self.scenario!r}, path={str(self.path)!r})"

    @computed
    def official(self) -> bool:
        """Whether this is an MLPerf result, which it never is."""
        return False

    @computed_as("unofficial")
    def unofficial_reasons(self) -> list[str]:
        """Reasons why this is not an MLPerf result, even if LoadGen reports VALID."""
        reasons = ["model and images are not MLPerf's, and the result was not reviewed"]
        if self.performance is not None and self.min_duration_s < MLPERF_MIN_DURATION_S:
            reasons.append(
                "a performance run must last at least 10 minutes (--min-duration 10m), "
                f"this one {self.min_duration_s:g} s"
            )
        return reasons

    def to_json(self) -> JsonObject:
        """Return the content of the result file, which `--json` prints as well."""
        return {"schema": SCHEMA, "kind": "loadgen", **to_json(self)}

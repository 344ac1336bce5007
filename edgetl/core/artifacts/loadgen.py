"""What `edgetl bench --loadgen` is asked to do, and what it found: MLPerf LoadGen's own figures beside edgetl's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any, Literal

from edgetl.core.artifacts.bench import Noise
from edgetl.core.artifacts.loadgen_logs import LoadgenSummary
from edgetl.core.config.loadgen import (
    Scenario,
)
from edgetl.core.files import SCHEMA

MLPERF_MIN_DURATION_S = 600.0
"""Least duration of a performance run, by MLPerf's rules."""
AGREEMENT_TOLERANCE = 0.05
"""LoadGen and edgetl agree where their ratio is off by no more."""
MLPERF_ACCURACY_SHARE = 0.99
"""Of the accuracy that was proven at export, an accuracy run must reach this share, as MLPerf asks of its reference networks."""


@dataclass(frozen=True)
class LoadgenAccuracy:
    """LoadGen's accuracy run, its answers held against what they should be."""

    against: Literal["labels", "reference"]
    """The names of the folders, or the answers of PyTorch that the bundle brings."""
    images: int
    wrong: tuple[Mapping[str, str], ...]
    """{"file", "answer", "wanted"} of each image that was answered wrongly."""
    least: float | None
    """Share of right answers that it must reach; None where nothing says how many."""
    summary: LoadgenSummary

    @property
    def correct_images(self) -> int:
        """Images answered rightly."""
        return self.images - len(self.wrong)

    @property
    def accuracy(self) -> float:
        """Of right answers."""
        return self.correct_images / self.images

    @property
    def passed(self) -> bool:
        """Whether it reached what it must."""
        return self.least is None or self.accuracy >= self.least

    def to_json(self) -> dict[str, Any]:
        """As it stands in the result."""
        return {
            **asdict(self),
            "right": self.correct_images,
            "share": self.accuracy,
            "passed": self.passed,
        }


@dataclass(frozen=True)
class LoadgenPerformance:
    """LoadGen's performance run beside edgetl's own figures of the same configuration, from the same process."""

    scenario: Scenario
    summary: LoadgenSummary
    before_ns: tuple[int, ...]
    """edgetl's tight loop before LoadGen's test: every query's latency."""
    after_ns: tuple[int, ...]
    """The same after it."""
    inside_ns: tuple[int, ...]
    """Of each of LoadGen's queries the time from edgetl's being called to its handing over the answers, by edgetl's own clock."""
    model_ns: tuple[int, ...]
    """Of that time the part that edgetl's loop times as well: the model's own."""
    loop_images: int
    """Images in each query of the loop."""
    issued: int
    """Samples that LoadGen asked for."""
    steady: bool = True
    """Whether the loop's warm-up reached steadiness."""

    @property
    def is_throughput(self) -> bool:
        """Whether the scenario's figure is samples a second rather than a latency."""
        return self.scenario == "offline"

    @cached_property
    def loadgen_ns(self) -> float:
        """LoadGen's p50 of a query; in offline its time for one sample. ns."""
        return (
            1e9 / self.summary.get_figure("Samples per second")
            if self.is_throughput
            else self.summary.get_figure("50.00 percentile latency (ns)")
        )

    @cached_property
    def edgetl_ns(self) -> float:
        """The same by edgetl's tight loop."""
        return self._compute_loop_ns((*self.before_ns, *self.after_ns))

    @cached_property
    def callback_ns(self) -> float:
        """The same by edgetl's clock inside LoadGen's test."""
        return sum(self.inside_ns) / self.issued if self.is_throughput else median(self.inside_ns)

    @cached_property
    def inference_ns(self) -> float:
        """Of that the model's own part: what edgetl's loop measures, at the same moment as LoadGen."""
        return sum(self.model_ns) / self.issued if self.is_throughput else median(self.model_ns)

    @property
    def ratio(self) -> float:
        """LoadGen's figure over edgetl's."""
        return (
            self.edgetl_ns / self.loadgen_ns
            if self.is_throughput
            else self.loadgen_ns / self.edgetl_ns
        )

    @property
    def is_within_tolerance(self) -> bool:
        """Whether the two are within 5% of each other."""
        return abs(self.ratio - 1) <= AGREEMENT_TOLERANCE

    @property
    def disagreement(self) -> str:
        """Why the two differ, as far as the figures tell; empty where they agree."""
        if self.is_within_tolerance:
            return ""
        inside, outside = self.callback_ns - self.inference_ns, self.loadgen_ns - self.callback_ns
        if (inside + outside) / self.inference_ns <= AGREEMENT_TOLERANCE:
            before, after = (
                self._compute_loop_ns(self.before_ns),
                self._compute_loop_ns(self.after_ns),
            )
            return (
                "this machine changed its speed meanwhile, for inside LoadGen's test both clocks agree "
                f"({self.loadgen_ns / self.inference_ns:.2f}); edgetl's loop took {before / 1e6:.3g} ms before the test and "
                f"{after / 1e6:.3g} ms after it. Measure again when nothing else runs"
            )
        if outside > inside:
            return f"{outside / 1e6:.3g} ms lie outside edgetl's callback: LoadGen, its bindings and the way into Python"
        return f"{inside / 1e6:.3g} ms are Python in edgetl's callback, which gathers samples and hands over answers"

    def _compute_loop_ns(self, latencies: tuple[int, ...]) -> float:
        return (
            sum(latencies) / len(latencies) / self.loop_images
            if self.is_throughput
            else median(latencies)
        )

    def to_json(self) -> dict[str, Any]:
        """As it stands in the result: LoadGen's summary, raw latencies, and the figures computed from them."""
        figures = {
            name: getattr(self, f"{name}_ns")
            for name in ("loadgen", "edgetl", "callback", "inference")
        }
        told = (
            {f"{name}_samples_per_second": 1e9 / ns for name, ns in figures.items()}
            if self.is_throughput
            else {}
        )
        told = told or {f"{name}_p50_ms": ns / 1e6 for name, ns in figures.items()}
        return {
            **asdict(self),
            "comparison": {
                **told,
                "ratio": self.ratio,
                "agrees": self.is_within_tolerance,
                "within": AGREEMENT_TOLERANCE,
                "reason": self.disagreement or None,
            },
        }


@dataclass(frozen=True)
class LoadgenResult:
    """One run of `edgetl bench --loadgen`."""

    created: str
    """UTC, ISO 8601."""
    edgetl: str
    """The version that measured."""
    loadgen: str
    """Version of the package mlcommons-loadgen."""
    target: str
    model: Mapping[str, Any]
    """{"name", "run_id"}."""
    scenario: Scenario
    configuration: Mapping[str, Any]
    """{"id", "variant", "scope", "provider", "batch", "threads", "input", "file_sha256", "gate", "session"}."""
    samples: Mapping[str, Any]
    """{"kind": "reference" or "labelled", "images", "resident", "description"}."""
    min_duration_s: float
    device: Mapping[str, Any]
    noise: Noise
    accuracy: LoadgenAccuracy | None = None
    performance: LoadgenPerformance | None = None
    notes: tuple[str, ...] = ()
    logs: str | None = None
    """Folder of LoadGen's own files, beside the result."""
    path: Path | None = field(default=None, compare=False)
    """The file it lies in."""

    @property
    def unofficial_reasons(self) -> list[str]:
        """Why the figures are no MLPerf result, whatever LoadGen's verdict on the run."""
        reasons = ["network and images are not MLPerf's reference ones, and nobody reviewed it"]
        if self.performance is not None and self.min_duration_s < MLPERF_MIN_DURATION_S:
            reasons.append(
                f"a performance run lasts 10 minutes or more (--min-duration 10m), this one {self.min_duration_s:g} s"
            )
        return reasons

    def to_json(self) -> dict[str, Any]:
        """What `edgetl bench --loadgen ... --json` prints and the result file holds."""
        names = ("created", "edgetl", "loadgen", "target", "scenario", "min_duration_s", "logs")
        return {
            "schema": SCHEMA,
            "kind": "loadgen",
            **{name: getattr(self, name) for name in names},
            "model": dict(self.model),
            "configuration": dict(self.configuration),
            "samples": dict(self.samples),
            "device": dict(self.device),
            "noise": self.noise.to_json(),
            "accuracy": None if self.accuracy is None else self.accuracy.to_json(),
            "performance": None if self.performance is None else self.performance.to_json(),
            "official": False,
            "unofficial": self.unofficial_reasons,
            "notes": list(self.notes),
        }

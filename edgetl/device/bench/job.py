"""Jobs of worker processes and their replies, sent as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

from edgetl.core.artifacts.session import SessionRecord
from edgetl.core.typed_json import parse_as, to_json
from edgetl.device.bench.backend import ModelSource
from edgetl.device.bench.protocol import BenchProtocol


@dataclass(frozen=True)
class Workload:
    """Scope and arrival rate of a measurement."""

    scope: str
    rate: float | None = None
    """Arrivals per second; None for back-to-back calls."""

    @property
    def name(self) -> str:
        """Name, unique within a job."""
        return self.scope if self.rate is None else f"{self.scope}@{self.rate:g}"


@dataclass(frozen=True)
class WorkerJob:
    """Work of one process: check, measure or profile a model."""

    worker_module: ClassVar[str] = "edgetl.device.bench.worker"
    """Module that runs the job: `python -m MODULE JOB.json ANSWER.json`."""

    task: str
    """Key of the worker's handlers: `gate`, `measure`, `profile` or `sustain`."""
    runtime: str
    source: ModelSource
    streams: tuple[Workload, ...]
    protocol: BenchProtocol
    model_inputs: Path | None = None
    """An .npy file [n, 1, ...] of inputs for scope `model`; None means random inputs."""
    files: tuple[Path, ...] = ()
    """Encoded images for the scopes `image` and `file`, and for the gate."""
    seconds: float = 0.0
    """Duration of a sustained measurement."""
    journal: Path | None = None
    """File to which a sustained measurement appends its windows one by one."""

    def encode(self) -> str:
        """Return the job as JSON, for `decode`."""
        return json.dumps(to_json(self))

    @classmethod
    def decode(cls, text: str) -> Self:
        """Return the job that `encode` encoded."""
        return parse_as(cls, json.loads(text), "the job")


@dataclass(frozen=True)
class GateReply:
    """Reply to task `gate`: the opened model and its logits."""

    settings: Mapping[str, str]
    """Settings that `Backend.autotune` chose, for later processes."""
    provider: str
    """Short name of the provider that runs the model."""
    session: SessionRecord
    input: str
    """Types and shapes of an inference in scope `model`."""
    batch: int
    peak_memory_bytes: int | None
    golden_logits: object
    """Numbers [images, classes], which may be NaN; empty without golden images."""
    model_logits: object
    """Numbers [batches, batch, classes] of scope `model`; empty without inputs."""
    golden_probabilities: object = ()
    """Numbers [images, classes]; empty if the runtime computes only logits."""
    golden_unknown_scores: object = ()
    """Numbers [images]; empty if the runtime computes none."""

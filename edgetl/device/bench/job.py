"""Jobs of worker processes, sent as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from edgetl.core.preprocessing import Preprocessing
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

    def to_json(self) -> str:
        """Return the job as JSON, for `from_json`."""
        content = asdict(self)
        preprocessing = self.source.preprocessing
        content["source"]["preprocessing"] = (
            None if preprocessing is None else preprocessing.to_json()
        )
        return json.dumps(content, default=str)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return the job written by `to_json`."""
        return cls(**cls.parse_fields(json.loads(text)))

    @classmethod
    def parse_fields(cls, content: dict[str, Any]) -> dict[str, Any]:
        """Return the keyword arguments of the class from its JSON object."""
        return {
            **content,
            "source": _parse_source(content["source"]),
            "streams": tuple(Workload(**workload) for workload in content["streams"]),
            "protocol": BenchProtocol(**content["protocol"]),
            "model_inputs": _optional_path(content["model_inputs"]),
            "files": tuple(Path(name) for name in content["files"]),
            "journal": _optional_path(content["journal"]),
        }


def _parse_source(content: dict[str, Any]) -> ModelSource:
    size = content["size"]
    preprocessing = content["preprocessing"]
    fields = {
        **content,
        "model": Path(content["model"]),
        "input_file": _optional_path(content["input_file"]),
        "size": None if size is None else tuple(size),
    }
    if preprocessing is not None:
        fields["preprocessing"] = Preprocessing.from_json(preprocessing)
    return ModelSource(**fields)


def _optional_path(name: str | None) -> Path | None:
    return None if name is None else Path(name)

"""What a worker process is told, as JSON, and how what it answers comes back."""

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
    """What is fed in, and when."""

    scope: str
    rate: float | None = None
    """Arrivals a second; None: a call follows on the one before."""

    @property
    def name(self) -> str:
        """Unique within a job."""
        return self.scope if self.rate is None else f"{self.scope}@{self.rate:g}"


@dataclass(frozen=True)
class WorkerJob:
    """One process's work: prove a model right, or measure it."""

    worker_module: ClassVar[str] = "edgetl.device.bench.worker"
    """The module that runs the job: `python -m MODULE JOB.json ANSWER.json`."""

    task: str
    """A key of the worker's handlers: `gate`, `measure`, `profile` or `sustain`."""
    runtime: str
    source: ModelSource
    streams: tuple[Workload, ...]
    protocol: BenchProtocol
    model_inputs: Path | None = None
    """An .npy file [n, 1, ...] of batches for scope `model`; None: random ones of the model's own shape."""
    files: tuple[Path, ...] = ()
    """Encoded images for the scopes `image` and `file`, and for the gate."""
    seconds: float = 0.0
    """How long a sustained run lasts."""
    journal: Path | None = None
    """Where a sustained run writes its windows one by one, so that what was measured survives an interruption."""

    def to_json(self) -> str:
        """As the worker reads it."""
        content = asdict(self)
        contract = self.source.preprocessing
        content["source"]["preprocessing"] = None if contract is None else contract.to_json()
        return json.dumps(content, default=str)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read a job that `to_json` wrote."""
        return cls(**cls.parse_fields(json.loads(text)))

    @classmethod
    def parse_fields(cls, content: dict[str, Any]) -> dict[str, Any]:
        """Return the keyword arguments of the class from its JSON object."""
        source = content["source"]
        preprocessing = source["preprocessing"]
        return {
            **content,
            "source": ModelSource(
                **{
                    **source,
                    "model": Path(source["model"]),
                    "given": _optional_path(source["given"]),
                    "size": None if source["size"] is None else tuple(source["size"]),
                    "preprocessing": None
                    if preprocessing is None
                    else Preprocessing.from_json(preprocessing),
                }
            ),
            "streams": tuple(Workload(**stream) for stream in content["streams"]),
            "protocol": BenchProtocol(**content["protocol"]),
            "model_inputs": _optional_path(content["model_inputs"]),
            "files": tuple(Path(name) for name in content["files"]),
            "journal": _optional_path(content["journal"]),
        }


def _optional_path(name: str | None) -> Path | None:
    return None if name is None else Path(name)

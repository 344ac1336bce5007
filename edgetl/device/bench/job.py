"""What a worker process is told, as JSON, and how what it answers comes back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from edgetl.core import errors
from edgetl.core.errors import BenchError, EdgetlError
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
class LoadgenPlan:
    """What MLPerf LoadGen is to do with a job's model and files; see `edgetl.device.loadgen`."""

    scenario: str
    mode: str
    folder: Path
    """Where it writes its files."""
    min_duration_s: float
    query_samples: int
    """Images in each query of edgetl's own loop."""
    resident: int
    """Samples in memory at once."""
    loop_s: float
    """How long edgetl's own loop runs before LoadGen's test, and again after it."""


@dataclass(frozen=True)
class WorkerJob:
    """One process's work: prove a model right, or measure it."""

    task: Literal["gate", "measure", "profile", "sustain", "loadgen"]
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
    loadgen: LoadgenPlan | None = None

    def to_json(self) -> str:
        """As the worker reads it."""
        content = asdict(self)
        contract = self.source.preprocessing
        content["source"]["preprocessing"] = None if contract is None else contract.to_json()
        return json.dumps(content, default=str)

    @classmethod
    def from_json(cls, text: str) -> WorkerJob:
        """The inverse of `to_json`."""
        content = json.loads(text)
        source, contract, plan = (
            content["source"],
            content["source"]["preprocessing"],
            content["loadgen"],
        )
        return cls(
            task=content["task"],
            runtime=content["runtime"],
            source=ModelSource(
                **{
                    **source,
                    "model": Path(source["model"]),
                    "given": None if source["given"] is None else Path(source["given"]),
                    "size": None if source["size"] is None else tuple(source["size"]),
                    "preprocessing": None
                    if contract is None
                    else Preprocessing.from_json(contract),
                }
            ),
            streams=tuple(Workload(**stream) for stream in content["streams"]),
            protocol=BenchProtocol(**content["protocol"]),
            model_inputs=None if content["model_inputs"] is None else Path(content["model_inputs"]),
            files=tuple(Path(name) for name in content["files"]),
            seconds=content["seconds"],
            journal=None if content["journal"] is None else Path(content["journal"]),
            loadgen=None
            if plan is None
            else LoadgenPlan(**{**plan, "folder": Path(plan["folder"])}),
        )


def error_to_json(error: EdgetlError) -> dict[str, str]:
    """An error on its way from a worker to the process that waits for it."""
    return {"class": type(error).__name__, "message": str(error)}


def error_from_json(content: Mapping[str, str]) -> EdgetlError:
    """The same error again; one that this edgetl does not know becomes a BenchError."""
    known = getattr(errors, content["class"], BenchError)
    error = known(content["message"])
    assert isinstance(error, EdgetlError)
    return error

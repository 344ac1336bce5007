"""The job of LoadGen's worker process."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from edgetl.device.bench.job import WorkerJob


@dataclass(frozen=True)
class LoadgenPlan:
    """Settings of one LoadGen test."""

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
class LoadgenJob(WorkerJob):
    """A job of the benchmark's worker, with LoadGen's test as its only task."""

    worker_module: ClassVar[str] = "edgetl.device.loadgen.worker"

    plan: LoadgenPlan = field(kw_only=True)

    @classmethod
    def parse_fields(cls, content: dict[str, Any]) -> dict[str, Any]:
        """Return the keyword arguments of the class from its JSON object."""
        plan = content["plan"]
        plan = LoadgenPlan(**{**plan, "folder": Path(plan["folder"])})
        return {**super().parse_fields(content), "plan": plan}

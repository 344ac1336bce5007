"""Job of LoadGen's worker process."""

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
    """Folder for LoadGen's log files."""
    min_duration_s: float
    query_samples: int
    """Images per query of edgetl's own loop."""
    resident: int
    """Samples loaded in memory at once."""
    loop_s: float
    """Duration of edgetl's own loop before LoadGen's test, and again after it."""


@dataclass(frozen=True)
class LoadgenJob(WorkerJob):
    """Worker job whose only task is a LoadGen test."""

    worker_module: ClassVar[str] = "edgetl.device.loadgen.worker"

    plan: LoadgenPlan = field(kw_only=True)

    @classmethod
    def parse_fields(cls, content: dict[str, Any]) -> dict[str, Any]:
        """Return the keyword arguments of the class from its JSON object."""
        plan = content["plan"]
        plan = LoadgenPlan(**{**plan, "folder": Path(plan["folder"])})
        return {**super().parse_fields(content), "plan": plan}

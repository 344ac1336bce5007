"""Job of LoadGen's worker process and its reply."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

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


@dataclass(frozen=True)
class LoadgenReply:
    """Reply of LoadGen's worker; the times are those of a performance run."""

    issued: int
    """Number of samples that LoadGen issued."""
    before_ns: tuple[int, ...] = ()
    after_ns: tuple[int, ...] = ()
    inside_ns: tuple[int, ...] = ()
    model_ns: tuple[int, ...] = ()
    steady: bool = True
    """Whether the warm-up of edgetl's own loop converged."""

"""Messages between an experiment and its worker process: lines of JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edgetl.core.artifacts.run import EpochRecord
from edgetl.core.config.finetune import FinetuneConfig
from edgetl.core.progress import StepProgress
from edgetl.core.typed_json import in_json


@dataclass(frozen=True)
class WorkerTask:
    """Task of a worker; one of the fields is set."""

    train: FinetuneConfig | None = None
    """Run to train."""
    export: Path | None = None
    """Run directory to export."""
    estimate: tuple[FinetuneConfig, ...] = ()
    """Runs whose training time is estimated."""


@dataclass(frozen=True)
class WorkerMessage:
    """Message of a worker; one of the fields is set."""

    note: str | None = field(default=None, metadata=in_json(omit_default=True))
    warning: str | None = field(default=None, metadata=in_json(omit_default=True))
    step: StepProgress | None = field(default=None, metadata=in_json(omit_default=True))
    epoch: EpochRecord | None = field(default=None, metadata=in_json(omit_default=True))
    seconds: float | None = field(default=None, metadata=in_json(omit_default=True))
    """Estimated time of the next run of the task."""
    error: Mapping[str, str] | None = field(default=None, metadata=in_json(omit_default=True))
    """Error that ended the task, see `edgetl.core.errors.error_to_json`."""
    done: bool = field(default=False, metadata=in_json(omit_default=True))
    """Whether the task is complete."""

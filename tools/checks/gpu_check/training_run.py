"""Fine-tuning runs of the check: `edgetl finetune` as a process, and its run directory."""

from __future__ import annotations

import hashlib
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.checks.gpu_check.settings import BUILTIN, Settings


@dataclass(frozen=True)
class TrainingRun:
    """Run directory and the result of the process that wrote it."""

    path: Path
    status: int
    """Exit status; negative for a signal."""
    output: str
    """Last 2000 characters of the process's output."""
    seconds: float
    """Time from the start of the process to its end."""
    seconds_to_metrics: float | None
    """Time from the start of the process to metrics.json; None if that was not written."""

    @property
    def history(self) -> list[dict[str, Any]]:
        """Entries of history.jsonl, one per epoch."""
        file = self.path / "history.jsonl"
        if not file.exists():
            return []
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]

    @property
    def accuracy(self) -> float:
        """Validation accuracy of the selected epoch; NaN if the run did not finish."""
        file = self.path / "metrics.json"
        if not file.exists():
            return math.nan
        return float(json.loads(file.read_text(encoding="utf-8"))["val"]["accuracy"])

    @property
    def losses_are_finite(self) -> bool:
        """True if there are losses and all of them are finite."""
        losses = [entry[name] for entry in self.history for name in ("train_loss", "val_loss")]
        return bool(losses) and all(loss is not None and math.isfinite(loss) for loss in losses)

    @property
    def weights_sha256(self) -> str:
        """SHA-256 of the saved weights; empty if there are none."""
        file = self.path / "weights.safetensors"
        return hashlib.sha256(file.read_bytes()).hexdigest() if file.exists() else ""


def finetune_options(settings: Settings, *more: str) -> list[str]:
    """Return the common arguments of `edgetl finetune`, followed by `more`."""
    weights = settings.weights
    if settings.rehearsal and weights == BUILTIN:
        more = (*more, "--cache-budget", "100MB")
    return [
        *(str(settings.data), "--model", settings.model, "--weights", weights),
        *("--image-size", str(settings.image_size), "--device", settings.device),
        *("--seed", str(settings.seed), *more),
    ]


def execute(
    command: Sequence[str], path: Path, variables: dict[str, str] | None = None
) -> TrainingRun:
    """Run a training process that writes the run directory `path`.

    Args:
        command: arguments of the Python interpreter.
        path: run directory.
        variables: additional environment variables.
    """
    started_unix_s = time.time()
    started = time.perf_counter()
    process = subprocess.run(
        [sys.executable, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **(variables or {})},
    )
    seconds = time.perf_counter() - started
    print(process.stdout, flush=True)
    metrics = path / "metrics.json"
    seconds_to_metrics = metrics.stat().st_mtime - started_unix_s if metrics.exists() else None
    return TrainingRun(
        path, process.returncode, process.stdout[-2000:], seconds, seconds_to_metrics
    )


def finetune(settings: Settings, name: str, *more: str, cache: Path | None = None) -> TrainingRun:
    """Run `edgetl finetune` in a process.

    Args:
        settings: settings of the check.
        name: name of the run directory in the scratch folder.
        more: additional options.
        cache: edgetl's cache folder; None uses a new one for this run.
    """
    path = settings.folder / name
    command = ["-m", "edgetl", "finetune", *finetune_options(settings, "-o", str(path), *more)]
    cache = cache or settings.folder / f"{name}-cache"
    return execute(command, path, {"EDGETL_CACHE": str(cache)})

"""Fine-tuning runs of the check: `edgetl finetune` as a process, and what it left behind."""

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
    """A run directory with the process that wrote it."""

    path: Path
    status: int
    """Exit status; negative for a signal."""
    output: str
    """What the process wrote last."""
    seconds: float
    """From the start of the process to its end."""
    seconds_to_metrics: float | None
    """From the start of the process to metrics.json; None where that was not written."""

    @property
    def history(self) -> list[dict[str, Any]]:
        """One entry an epoch."""
        file = self.path / "history.jsonl"
        if not file.exists():
            return []
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]

    @property
    def accuracy(self) -> float:
        """Validation accuracy of the kept epoch; NaN where the run did not end."""
        file = self.path / "metrics.json"
        if not file.exists():
            return math.nan
        return float(json.loads(file.read_text(encoding="utf-8"))["val"]["accuracy"])

    @property
    def losses_are_finite(self) -> bool:
        """True where there are losses and every one is a finite number."""
        losses = [entry[name] for entry in self.history for name in ("train_loss", "val_loss")]
        return bool(losses) and all(loss is not None and math.isfinite(loss) for loss in losses)

    @property
    def weights_sha256(self) -> str:
        """Digest of the kept weights; empty where there are none."""
        file = self.path / "weights.safetensors"
        return hashlib.sha256(file.read_bytes()).hexdigest() if file.exists() else ""


def finetune_options(settings: Settings, *more: str) -> list[str]:
    """Arguments of `edgetl finetune` that the check's runs share."""
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
    """Run a training process that writes the run directory `path`, with variables added to the environment."""
    began, started = time.time(), time.perf_counter()
    done = subprocess.run(
        [sys.executable, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **(variables or {})},
    )
    seconds = time.perf_counter() - started
    print(done.stdout, flush=True)
    metrics = path / "metrics.json"
    to_metrics = metrics.stat().st_mtime - began if metrics.exists() else None
    return TrainingRun(path, done.returncode, done.stdout[-2000:], seconds, to_metrics)


def finetune(settings: Settings, name: str, *more: str, cache: Path | None = None) -> TrainingRun:
    """Run `edgetl finetune` in a process.

    Args:
        name: of the run directory in the check's folder.
        cache: edgetl's cache; None is a new one for this run.
    """
    path = settings.folder / name
    command = ["-m", "edgetl", "finetune", *finetune_options(settings, "-o", str(path), *more)]
    cache = cache or settings.folder / f"{name}-cache"
    return execute(command, path, {"EDGETL_CACHE": str(cache)})

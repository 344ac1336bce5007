"""Reproducibility of `--deterministic` across two separate processes."""

from __future__ import annotations

import re

from tools.checks.gpu_check.record import Record
from tools.checks.gpu_check.settings import Settings
from tools.checks.gpu_check.training_run import finetune


def check_determinism(settings: Settings, record: Record) -> None:
    """Run step `determinism`: equal seeds must give equal weights."""
    epochs = ("1", "1") if settings.rehearsal else ("2", "2")
    more = ("--deterministic", "--epochs", epochs[0], "--finetune-epochs", epochs[1])
    # On a CPU the precision is chosen by timing, and the choice is cached. A GPU run gets a new
    # cache each time: there, no choice made by timing may change a result.
    cache = settings.folder / "deterministic-cache" if settings.rehearsal else None
    names = [f"deterministic-{number}" for number in range(2)]
    runs = [finetune(settings, name, *more, cache=cache) for name in names]
    for number, run in enumerate(runs):
        text = f"run {number + 1} succeeds and writes weights"
        record.require(text, run.status == 0 and run.weights_sha256 != "", run.status)
    first, second = (run.weights_sha256 for run in runs)
    text = "two runs with the same seed write the same weights (SHA-256)"
    record.require(text, first == second, f"{first[:16]} and {second[:16]}")
    output = " ".join(runs[0].output.split())
    cost_note = re.search(r"--deterministic: [^.]*(?:\.\d+[^.]*)?\.", output)
    cost = cost_note.group(0) if cost_note else "not reported"
    record.measure(cost=cost, seconds=[run.seconds for run in runs])
    record.require("the run reports the cost of determinism", cost_note is not None)

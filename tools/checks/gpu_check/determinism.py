"""`--deterministic` twice, in processes of their own."""

from __future__ import annotations

import re

from tools.checks.gpu_check.record import Record
from tools.checks.gpu_check.settings import Settings
from tools.checks.gpu_check.training_run import finetune


def check_determinism(settings: Settings, record: Record) -> None:
    """Step `determinism`."""
    epochs = ("1", "1") if settings.rehearsal else ("2", "2")
    more = ("--deterministic", "--epochs", epochs[0], "--finetune-epochs", epochs[1])
    # On a CPU timing chooses the arithmetic, and what was chosen lies in the cache. A GPU gets a new cache for
    # each run: there nothing that is chosen by the clock may change a number.
    cache = settings.folder / "deterministic-cache" if settings.rehearsal else None
    names = [f"deterministic-{number}" for number in range(2)]
    runs = [finetune(settings, name, *more, cache=cache) for name in names]
    for number, run in enumerate(runs):
        text = f"run {number + 1} ends well and leaves weights"
        record.require(text, run.status == 0 and run.weights_sha256 != "", run.status)
    first, second = (run.weights_sha256 for run in runs)
    text = "two runs of one seed leave the same weights (SHA-256)"
    record.require(text, first == second, f"{first[:16]} and {second[:16]}")
    said = re.search(r"--deterministic: [^.]*(?:\.\d+[^.]*)?\.", " ".join(runs[0].output.split()))
    record.measure(
        cost=said.group(0) if said else "not said", seconds=[run.seconds for run in runs]
    )
    record.require("the run says what determinism costs", said is not None)

"""Interruption by SIGTERM within a phase and between phases, then `--resume`."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from tools.checks.gpu_check.record import Record
from tools.checks.gpu_check.settings import Settings
from tools.checks.gpu_check.training_run import TrainingRun, execute, finetune_options

WITHIN, BETWEEN = "within", "between"
TERMINATED = 128 + signal.SIGTERM
"""edgetl's exit status after SIGTERM, which it handles like Ctrl-C."""


def check_resumption(settings: Settings, record: Record) -> None:
    """Run step `resumption`: interrupt a run within and between phases and resume it."""
    epochs = (2, 1) if settings.rehearsal else (3, 2)
    more = ("--epochs", str(epochs[0]), "--finetune-epochs", str(epochs[1]))
    accuracies = []
    for moment in (WITHIN, BETWEEN):
        with record.attempt(f"{moment}: the run can be interrupted and resumed"):
            path = settings.folder / f"ended-{moment}"
            options = finetune_options(settings, "-o", str(path), *more)
            command = ["-m", "tools.checks.gpu_check.resumption", moment, "finetune", *options]
            variables = {"EDGETL_CACHE": str(settings.folder / "resumption-cache")}
            interrupted = execute(command, path, variables)
            resume = ["-m", "edgetl", "finetune", "--resume", str(path)]
            resumed = execute(resume, path, variables)
            _check(record, moment, sum(epochs), interrupted, resumed)
            accuracies.append(resumed.accuracy)
    if len(accuracies) == 2:
        text = "the two resumed runs are equally accurate within 2 points"
        record.require(text, abs(accuracies[0] - accuracies[1]) <= 0.02, accuracies)


def _check(
    record: Record, moment: str, epochs: int, interrupted: TrainingRun, resumed: TrainingRun
) -> None:
    phase = "within a phase" if moment == WITHIN else "between phases"
    terminated = interrupted.status == TERMINATED and interrupted.seconds_to_metrics is None
    record.require(f"{phase}: SIGTERM stops the run", terminated, interrupted.status)
    record.require(f"{phase}: --resume succeeds", resumed.status == 0, resumed.status)
    continued = "Resuming after" in resumed.output
    record.require(f"{phase}: training continues from the checkpoint", continued)
    count = len(resumed.history)
    record.require(
        f"{phase}: no epoch is lost or repeated", count == epochs, f"{count} of {epochs}"
    )
    record.require(f"{phase}: every loss is finite", resumed.losses_are_finite)
    record.measure(**{phase: {"accuracy": resumed.accuracy, "seconds": resumed.seconds}})


def main() -> None:
    """Run edgetl's command line, save after every batch, and send SIGTERM at the given moment."""
    from edgetl.cli.app import main as edgetl
    from edgetl.train.engine.trainer import Trainer

    moment = sys.argv.pop(1)
    saves = 0
    save_when_due = Trainer.save_if_due

    def save(self: Trainer, loop: Any) -> None:
        nonlocal saves
        self.save_checkpoint(loop)
        saves += loop is not None
        if (moment == WITHIN and saves == 3) or (moment == BETWEEN and loop is None):
            os.kill(os.getpid(), signal.SIGTERM)
        # The original method ends the run if the signal has requested it.
        save_when_due(self, loop)

    Trainer.save_if_due = save  # type: ignore[method-assign]
    edgetl()


if __name__ == "__main__":
    main()

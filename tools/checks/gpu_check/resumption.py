"""SIGTERM within a phase and between two phases, then `--resume`."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from tools.checks.gpu_check.record import Record
from tools.checks.gpu_check.settings import Settings
from tools.checks.gpu_check.training_run import TrainingRun, execute, finetune, finetune_options

WITHIN, BETWEEN = "within", "between"


def check_resumption(settings: Settings, record: Record) -> None:
    """Step `resumption`."""
    epochs = ("2", "1") if settings.rehearsal else ("3", "2")
    more = ("--epochs", epochs[0], "--finetune-epochs", epochs[1])
    cache = settings.folder / "resumption-cache"
    whole = finetune(settings, "whole", *more, cache=cache)
    record.require("the run that nothing ends is complete", whole.status == 0, whole.status)
    for place in (WITHIN, BETWEEN):
        with record.attempt(f"{place}: the run can be ended and resumed"):
            path = settings.folder / f"ended-{place}"
            options = finetune_options(settings, "-o", str(path), *more)
            command = ["-m", "tools.checks.gpu_check.resumption", place, "finetune", *options]
            variables = {"EDGETL_CACHE": str(cache)}
            ended = execute(command, path, variables)
            resume = ["-m", "edgetl", "finetune", "--resume", str(path)]
            _compare(record, place, whole, ended, execute(resume, path, variables))


def _compare(record: Record, place: str, whole: TrainingRun, ended: TrainingRun, resumed: TrainingRun) -> None:
    phase = "within a phase" if place == WITHIN else "between phases"
    killed = ended.status == -signal.SIGTERM and ended.seconds_to_metrics is None
    record.require(f"{phase}: SIGTERM ends the run", killed, ended.status)
    record.require(f"{phase}: --resume ends well", resumed.status == 0, resumed.status)
    continued = "Going on after" in resumed.output
    record.require(f"{phase}: it goes on from the checkpoint", continued)
    counts = len(resumed.history), len(whole.history)
    record.require(f"{phase}: no epoch is lost or doubled", counts[0] == counts[1], counts)
    difference = abs(resumed.accuracy - whole.accuracy)
    text = f"{phase}: the accuracy is that of the whole run within 2 points"
    record.require(text, difference <= 0.02, f"{resumed.accuracy:.4f}, {whole.accuracy:.4f}")
    same = resumed.weights_sha256 == whole.weights_sha256
    record.measure(**{f"{phase}: weights equal bit by bit": same})


def main() -> None:
    """Run edgetl's command line, save after every batch, and send SIGTERM at the place that is asked for."""
    from edgetl.cli.app import main as edgetl
    from edgetl.train.recipe import Training

    place = sys.argv.pop(1)
    saves = 0

    def save(self: Training, epochs: Any) -> None:
        nonlocal saves
        self.save(epochs)
        saves += epochs is not None
        if (place == WITHIN and saves == 3) or (place == BETWEEN and epochs is None):
            os.kill(os.getpid(), signal.SIGTERM)

    Training.save_when_due = save  # type: ignore[method-assign]
    edgetl()


if __name__ == "__main__":
    main()

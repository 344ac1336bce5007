"""Worker process of an experiment: trains a run, estimates training times, or exports a run.

    python -m edgetl.experiment.worker

It reads one task as a line of JSON from standard input and writes messages as lines of JSON to
standard output. Output of libraries goes to standard error. It exits when its parent does.
"""

from __future__ import annotations

import json
import math
import os
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from edgetl.core.artifacts.run import EpochRecord
from edgetl.core.config.finetune import FinetuneConfig
from edgetl.core.errors import EdgetlError, error_to_json
from edgetl.core.progress import StepProgress, TrainingProgress
from edgetl.core.typed_json import parse_as, to_json
from edgetl.experiment.messages import WorkerMessage, WorkerTask

SendMessage = Callable[[WorkerMessage], None]


def main() -> None:
    """Run the task from standard input, then send `done`, or `error` for an `EdgetlError`."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as channel:
        os.dup2(2, 1)

        def send(message: WorkerMessage) -> None:
            channel.write(json.dumps(to_json(message)) + "\n")
            channel.flush()

        task = parse_as(WorkerTask, json.loads(sys.stdin.readline()), "task")
        threading.Thread(target=_exit_with_parent, daemon=True).start()
        try:
            _run(task, send)
        except EdgetlError as error:
            send(WorkerMessage(error=error_to_json(error)))
        else:
            send(WorkerMessage(done=True))


def _run(task: WorkerTask, send: SendMessage) -> None:
    if task.train is not None:
        _train(task.train, send)
    elif task.export is not None:
        _export(task.export)
    elif task.estimate:
        _estimate(task.estimate, send)
    else:
        raise ValueError("the task is empty")


def _train(config: FinetuneConfig, send: SendMessage) -> None:
    from edgetl.train.finetune import finetune

    finetune(config, _MessageProgress(send))


def _export(run: Path) -> None:
    from edgetl.core.config.export import ExportConfig
    from edgetl.export.exporter import export_run

    export_run(run, ExportConfig(force=True))


def _estimate(configs: Sequence[FinetuneConfig], send: SendMessage) -> None:
    from edgetl.train.finetune import estimate_seconds

    for config in configs:
        send(WorkerMessage(seconds=estimate_seconds(config)))


class _MessageProgress(TrainingProgress):
    """Progress that sends messages to the parent process."""

    def __init__(self, send: SendMessage) -> None:
        self._send_message = send

    def note(self, text: str) -> None:
        self._send_message(WorkerMessage(note=text))

    def warn(self, text: str) -> None:
        self._send_message(WorkerMessage(warning=text))

    def on_step_end(self, step: StepProgress) -> None:
        # JSON has no NaN; a run that diverges ends with an error after the epoch.
        if math.isfinite(step.loss):
            self._send_message(WorkerMessage(step=step))

    def on_epoch_end(self, record: EpochRecord, best: bool) -> None:
        self._send_message(WorkerMessage(epoch=record))


def _exit_with_parent() -> None:
    # Standard input closes when the parent exits or is killed; the run must not outlive it.
    # Read the file descriptor: with sys.stdin, Python aborts at exit if a thread holds its lock.
    while os.read(0, 4096):
        pass
    os._exit(1)


if __name__ == "__main__":
    main()

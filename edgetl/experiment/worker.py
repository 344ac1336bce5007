"""Worker process of an experiment: trains a run, estimates training times, or exports a run.

    python -m edgetl.experiment.worker

It reads one task as a line of JSON from standard input and writes messages as lines of JSON to
standard output. Output of libraries goes to standard error. It exits when its parent does.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from edgetl.core.artifacts.run import EpochRecord
from edgetl.core.errors import EdgetlError, error_to_json
from edgetl.core.progress import StepProgress, TrainingProgress

SendMessage = Callable[[dict[str, Any]], None]


def main() -> None:
    """Run the task from standard input, then send `done`, or `error` for an `EdgetlError`."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as channel:
        os.dup2(2, 1)

        def send(message: dict[str, Any]) -> None:
            channel.write(json.dumps(message) + "\n")
            channel.flush()

        task = json.loads(sys.stdin.readline())
        threading.Thread(target=_exit_with_parent, daemon=True).start()
        try:
            _TASK_HANDLERS[task["task"]](task, send)
        except EdgetlError as error:
            send({"error": error_to_json(error)})
        else:
            send({"done": True})


def _estimate(task: dict[str, Any], send: SendMessage) -> None:
    from edgetl.core.config.finetune import FinetuneConfig
    from edgetl.train.finetune import estimate_seconds

    for content in task["configs"]:
        send({"seconds": estimate_seconds(FinetuneConfig.from_json(content))})


def _train(task: dict[str, Any], send: SendMessage) -> None:
    from edgetl.core.config.finetune import FinetuneConfig
    from edgetl.train.finetune import finetune

    finetune(FinetuneConfig.from_json(task["config"]), _MessageProgress(send))


def _export(task: dict[str, Any], send: SendMessage) -> None:
    from edgetl.core.config.export import ExportConfig
    from edgetl.export.exporter import export_run

    export_run(task["run"], ExportConfig(force=True))


_TASK_HANDLERS: dict[str, Callable[[dict[str, Any], SendMessage], None]] = {
    "estimate": _estimate,
    "train": _train,
    "export": _export,
}


class _MessageProgress(TrainingProgress):
    """Progress that sends messages to the parent process."""

    def __init__(self, send: SendMessage) -> None:
        self._send_message = send

    def note(self, text: str) -> None:
        self._send_message({"note": text})

    def warn(self, text: str) -> None:
        self._send_message({"warning": text})

    def on_step_end(self, step: StepProgress) -> None:
        self._send_message({"step": asdict(step)})

    def on_epoch_end(self, record: EpochRecord, best: bool) -> None:
        self._send_message({"epoch": asdict(record)})


def _exit_with_parent() -> None:
    # Standard input closes when the parent exits or is killed; the run must not outlive it.
    # Read the file descriptor: with sys.stdin, Python aborts at exit if a thread holds its lock.
    while os.read(0, 4096):
        pass
    os._exit(1)


if __name__ == "__main__":
    main()

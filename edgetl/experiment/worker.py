"""A process that trains one run, times what runs would take, or exports one; it ends when the process that asked for it does.

    python -m edgetl.experiment.worker <task.json on the first line of standard input>

What it has to tell are JSON objects, a line each, on standard output; what libraries print goes to standard error.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edgetl.core.errors import EdgetlError, error_to_json

SendMessage = Callable[[dict[str, Any]], None]


def main() -> None:
    """Do the task and tell its end: `done`, or the error that the user can mend."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as channel:
        os.dup2(2, 1)

        def tell(message: dict[str, Any]) -> None:
            channel.write(json.dumps(message) + "\n")
            channel.flush()

        task = json.loads(sys.stdin.readline())
        threading.Thread(target=_exit_with_parent, daemon=True).start()
        try:
            _TASK_HANDLERS[task["task"]](task, tell)
        except EdgetlError as error:
            tell({"error": error_to_json(error)})
        else:
            tell({"done": True})


def _estimate(task: dict[str, Any], tell: SendMessage) -> None:
    from edgetl.core.config.finetune import FinetuneConfig
    from edgetl.train.finetune import estimate_seconds

    for content in task["configs"]:
        tell({"seconds": estimate_seconds(FinetuneConfig.from_json(content))})


def _train(task: dict[str, Any], tell: SendMessage) -> None:
    from edgetl.core.config.finetune import FinetuneConfig
    from edgetl.train.finetune import finetune

    finetune(FinetuneConfig.from_json(task["config"]), _MessageProgress(tell))


def _export(task: dict[str, Any], tell: SendMessage) -> None:
    from edgetl.core.config.export import ExportConfig
    from edgetl.core.paths import RunDirectory
    from edgetl.export.exporter import export_run

    export_run(RunDirectory.open(Path(task["run"])), ExportConfig(force=True))


_TASK_HANDLERS: dict[str, Callable[[dict[str, Any], SendMessage], None]] = {
    "estimate": _estimate,
    "train": _train,
    "export": _export,
}


class _MessageProgress:
    # edgetl.train.common.progress.Progress, a message each.
    def __init__(self, tell: SendMessage) -> None:
        self._send_message = tell

    def note(self, text: str) -> None:
        self._send_message({"note": text})

    def warn(self, text: str) -> None:
        self._send_message({"warning": text})

    def on_files_checked(self, done: int, total: int) -> None:
        pass

    def on_features_computed(self, done: int, total: int) -> None:
        pass

    def on_step_end(self, step: Any) -> None:
        self._send_message({"step": asdict(step)})

    def on_epoch_end(self, record: Any, best: bool) -> None:
        self._send_message({"epoch": record.to_json()})


def _exit_with_parent() -> None:
    # Standard input ends when the parent does, by whatever death: no run must go on that nobody waits for.
    # Not by sys.stdin: Python aborts where a thread holds its lock at the end.
    while os.read(0, 4096):
        pass
    os._exit(1)


if __name__ == "__main__":
    main()

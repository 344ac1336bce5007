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

from edgetl.core.errors import EdgetlError
from edgetl.device.bench.job import error_to_json

Tell = Callable[[dict[str, Any]], None]


def main() -> None:
    """Do the task and tell its end: `done`, or the error that the user can mend."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as channel:
        os.dup2(2, 1)

        def tell(message: dict[str, Any]) -> None:
            channel.write(json.dumps(message) + "\n")
            channel.flush()

        task = json.loads(sys.stdin.readline())
        threading.Thread(target=_end_with_the_parent, daemon=True).start()
        try:
            _TASKS[task["task"]](task, tell)
        except EdgetlError as error:
            tell({"error": error_to_json(error)})
        else:
            tell({"done": True})


def _estimate(task: dict[str, Any], tell: Tell) -> None:
    from edgetl.core.config.finetune import FinetuneConfig
    from edgetl.train.finetune import expected_seconds

    for content in task["configs"]:
        tell({"seconds": expected_seconds(FinetuneConfig.from_json(content))})


def _train(task: dict[str, Any], tell: Tell) -> None:
    from edgetl.core.config.finetune import FinetuneConfig
    from edgetl.train.finetune import finetune

    finetune(FinetuneConfig.from_json(task["config"]), _Telling(tell))


def _export(task: dict[str, Any], tell: Tell) -> None:
    from edgetl.core.config.export import ExportConfig
    from edgetl.core.paths import RunDirectory
    from edgetl.export.exporter import export_run

    export_run(RunDirectory.open(Path(task["run"])), ExportConfig(force=True))


_TASKS: dict[str, Callable[[dict[str, Any], Tell], None]] = {
    "estimate": _estimate,
    "train": _train,
    "export": _export,
}


class _Telling:
    # edgetl.train.common.progress.Progress, a message each.
    def __init__(self, tell: Tell) -> None:
        self._tell = tell

    def note(self, text: str) -> None:
        self._tell({"note": text})

    def warn(self, text: str) -> None:
        self._tell({"warning": text})

    def files(self, done: int, total: int) -> None:
        pass

    def prepared(self, done: int, total: int) -> None:
        pass

    def step(self, step: Any) -> None:
        self._tell({"step": asdict(step)})

    def epoch(self, record: Any, best: bool) -> None:
        self._tell({"epoch": record.to_json()})


def _end_with_the_parent() -> None:
    # Standard input ends when the parent does, by whatever death: no run must go on that nobody waits for.
    # Not by sys.stdin: Python aborts where a thread holds its lock at the end.
    while os.read(0, 4096):
        pass
    os._exit(1)


if __name__ == "__main__":
    main()

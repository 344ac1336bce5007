"""Run one task of an experiment in a subprocess."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from edgetl.core.errors import RunError, error_from_json
from edgetl.core.exit_status import describe_exit_status
from edgetl.core.typed_json import parse_as, to_json
from edgetl.device.bench.worker_process import make_worker_environment
from edgetl.device.hardware.cpu import available_cores
from edgetl.experiment.messages import WorkerMessage, WorkerTask
from edgetl.train.model.model_code import record_code

_LOG_TAIL_LINES = 12
_EXIT_TIMEOUT_S = 60.0
"""Timeout for the process to exit after its last message or after closing its output."""


def run_task(
    task: WorkerTask,
    log: Path,
    on_message: Callable[[WorkerMessage], None],
    cache_parent: Path,
) -> None:
    """Run a task in a new process and wait for it. It starts with an empty cache of its own.

    Args:
        task: what `edgetl.experiment.worker` runs.
        log: file for the output of the process and its libraries.
        on_message: called with each message of the process.
        cache_parent: directory for the temporary cache, on a disk with enough space.

    Raises:
        EdgetlError: the error raised in the process, with its class.
        RunError: the process died; the message contains the end of its log.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    last_message: WorkerMessage | None = None
    with (
        log.open("wb") as stderr,
        tempfile.TemporaryDirectory(prefix=".cache-", dir=cache_parent) as cache,
    ):
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "edgetl.experiment.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env={**_make_environment(task), "EDGETL_CACHE": cache},
            text=True,
            encoding="utf-8",
            # Ctrl-C must reach this process only, which then kills the worker.
            start_new_session=True,
        )
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps(to_json(task)) + "\n")
            process.stdin.flush()
            for line in process.stdout:
                message = parse_as(WorkerMessage, json.loads(line), "message")
                if message.done or message.error is not None:
                    last_message = message
                else:
                    on_message(message)
        except BrokenPipeError:
            pass  # The worker died before reading the task; this is reported below.
        except BaseException:
            process.kill()
            raise
        finally:
            # Wait before closing the worker's standard input: it exits at once when that closes,
            # possibly before its log is complete.
            with suppress(subprocess.TimeoutExpired):
                process.wait(_EXIT_TIMEOUT_S)
            process.kill()
            process.communicate()
    if last_message is None:
        raise RunError(_describe_death(process.returncode, log))
    if last_message.error is not None:
        raise error_from_json(last_message.error)


def _make_environment(task: WorkerTask) -> dict[str, str]:
    environment = make_worker_environment(available_cores())
    # A run that has not started has no record of the code of its model yet.
    configs = [config for config in (task.train, *task.estimate) if config is not None]
    codes = [record_code(config.model) for config in configs]
    folders = dict.fromkeys(str(code.root) for code in codes if code is not None)
    search_path = [*folders, environment.get("PYTHONPATH", "")]
    return {**environment, "PYTHONPATH": os.pathsep.join(filter(None, search_path))}


def _describe_death(returncode: int, log: Path) -> str:
    text = log.read_text(encoding="utf-8", errors="replace")
    lines = [line for line in text.splitlines() if line.strip()]
    summary = f"The process {describe_exit_status(returncode)}. Its full output is in {log}."
    return "\n".join([summary, *lines[-_LOG_TAIL_LINES:]])

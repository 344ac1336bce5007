"""Starting an experiment's processes, one at a time, and hearing what they tell."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from edgetl.core.errors import RunError, error_from_json
from edgetl.device.bench.worker_process import make_worker_environment
from edgetl.device.hardware.cpu import available_cores

_LOG_TAIL_LINES = 12
_EXIT_TIMEOUT_S = 60.0
"""For a process that has told its end, or closed its channel, to leave."""


def run_task(
    task: dict[str, Any], log: Path, told: Callable[[dict[str, Any]], None], places: Path
) -> None:
    """Do a task in a fresh process and wait for its end. Nothing computed for an earlier one helps it: its cache is its own and new.

    Args:
        task: see edgetl.experiment.worker.
        log: what the process and its libraries say.
        told: is called with each of its messages.
        places: a folder on a disk with room for its cache.

    Raises:
        EdgetlError: what the process found wrong, as the class that it raised.
        RunError: it died; its last words are in the message.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    ended: dict[str, Any] = {}
    with (
        log.open("wb") as words,
        tempfile.TemporaryDirectory(prefix=".cache-", dir=places) as cache,
    ):
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "edgetl.experiment.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=words,
            env={**make_worker_environment(available_cores()), "EDGETL_CACHE": cache},
            text=True,
            encoding="utf-8",
            # Ctrl-C reaches this process alone, which then ends the other.
            start_new_session=True,
        )
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps(task, default=str) + "\n")
            process.stdin.flush()
            for line in process.stdout:
                message = json.loads(line)
                if message.keys() & {"done", "error"}:
                    ended = message
                else:
                    told(message)
        except BrokenPipeError:
            pass  # it died before it read: told below
        except BaseException:
            process.kill()
            raise
        finally:
            # Closing its standard input at once would end it in the middle of its last words.
            with suppress(subprocess.TimeoutExpired):
                process.wait(_EXIT_TIMEOUT_S)
            process.kill()
            process.communicate()
    if "error" in ended:
        raise error_from_json(ended["error"])
    if not ended:
        said = [
            line
            for line in log.read_text(encoding="utf-8", errors="replace").splitlines()
            if line.strip()
        ][-_LOG_TAIL_LINES:]
        death = f"The process ended with status {process.returncode}" + (
            " (often: out of memory)" if process.returncode == -9 else ""
        )
        raise RunError("\n".join([f"{death}. All it said is in {log}.", *said]))

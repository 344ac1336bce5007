"""The device's side of `edgetl bench --host`, with nothing but the standard library: environment, bench, and nothing left behind.

    python3 agent.py        in the folder that was sent, standard input held open by whoever waits

Where standard input ends, so does all that was begun here: a connection that breaks leaves no process and no file.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
TEMP_FOLDER = FOLDER / "tmp"
_REMOVAL_TIMEOUT_S = 15
_step_process: subprocess.Popen[bytes] | None = None
_lock = threading.RLock()
"""Held while a step is started and while everything is ended: nothing is started after the end has begun.

Reentrant, because a signal's handler runs in the thread that may already hold it."""


def send_reply(**content: Any) -> None:
    """One line for whoever waits."""
    print(json.dumps({"edgetl": True, **content}), flush=True)


def run_step(*command: object) -> int:
    """A step, in a process group of its own; what it says goes to standard error."""
    global _step_process
    # pip and ensurepip leave their temporary folders behind when they are killed; these are removed with the folder.
    environment = {
        **os.environ,
        "PYTHONPATH": "",
        "NO_COLOR": "1",
        "COLUMNS": "200",
        "TMPDIR": str(TEMP_FOLDER),
    }
    with _lock:
        _step_process = subprocess.Popen(
            [*map(str, command)],
            cwd=FOLDER,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=2,
            start_new_session=True,
        )
    return _step_process.wait()


def abort(*_: object) -> None:
    """End the step that runs, remove the folder and exit."""
    with _lock:
        if _step_process is not None:
            for number in (signal.SIGTERM, signal.SIGKILL):
                try:
                    os.killpg(_step_process.pid, number)
                    _step_process.wait(3)
                except (OSError, subprocess.TimeoutExpired):
                    continue
        remove_folder()
        os._exit(1)


def remove_folder() -> bool:
    """Remove the folder; whether it is gone."""
    give_up = time.monotonic() + _REMOVAL_TIMEOUT_S
    while True:
        shutil.rmtree(FOLDER, ignore_errors=True)
        if not FOLDER.exists() or time.monotonic() > give_up:
            return not FOLDER.exists()
        # A process that was killed may still finish a system call that creates a file in the folder.
        time.sleep(0.1)


def abort_on_disconnect() -> None:
    """Wait for the end of standard input."""
    while os.read(0, 4096):
        pass
    abort()


def run_job(job: dict[str, Any]) -> dict[str, Any]:
    """The environment and the bench; what became of them."""
    python = FOLDER / "env/bin/python"
    TEMP_FOLDER.mkdir()
    send_reply(step="installing")
    if run_step(sys.executable, "-m", "venv", FOLDER / "env"):
        return {
            "failed": "python3 -m venv does not work there: `sudo apt install python3-venv` adds what it lacks."
        }
    source = ["--no-index", "--find-links", FOLDER / "wheels"] if job["wheels"] else []
    wheel = f"{FOLDER / 'wheel' / job['wheel']}[{job['extra']}]"
    if run_step(
        python,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-input",
        *source,
        wheel,
    ):
        return {"failed": "pip could not install edgetl there."}
    send_reply(step="measuring")
    result = FOLDER / "result.json"
    status = run_step(python, "-m", "edgetl", "bench", "bundle", *job["arguments"], "-o", result)
    found = json.loads(result.read_text(encoding="utf-8")) if result.exists() else None
    return {"status": status, "result": found}


def main() -> None:
    """Work, say what became of it, and clean up."""
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, abort)
    threading.Thread(target=abort_on_disconnect, daemon=True).start()
    try:
        outcome = run_job(json.loads((FOLDER / "job.json").read_text(encoding="utf-8")))
    except OSError as cause:
        outcome = {"failed": f"{cause.strerror or cause} ({FOLDER})."}
    except (ValueError, KeyError, TypeError, RecursionError) as cause:
        outcome = {"failed": f"Its result or the job that was sent is damaged ({cause!r})."}
    with _lock:
        send_reply(left=not remove_folder(), **outcome)
        os._exit(0)


if __name__ == "__main__":
    main()

"""Agent of `edgetl bench --host` on the device: create an environment, run the bench, clean up.

    python3 agent.py        in the folder that was sent, with standard input kept open

It uses the standard library only. When standard input ends, it stops its processes and removes the
folder, so a broken connection leaves nothing behind.
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
"""Lock for starting a step and for shutting down, so that no step starts during shutdown.

It is reentrant because a signal handler runs in a thread that may already hold it.
"""


def send_reply(**content: Any) -> None:
    """Send one JSON line to the waiting process."""
    print(json.dumps({"edgetl": True, **content}), flush=True)


def run_step(*command: object) -> int:
    """Run a command in its own process group, with its output on stderr; return its status."""
    global _step_process
    # Killed pip and ensurepip leave temporary folders behind, so these are put into the folder.
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
    """Kill the running step, remove the folder and exit."""
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
    """Remove the folder and return whether it has been removed."""
    deadline = time.monotonic() + _REMOVAL_TIMEOUT_S
    while True:
        shutil.rmtree(FOLDER, ignore_errors=True)
        if not FOLDER.exists() or time.monotonic() > deadline:
            return not FOLDER.exists()
        # A killed process may still finish a system call that creates a file in the folder.
        time.sleep(0.1)


def abort_on_disconnect() -> None:
    """Abort when standard input ends."""
    while os.read(0, 4096):
        pass
    abort()


def run_job(job: dict[str, Any]) -> dict[str, Any]:
    """Create the environment, run the bench and return its outcome."""
    python = FOLDER / "env/bin/python"
    TEMP_FOLDER.mkdir()
    send_reply(step="installing")
    if run_step(sys.executable, "-m", "venv", FOLDER / "env"):
        return {
            "failed": "python3 -m venv failed on the device. "
            "Install it there with `sudo apt install python3-venv`."
        }
    index_options = ["--no-index", "--find-links", FOLDER / "wheels"] if job["wheels"] else []
    requirement = f"{FOLDER / 'wheel' / job['wheel']}[{job['extra']}]"
    if run_step(
        python,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-input",
        *index_options,
        requirement,
    ):
        return {"failed": "pip cannot install edgetl on the device."}
    send_reply(step="measuring")
    path = FOLDER / "result.json"
    config = FOLDER / "config.json"
    status = run_step(python, "-m", "edgetl", "bench", "bundle", "--config", config, "-o", path)
    result = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    return {"status": status, "result": result}


def main() -> None:
    """Run the job, report its outcome and clean up."""
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, abort)
    threading.Thread(target=abort_on_disconnect, daemon=True).start()
    try:
        outcome = run_job(json.loads((FOLDER / "job.json").read_text(encoding="utf-8")))
    except OSError as cause:
        outcome = {"failed": f"{cause.strerror or cause} ({FOLDER})."}
    except (ValueError, KeyError, TypeError, RecursionError) as cause:
        outcome = {"failed": f"The job or its result is damaged ({cause!r})."}
    with _lock:
        send_reply(left=not remove_folder(), **outcome)
        os._exit(0)


if __name__ == "__main__":
    main()

"""Starting worker processes, one at a time, and telling what became of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import edgetl
from edgetl.core.errors import BenchError
from edgetl.device.bench.jobs import Job, error_from_json

LAST_LINES = 12


def run_job(job: Job, folder: Path) -> dict[str, Any]:
    """Run `job` in a fresh process and wait for it; nothing else of edgetl's runs meanwhile.

    Args:
        job: what to do.
        folder: an existing folder for the exchange of files.

    Raises:
        BenchError: the process died; its last words are in the message.
        EdgetlError: what the worker itself found wrong, as the class that it raised.
    """
    question, answer, words = folder / "job.json", folder / "answer.json", folder / "words.txt"
    question.write_text(job.to_json(), encoding="utf-8")
    answer.unlink(missing_ok=True)
    with words.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "edgetl.device.bench.worker", str(question), str(answer)],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            env=worker_environment(job.source.threads),
            # Ctrl-C reaches this process alone, which then ends the worker: the answer to it is in one place.
            start_new_session=True,
        )
        try:
            code = process.wait()
        except BaseException:
            process.kill()
            process.wait()
            raise
    if code != 0 or not answer.is_file():
        raise BenchError(_obituary(job, code, words.read_text(encoding="utf-8", errors="replace")))
    content: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
    if "error" in content:
        raise error_from_json(content["error"])
    result: dict[str, Any] = content["answer"]
    return result


def worker_environment(threads: int) -> dict[str, str]:
    """This process's environment with every thread pool told the same number, and no telemetry."""
    pools = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS", "NUMEXPR_NUM_THREADS")
    environment = {
        **os.environ,
        **dict.fromkeys(pools, str(threads)),
        "ORT_DISABLE_TELEMETRY": "1",
        "NO_ALBUMENTATIONS_UPDATE": "1",
        "PYTHONUTF8": "1",
    }
    root = Path(edgetl.__file__).resolve().parents[1]
    if root.name not in ("site-packages", "dist-packages"):  # run from a checkout: the worker must find the same edgetl
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH", "")]))
    return environment


def _obituary(job: Job, code: int, words: str) -> str:
    cause = f"ended with status {code}"
    if code < 0:
        name = signal.Signals(-code).name if -code in {item.value for item in signal.Signals} else str(-code)
        cause = f"was ended by {name}" + (" (often: out of memory)" if name == "SIGKILL" else "")
    said = [line for line in words.splitlines() if line.strip()][-LAST_LINES:]
    lines = [f"The {job.task} process of {job.runtime} {cause}; nothing was written.", *(said or ["It said nothing."])]
    return "\n".join([*lines, "If memory is short, close other programs or take a smaller model; else please report the lines above."])

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from edgetl.core.errors import RunError
from edgetl.experiment.task_process import run_task
from tests.conftest import ROOT


def test_error_of_dead_process_contains_its_log(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "run.log"
    with pytest.raises(
        RunError, match=r"(?s)ended with status 1\. Its full output is in .*KeyError: 'nonsense'"
    ):
        run_task({"task": "nonsense"}, log, print, tmp_path)
    assert "Traceback" in log.read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["logs"], "the temporary cache is removed"


def test_exception_in_callback_kills_the_process(tmp_path: Path, parts: Path) -> None:
    def interrupt(message: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    config = {
        "data": str(parts),
        "output": str(tmp_path / "run"),
        "model": "squeezenet1_1",
        "image_size": 64,
        "weights": "none",
    }
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_task({"task": "train", "config": config}, tmp_path / "run.log", interrupt, tmp_path)
    assert time.monotonic() - started < 60
    assert not list(tmp_path.glob(".cache-*"))


def test_library_output_is_separate_from_messages(tmp_path: Path) -> None:
    program = (
        "import edgetl.experiment.worker as worker\n"
        "def noisy(task, send):\n"
        "    print('a library says hello')\n"
        "    send({'seconds': 1})\n"
        "worker._TASK_HANDLERS['noisy'] = noisy\n"
        "worker.main()\n"
    )
    # Standard input stays open, as while the parent of a worker runs.
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write('{"task": "noisy"}\n')
        process.stdin.flush()
        assert [json.loads(line) for line in process.stdout] == [{"seconds": 1}, {"done": True}]
        assert "a library says hello" in process.stderr.read()
        assert process.wait() == 0

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from edgetl.core.config.finetune import FinetuneConfig
from edgetl.core.errors import RunError
from edgetl.core.progress import StepProgress
from edgetl.core.typed_json import parse_as, to_json
from edgetl.experiment import worker
from edgetl.experiment.messages import WorkerMessage, WorkerTask
from edgetl.experiment.task_process import run_task
from tests.conftest import ROOT


def test_error_of_dead_process_contains_its_log(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "run.log"
    with pytest.raises(
        RunError, match=r"(?s)exited with status 1\. Its full output is in .*the task is empty"
    ):
        run_task(WorkerTask(), log, print, tmp_path)
    assert "Traceback" in log.read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["logs"], "the temporary cache is removed"


def test_exception_in_callback_kills_the_process(tmp_path: Path, parts: Path) -> None:
    def interrupt(message: WorkerMessage) -> None:
        raise KeyboardInterrupt

    config = FinetuneConfig(
        parts, tmp_path / "run", model="squeezenet1_1", image_size=64, weights="none"
    )
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_task(WorkerTask(train=config), tmp_path / "run.log", interrupt, tmp_path)
    assert time.monotonic() - started < 60
    assert not list(tmp_path.glob(".cache-*"))


def test_step_without_finite_loss_is_not_sent() -> None:
    messages: list[WorkerMessage] = []
    progress = worker._MessageProgress(messages.append)
    step = StepProgress(1, 3, 16, 8, 16, 0.5, 0.75, 10.0)
    progress.on_step_end(replace(step, loss=math.nan))
    progress.on_step_end(step)
    assert messages == [WorkerMessage(step=step)]


def test_messages_round_trip() -> None:
    task = WorkerTask(train=FinetuneConfig(Path("photos"), epochs=3))
    assert parse_as(WorkerTask, json.loads(json.dumps(to_json(task)))) == task
    message = WorkerMessage(error={"class": "RunError", "message": "no"})
    assert to_json(message) == {"error": {"class": "RunError", "message": "no"}}
    assert parse_as(WorkerMessage, to_json(message)) == message


def test_library_output_is_separate_from_messages(tmp_path: Path) -> None:
    program = (
        "import edgetl.experiment.worker as worker\n"
        "def noisy(task, send):\n"
        "    print('a library says hello')\n"
        "    send(worker.WorkerMessage(seconds=1))\n"
        "worker._run = noisy\n"
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
        process.stdin.write("{}\n")
        process.stdin.flush()
        assert [json.loads(line) for line in process.stdout] == [{"seconds": 1}, {"done": True}]
        assert "a library says hello" in process.stderr.read()
        assert process.wait() == 0

from __future__ import annotations

import io
import time
from pathlib import Path

import pytest
from rich.console import Console
from rich.live import Live

from edgetl.cli import compare_progress
from edgetl.cli.compare_progress import LiveExperimentProgress, PlainExperimentProgress
from edgetl.core.artifacts.run import EpochRecord
from edgetl.core.config.compare import CompareConfig
from edgetl.core.config.finetune import FinetuneConfig
from edgetl.core.progress import StepProgress
from edgetl.experiment.matrix import NetworkSpec, plan_runs
from edgetl.experiment.messages import WorkerMessage
from tests.helpers.experiments import made_run

RUNS = plan_runs(
    CompareConfig(Path("/out"), strategies=("head", "finetune", "full"), seeds=1),
    FinetuneConfig(Path("/data")),
    [NetworkSpec("mobilenet_v2", 224, 19)],
    Path("/out/runs"),
)
RECORD = EpochRecord(1, 1, 1.0, 0.5, 1.0, 0.5, 1e-3, 1.0, 10.0, 1.0)
STEP = StepProgress(1, 3, 16, 8, 16, 0.5, 0.75, 10.0)
SECONDS = {RUNS[0].name: 10.0, RUNS[1].name: 20.0, RUNS[2].name: 60.0}


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    stream = io.StringIO()
    monkeypatch.setattr(
        compare_progress,
        "err",
        Console(file=stream, force_terminal=True, width=140, color_system=None),
    )
    return stream


def test_log_has_one_line_per_start_end_and_warning(screen: io.StringIO) -> None:
    progress = PlainExperimentProgress()
    progress.on_plan(RUNS, [RUNS[0].name], SECONDS)
    progress.on_run_start(RUNS[1])
    progress.on_run_message(RUNS[1], WorkerMessage(warning="few images"))
    progress.on_run_message(RUNS[1], WorkerMessage(epoch=RECORD))
    progress.on_run_end(RUNS[1], made_run("mobilenet_v2-224", "finetune", 0.9, 40.0))
    progress.on_run_end(
        RUNS[2], made_run("mobilenet_v2-224", "full", 0, 0, failed="out of memory\nand more")
    )
    assert screen.getvalue().splitlines() == [
        "3 runs, 1 already finished; about 80 s of training left.",
        "[2/3] mobilenet_v2-224-finetune-s0: expected to take 20 s",
        "Warning: mobilenet_v2-224-finetune-s0: few images",
        "[2/3] mobilenet_v2-224-finetune-s0: validation accuracy 0.900 in 40 s; about 2 min 0 s of training left",
        "[3/3] mobilenet_v2-224-full-s0: failed: out of memory; no runs left",
    ]


def test_live_table_shows_all_runs_and_the_current_one(screen: io.StringIO) -> None:
    with Live(console=compare_progress.err, auto_refresh=False) as live:
        progress = LiveExperimentProgress(live)
        progress.on_plan(RUNS, [RUNS[0].name], SECONDS)
        progress.on_run_start(RUNS[1])
        assert progress.describe_time_left() == "about 80 s of training left"
        progress._current_run = RUNS[1], time.monotonic() - 15
        assert progress.describe_time_left() == "about 65 s of training left"
        progress._current_run = RUNS[1], time.monotonic()
        progress._last_draw_time = 0.0
        progress.on_run_message(RUNS[1], WorkerMessage(step=STEP))
    text = screen.getvalue()
    assert "already finished" in text
    assert "epoch 3 of 16, training accuracy 0.75" in text
    assert "waiting" in text
    assert "1 of 3 runs finished, about 80 s of training left" in text

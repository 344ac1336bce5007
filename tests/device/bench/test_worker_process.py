"""A worker that hangs is ended and named; one that is slow is waited for. With real processes."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from edgetl.core.config.bench import BenchConfig
from edgetl.core.errors import BenchError
from edgetl.device.bench import rounds, worker_process
from edgetl.device.bench.backend import ModelSource
from edgetl.device.bench.job import WorkerJob, Workload
from edgetl.device.bench.protocol import BenchProtocol
from edgetl.device.bench.runner import bench
from edgetl.device.bench.worker_process import Worker, run_job
from tests.helpers.bundles import colour_model

PACED = Workload("model", 0.01)


@pytest.fixture
def job(tmp_path: Path, brief: BenchProtocol) -> WorkerJob:
    onnx.save(colour_model(), tmp_path / "model.onnx")
    return WorkerJob(
        "measure",
        "onnxruntime",
        ModelSource(tmp_path / "model.onnx", 1),
        (Workload("model"), PACED),
        brief,
    )


@pytest.fixture
def deadlocked(job: WorkerJob, tmp_path: Path) -> WorkerJob:
    """Its input is a pipe that nobody writes to."""
    os.mkfifo(tmp_path / "inputs.npy")
    return replace(job, model_inputs=tmp_path / "inputs.npy")


def gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def test_a_process_that_does_nothing_is_ended_and_says_where(
    deadlocked: WorkerJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_process, "IDLE_TIMEOUT_S", 3.0)
    monkeypatch.setattr(worker_process, "_ACTIVITY_POLL_S", 1.0)
    with Worker(deadlocked, tmp_path) as worker, pytest.raises(BenchError) as raised:
        worker.wait_until_ready()
    said = str(raised.value)
    assert (
        "measure process of onnxruntime (model.onnx, cpu) hung opening the model: neither an answer nor any use of the CPU"
        in said
    )
    assert "_model_inputs" in said, "the stack, where it waits"
    assert "--provider" in said.splitlines()[-1]
    assert gone(worker._process.pid)


def test_a_gate_that_takes_for_ever_is_ended(
    deadlocked: WorkerJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_process, "TIMEOUT_MARGIN_S", 3.0)
    monkeypatch.setattr(worker_process, "INFERENCE_TIMEOUT_S", 0.0)
    with pytest.raises(
        BenchError, match=r"gate process.* hung before its answer: no answer for 3 seconds"
    ):
        run_job(replace(deadlocked, task="gate"), tmp_path)


def test_a_hung_configuration_does_not_end_the_others(
    make_bundle: Callable[..., Path],
    brief: BenchProtocol,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Stopping(Worker):
        def request(self, piece: str) -> None:
            if self._job.source.batch == 4 and piece.startswith("slice") and next(asked) == 3:
                os.kill(self._process.pid, signal.SIGSTOP)
            super().request(piece)

    asked = iter(range(100))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(rounds, "Worker", Stopping)
    monkeypatch.setattr(worker_process, "step_timeout_s", lambda *piece: 2.0)
    result = bench(
        BenchConfig(make_bundle(), batches=(1, 4), scopes=("model",), rounds=3), protocol=brief
    )
    assert [len(row.rounds) for row in result.rows] == [3, 1]
    assert any(
        "batch 4" in note and "hung in `slice model`: no answer for 2 seconds" in note
        for note in result.notes
    )


def test_a_silent_process_that_works_is_waited_for(
    job: WorkerJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_process, "IDLE_TIMEOUT_S", 2.0)
    monkeypatch.setattr(worker_process, "_ACTIVITY_POLL_S", 0.5)
    busy = replace(job, protocol=replace(job.protocol, block_seconds=8.0))
    with Worker(busy, tmp_path) as worker:
        worker.wait_until_ready()
        for piece in ("warm-up model", "slice model", "slice model"):
            worker.request(piece)
        assert worker.result()["model"]["latencies_ns"]


def test_a_process_that_sleeps_between_arrivals_is_waited_for(
    job: WorkerJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rare = replace(
        job,
        streams=(Workload("model", 0.5),),
        protocol=replace(job.protocol, paced_runs=2, paced_seconds=0.0),
    )
    with Worker(rare, tmp_path) as worker:
        worker.wait_until_ready()
        monkeypatch.setattr(worker_process, "IDLE_TIMEOUT_S", 0.5)
        monkeypatch.setattr(worker_process, "_ACTIVITY_POLL_S", 0.1)
        worker.request("paced model@0.5")
        assert len(worker.result()["model@0.5"]["latencies_ns"]) == 2


def test_the_slowest_that_still_work_are_within_the_bounds(job: WorkerJob) -> None:
    published = replace(job, protocol=BenchProtocol())
    minute = 60.0
    # A large network on a small board, 10 s a run, halved by heat and shared with three others.
    for piece, runs in (("warm-up model", 20), ("slice model", 22)):
        assert worker_process.step_timeout_s(published, piece, 10.0) > 8 * runs * 10.0
    # A quick one on a machine that suddenly does nothing else: a hundred times as long.
    assert worker_process.step_timeout_s(published, "slice model", 0.2) > 22 * 100 * 0.2
    assert worker_process.step_timeout_s(published, f"paced {PACED.name}", 0.01) > 100 + 30
    assert worker_process.idle_allowance_s(published, f"paced {PACED.name}") == 100
    assert worker_process.idle_allowance_s(published, "slice model") == 0
    assert 60 * minute < worker_process.STARTUP_TIMEOUT_S, "TensorRT's engine"
    assert (
        worker_process.job_timeout_s(replace(published, task="sustain", seconds=7200.0))
        > 7200 + 60 * minute
    )
    gate = replace(published, task="gate", files=(Path("a.png"),) * 5)
    assert worker_process.job_timeout_s(gate) > 5 * minute + 8 * 2 * len(gate.files) * 10.0
    assert worker_process.job_timeout_s(gate) < 60 * minute, (
        "a model that loops without end is not waited for"
    )
    built = replace(gate, source=replace(gate.source, provider="tensorrt"))
    assert worker_process.job_timeout_s(built) > 2 * worker_process.STARTUP_TIMEOUT_S - 1
    assert worker_process.job_timeout_s(published) >= 10 * minute

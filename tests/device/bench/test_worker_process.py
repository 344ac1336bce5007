"""Tests of worker timeouts, with real processes: hung workers are killed, slow ones are not."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from edgetl.core.artifacts.bench_rows import BlockResult
from edgetl.core.config.bench import BenchConfig
from edgetl.core.errors import BenchError
from edgetl.device.bench import rounds, worker_process
from edgetl.device.bench.backend import ModelSource
from edgetl.device.bench.job import GateReply, WorkerJob, Workload
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
def deadlocked_job(job: WorkerJob, tmp_path: Path) -> WorkerJob:
    """Return a job whose input is a pipe without a writer."""
    os.mkfifo(tmp_path / "inputs.npy")
    return replace(job, model_inputs=tmp_path / "inputs.npy")


def is_gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def test_idle_worker_is_killed_and_stack_reported(
    deadlocked_job: WorkerJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_process, "IDLE_TIMEOUT_S", 3.0)
    monkeypatch.setattr(worker_process, "_ACTIVITY_POLL_S", 1.0)
    with Worker(deadlocked_job, tmp_path) as worker, pytest.raises(BenchError) as raised:
        worker.wait_until_ready()
    message = str(raised.value)
    assert (
        "measure process of onnxruntime (model.onnx, cpu) hung opening the model: "
        "no reply and no CPU use"
    ) in message
    assert "_model_inputs" in message, "the stack is missing"
    assert "--provider" in message.splitlines()[-1]
    assert is_gone(worker._process.pid)


def test_endless_gate_is_killed(
    deadlocked_job: WorkerJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_process, "TIMEOUT_MARGIN_S", 3.0)
    monkeypatch.setattr(worker_process, "INFERENCE_TIMEOUT_S", 0.0)
    with pytest.raises(
        BenchError, match=r"gate process.* hung before its result: no reply for 3 seconds"
    ):
        run_job(replace(deadlocked_job, task="gate"), tmp_path, GateReply)


@pytest.mark.parametrize(
    ("number", "cause", "advice"),
    [
        (signal.SIGKILL, "often: out of memory", "If memory is short"),
        (signal.SIGILL, "illegal instruction, usually one that this CPU lacks", "Use another"),
    ],
)
def test_message_of_killed_worker_has_cause_and_advice(
    job: WorkerJob, tmp_path: Path, number: signal.Signals, cause: str, advice: str
) -> None:
    with Worker(job, tmp_path) as worker:
        worker.wait_until_ready()
        os.kill(worker._process.pid, number)
        with pytest.raises(BenchError) as raised:
            worker.request("warm-up model")
    first, *_, last = str(raised.value).splitlines()
    assert first == f"The measure process of onnxruntime was killed by {number.name} ({cause})."
    assert last.startswith(advice)
    assert ("memory" in str(raised.value)) == (number == signal.SIGKILL)


def test_hung_configuration_does_not_stop_others(
    make_bundle: Callable[..., Path],
    brief: BenchProtocol,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class StoppingWorker(Worker):
        def request(self, step: str) -> None:
            if self._job.source.batch == 4 and step.startswith("slice") and next(counter) == 3:
                os.kill(self._process.pid, signal.SIGSTOP)
            super().request(step)

    counter = iter(range(100))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(rounds, "Worker", StoppingWorker)
    monkeypatch.setattr(worker_process, "step_timeout_s", lambda *arguments: 2.0)
    result = bench(
        BenchConfig(make_bundle(), batches=(1, 4), scopes=("model",), rounds=3), protocol=brief
    )
    assert [len(row.rounds) for row in result.rows] == [3, 1]
    assert any(
        "batch 4" in note and "hung in `slice model`: no reply for 2 seconds" in note
        for note in result.notes
    )


def test_busy_silent_worker_is_not_killed(
    job: WorkerJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_process, "IDLE_TIMEOUT_S", 2.0)
    monkeypatch.setattr(worker_process, "_ACTIVITY_POLL_S", 0.5)
    busy_job = replace(job, protocol=replace(job.protocol, block_seconds=8.0))
    with Worker(busy_job, tmp_path) as worker:
        worker.wait_until_ready()
        for step in ("warm-up model", "slice model", "slice model"):
            worker.request(step)
        assert worker.result(dict[str, BlockResult])["model"].latencies_ns


def test_worker_sleeping_between_arrivals_is_not_killed(
    job: WorkerJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow_job = replace(
        job,
        streams=(Workload("model", 0.5),),
        protocol=replace(job.protocol, paced_runs=2, paced_seconds=0.0),
    )
    with Worker(slow_job, tmp_path) as worker:
        worker.wait_until_ready()
        monkeypatch.setattr(worker_process, "IDLE_TIMEOUT_S", 0.5)
        monkeypatch.setattr(worker_process, "_ACTIVITY_POLL_S", 0.1)
        worker.request("paced model@0.5")
        assert len(worker.result(dict[str, BlockResult])["model@0.5"].latencies_ns) == 2


def test_timeouts_exceed_slowest_legitimate_cases(job: WorkerJob) -> None:
    default_job = replace(job, protocol=BenchProtocol())
    minute_s = 60.0
    # A large network on a small board: 10 s per run, half the clock, shared with three others.
    for step, runs in (("warm-up model", 20), ("slice model", 22)):
        assert worker_process.step_timeout_s(default_job, step, 10.0) > 8 * runs * 10.0
    # A fast network on a machine that suddenly slows down by a factor of a hundred.
    assert worker_process.step_timeout_s(default_job, "slice model", 0.2) > 22 * 100 * 0.2
    assert worker_process.step_timeout_s(default_job, f"paced {PACED.name}", 0.01) > 100 + 30
    assert worker_process.idle_allowance_s(default_job, f"paced {PACED.name}") == 100
    assert worker_process.idle_allowance_s(default_job, "slice model") == 0
    assert 60 * minute_s < worker_process.STARTUP_TIMEOUT_S, "TensorRT builds an engine"
    assert (
        worker_process.job_timeout_s(replace(default_job, task="sustain", seconds=7200.0))
        > 7200 + 60 * minute_s
    )
    gate_job = replace(default_job, task="gate", files=(Path("a.png"),) * 5)
    assert (
        worker_process.job_timeout_s(gate_job) > 5 * minute_s + 8 * 2 * len(gate_job.files) * 10.0
    )
    assert worker_process.job_timeout_s(gate_job) < 60 * minute_s, "a model may loop forever"
    tensorrt_job = replace(gate_job, source=replace(gate_job.source, provider="tensorrt"))
    assert worker_process.job_timeout_s(tensorrt_job) > 2 * worker_process.STARTUP_TIMEOUT_S - 1
    assert worker_process.job_timeout_s(default_job) >= 10 * minute_s

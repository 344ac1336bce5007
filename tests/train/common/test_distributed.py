"""Data-parallel training in two processes, started by torchrun and connected by gloo."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from edgetl.core.errors import ConfigError
from edgetl.core.paths import RunDirectory
from edgetl.train.common.distributed import (
    SINGLE_PROCESS,
    Processes,
    init_distributed,
    is_peer_failure,
    select_gpu,
)
from edgetl.train.features.batches import EpochSampler
from tests.conftest import ARCHITECTURE, IMAGE_SIZE, ROOT
from tests.helpers import forkserver

Run = Callable[..., subprocess.CompletedProcess[str]]
# Without randomness, two processes match a single one up to the order of sums.
DETERMINISTIC_OPTIONS = (
    "--augment",
    "none",
    "--dropout",
    "0",
    "--batch-norm",
    "eval",
    "--epochs",
    4,
    "--finetune-epochs",
    2,
    "--finetune-lr",
    1e-3,
)
CACHED_OPTIONS, STREAMED_OPTIONS = (), ("--cache-budget", "0", "--class-weights", "balanced")


@contextmanager
def torchrun(
    *arguments: object, cache: Path | None = None, processes: int = 2
) -> Iterator[subprocess.Popen[str]]:
    """Start edgetl in several processes, which end with the block."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        **({"EDGETL_CACHE": str(cache)} if cache else {}),
    }
    launcher = ("--standalone", "--nproc-per-node", str(processes), "-m", "edgetl")
    command = [sys.executable, "-m", "torch.distributed.run", *launcher, *map(str, arguments)]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(60)
                except subprocess.TimeoutExpired:
                    process.kill()


def options(weights: Path) -> tuple[object, ...]:
    return (
        "--model",
        ARCHITECTURE,
        "--weights",
        weights,
        "--image-size",
        IMAGE_SIZE,
        "--device",
        "cpu",
        "--precision",
        "fp32",
    )


def rank_pids(process: subprocess.Popen[str]) -> list[int]:
    """Return the process ids by rank."""
    pids = {}
    for entry in Path("/proc").iterdir():
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            variables = dict(
                line.partition("=")[::2] for line in (entry / "environ").read_text().split("\0")
            )
        except (OSError, ValueError, IndexError):
            continue
        if parent == process.pid and "LOCAL_RANK" in variables:
            pids[int(variables["LOCAL_RANK"])] = int(entry.name)
    return [pids[rank] for rank in sorted(pids)]


Ranks = tuple[list[int], str, str]


def run_torchrun(arguments: Sequence[object], folder: Path) -> Ranks:
    """Run edgetl in two processes of torchrun; return its exit status, output and errors."""
    with torchrun(*arguments, cache=folder / "cache") as process:
        output, errors = process.communicate(timeout=200)
    return [process.returncode], output, errors


def run_forked_ranks(arguments: Sequence[object], folder: Path) -> Ranks:
    """Run edgetl in two processes as torchrun does, but forked, which saves many seconds."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    variables = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}  # fmt: skip
    folders = [folder / "rank0", folder / "rank1"]
    processes = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGETL_CACHE", str(folder / "cache"))
        for rank, output in enumerate(folders):
            output.mkdir()
            for name, value in {**variables, "RANK": rank, "LOCAL_RANK": rank}.items():
                patch.setenv(name, str(value))
            processes.append(forkserver.start([*map(str, arguments)], ROOT, output))
    for process in processes:
        process.join(200)
        process.kill()
        process.join()
    statuses = [process.exitcode or 0 for process in processes]
    outputs, errors = (
        "".join((path / name).read_text() for path in folders) for name in ("out", "err")
    )
    return statuses, outputs, errors


@pytest.mark.parametrize(
    ("options_set", "run_ranks"),
    [
        pytest.param(CACHED_OPTIONS, run_forked_ranks, id="cached"),
        pytest.param(STREAMED_OPTIONS, run_torchrun, id="streamed", marks=pytest.mark.slow),
    ],
)
def test_two_processes_match_a_single_process(
    options_set: tuple[str, ...],
    run_ranks: Callable[[Sequence[object], Path], Ranks],
    forked: Run,
    parts: Path,
    random_weights: Path,
    tmp_path: Path,
) -> None:
    alone, together = RunDirectory(tmp_path / "alone"), RunDirectory(tmp_path / "together")
    arguments = [
        str(argument)
        for argument in (
            "finetune",
            parts,
            *options(random_weights),
            *DETERMINISTIC_OPTIONS,
            *options_set,
            "--test-split",
            0.2,
        )
    ]
    done = forked(*arguments, "-o", alone.path)
    assert done.returncode == 0, done.stderr
    statuses, output, errors = run_ranks([*arguments, "-o", together.path], tmp_path)
    assert set(statuses) == {0}, errors
    assert output.count("Next: edgetl export") == 1, "only the main process prints"
    metrics = [json.loads(run.metrics.read_text()) for run in (alone, together)]
    assert [run_metrics["processes"] for run_metrics in metrics] == [1, 2]
    assert (
        metrics[0]["frozen_blocks"]["cache"]
        == metrics[1]["frozen_blocks"]["cache"]
        == ("none" if options_set else "filled")
    )
    histories = [
        [json.loads(line) for line in run.history.read_text().splitlines()]
        for run in (alone, together)
    ]
    for first, second in zip(*histories, strict=True):
        for name in ("train_loss", "train_accuracy", "val_loss", "val_accuracy"):
            assert second[name] == pytest.approx(first[name], abs=2e-3), name
    expected, weights = load_file(alone.weights), load_file(together.weights)
    for name, tensor in expected.items():
        torch.testing.assert_close(weights[name], tensor, rtol=2e-2, atol=2e-3)
    for name, images in (("predictions", 20), ("test_predictions", 10)):
        rows = [
            [row["path"] for row in csv.DictReader((run.path / f"{name}.csv").open())]
            for run in (alone, together)
        ]
        assert rows[0] == rows[1]
        assert len(set(rows[1])) == len(rows[1]) == images
    assert metrics[1]["test"]["loss"] == pytest.approx(metrics[0]["test"]["loss"], abs=2e-3)


@pytest.mark.slow
def test_two_processes_learn_with_batch_norm_and_dropout(
    parts: Path, random_weights: Path, tmp_path: Path
) -> None:
    run = RunDirectory(tmp_path / "run")
    training_options = (
        "--batch-norm",
        "train",
        "--ema",
        0.5,
        "--mixup",
        0.2,
        "--epochs",
        2,
        "--finetune-epochs",
        3,
        "--clip-gradient",
        1,
    )
    with torchrun(
        "finetune", parts, *options(random_weights), *training_options, "-o", run.path
    ) as process:
        _, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    losses = [json.loads(line)["train_loss"] for line in run.history.read_text().splitlines()]
    assert losses[-1] < losses[0]
    assert "Warning" not in errors, errors


@pytest.mark.slow
def test_run_ends_when_a_process_dies_and_resumes(
    forked: Run, parts: Path, random_weights: Path, tmp_path: Path
) -> None:
    run = RunDirectory(tmp_path / "run")
    epoch_options = ("--epochs", 4000, "--finetune-epochs", 1)
    with torchrun(
        "finetune", parts, *options(random_weights), *epoch_options, "-o", run.path
    ) as process:
        deadline = time.monotonic() + 150
        while not run.checkpoint.exists():
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.kill(rank_pids(process)[1], signal.SIGKILL)
        kill_time = time.monotonic()
        _, errors = process.communicate(timeout=60)
    assert time.monotonic() - kill_time < 30
    assert process.returncode != 0
    assert len(re.findall("processes has ended", errors)) == 1, errors
    assert f"edgetl finetune --resume {run.path}" in errors
    epochs = len(run.history.read_text().splitlines())
    with torchrun("finetune", "--resume", run.path) as process:
        while len(run.history.read_text().splitlines()) <= epochs:
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline + 100
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)  # torchrun forwards it
        _, errors = process.communicate(timeout=60)
    assert len(re.findall("Interrupted after epoch", errors)) == 1, errors
    numbers = [json.loads(line)["epoch"] for line in run.history.read_text().splitlines()]
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) > epochs
    alone = forked("finetune", "--resume", run.path)
    assert alone.returncode == 1
    assert "was written by 2 processes, got 1" in alone.stderr


def test_error_is_reported_once(tmp_path: Path, random_weights: Path) -> None:
    arguments = ["finetune", tmp_path / "nothing", *options(random_weights)]
    statuses, _, errors = run_forked_ranks(arguments, tmp_path)
    assert 0 not in statuses
    assert len(re.findall("Data folder not found", errors)) == 1, errors


def test_select_gpu_uses_local_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    selected_gpus: list[int] = []
    monkeypatch.setattr(torch.cuda, "set_device", selected_gpus.append)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert select_gpu(1) is None
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert select_gpu(1) == torch.device("cuda", 1)
    assert selected_gpus == [1]
    with pytest.raises(
        ConfigError,
        match="LOCAL_RANK is 2, but PyTorch sees 2 GPUs: each process needs its own",
    ):
        select_gpu(2)
    assert selected_gpus == [1]


def test_init_distributed_with_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    selected_gpus: list[int] = []
    monkeypatch.setattr(torch.cuda, "set_device", selected_gpus.append)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name, value in {
        "WORLD_SIZE": "1",
        "RANK": "0",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "1",
    }.items():
        monkeypatch.setenv(name, value)
    with init_distributed() as processes:
        assert processes is SINGLE_PROCESS
        assert not torch.distributed.is_initialized()
    assert selected_gpus == [1]
    with init_distributed("cpu"):
        assert selected_gpus == [1], "a run on the CPU must not touch a GPU"


@pytest.mark.slow
def test_torchrun_with_one_process_gives_identical_weights(
    forked: Run, parts: Path, random_weights: Path, tmp_path: Path
) -> None:
    runs = [RunDirectory(tmp_path / name) for name in ("plain", "torchrun")]
    arguments = ["finetune", parts, *options(random_weights), "--epochs", 1, "--finetune-epochs", 1]
    assert forked(*arguments, "-o", runs[0].path).returncode == 0
    with torchrun(*arguments, "-o", runs[1].path, processes=1) as process:
        _, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    assert json.loads(runs[1].metrics.read_text())["processes"] == 1
    assert runs[0].weights.read_bytes() == runs[1].weights.read_bytes()


def test_single_process_group_needs_no_communication() -> None:
    assert SINGLE_PROCESS.is_main
    assert not SINGLE_PROCESS.is_distributed
    assert SINGLE_PROCESS.broadcast(3) == 3
    assert SINGLE_PROCESS.all_gather("x") == ["x"]
    assert SINGLE_PROCESS.all_reduce_any(True, False) == (True, False)
    module = torch.nn.Linear(1, 1)
    assert SINGLE_PROCESS.wrap_ddp(module) is module


@given(
    st.integers(1, 5),
    st.integers(2, 40),
    st.integers(0, 120),
    st.sampled_from(["shuffled", "balanced"]),
)
def test_processes_share_each_image_once(
    world: int, batch_size: int, extra: int, sampling: str
) -> None:
    batch_size = max(batch_size, 2 * world)
    images = 2 * world + extra
    labels = torch.arange(images) % 3

    def make_sampler(rank: int, world: int) -> EpochSampler:
        processes = Processes(rank, world)
        return EpochSampler(labels, sampling, batch_size, 1, processes)  # type: ignore[arg-type]

    single_sampler = make_sampler(0, 1)
    samplers = [make_sampler(rank, world) for rank in range(world)]
    batches = [sampler.sample_batches(2) for sampler in samplers]
    assert {len(part) for part in batches} == {samplers[0].steps_per_epoch}
    positions = sorted(position for part in batches for batch in part for position in batch)
    assert positions == sorted(
        position for batch in single_sampler.sample_batches(2) for position in batch
    )
    assert min(len(batch) for part in batches for batch in part) >= 2
    shards = [sampler.shard(range(images)) for sampler in samplers]
    assert sorted(position for shard in shards for position in shard) == list(range(images))


def test_is_peer_failure_detects_lost_connections() -> None:
    assert is_peer_failure(
        RuntimeError(
            "[third_party/gloo/gloo/transport/tcp/pair.cc:534] "
            "Connection closed by peer [127.0.0.1]:1234"
        )
    )
    assert not is_peer_failure(
        RuntimeError("frozen tensors changed during training: features.0.weight")
    )
    assert not is_peer_failure(ValueError("gloo"))

"""Two processes that train one network: started by torchrun, joined over gloo, killed for good."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
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

Run = Callable[..., subprocess.CompletedProcess[str]]
# Without chance in it, two processes compute what one does, up to the order of sums.
PLAIN = (
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
CACHED, STREAMED = (), ("--cache-budget", "0", "--class-weights", "balanced")


@contextmanager
def torchrun(
    *arguments: object, cache: Path | None = None, processes: int = 2
) -> Iterator[subprocess.Popen[str]]:
    """The program in several processes, started and not waited for; all end with the block."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        **({"EDGETL_CACHE": str(cache)} if cache else {}),
    }
    together = ("--standalone", "--nproc-per-node", str(processes), "-m", "edgetl")
    command = [sys.executable, "-m", "torch.distributed.run", *together, *map(str, arguments)]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as started:
        try:
            yield started
        finally:
            if started.poll() is None:
                started.send_signal(signal.SIGTERM)
                try:
                    started.wait(60)
                except subprocess.TimeoutExpired:
                    started.kill()


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


def workers(started: subprocess.Popen[str]) -> list[int]:
    """Process numbers of the two, by their rank."""
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            variables = dict(
                line.partition("=")[::2] for line in (entry / "environ").read_text().split("\0")
            )
        except (OSError, ValueError, IndexError):
            continue
        if parent == started.pid and "LOCAL_RANK" in variables:
            found[int(variables["LOCAL_RANK"])] = int(entry.name)
    return [found[rank] for rank in sorted(found)]


@pytest.mark.parametrize("way", [CACHED, STREAMED], ids=["cached", "streamed"])
def test_two_processes_compute_what_one_does(
    way: tuple[str, ...], forked: Run, parts: Path, random_weights: Path, tmp_path: Path
) -> None:
    alone, together = RunDirectory(tmp_path / "alone"), RunDirectory(tmp_path / "together")
    arguments = [str(part) for part in ("finetune", parts, *options(random_weights), *PLAIN, *way)]
    done = forked(*arguments, "-o", alone.path)
    assert done.returncode == 0, done.stderr
    with torchrun(*arguments, "-o", together.path, cache=tmp_path / "cache") as started:
        said, errors = started.communicate(timeout=200)
    assert started.returncode == 0, errors
    assert said.count("Next: edgetl export") == 1, "one of the two speaks"
    metrics = [json.loads(run.metrics.read_text()) for run in (alone, together)]
    assert [one["processes"] for one in metrics] == [1, 2]
    assert (
        metrics[0]["frozen_blocks"]["cache"]
        == metrics[1]["frozen_blocks"]["cache"]
        == ("none" if way else "filled")
    )
    histories = [
        [json.loads(line) for line in run.history.read_text().splitlines()]
        for run in (alone, together)
    ]
    for one, two in zip(*histories, strict=True):
        for figure in ("train_loss", "train_accuracy", "val_loss", "val_accuracy"):
            assert two[figure] == pytest.approx(one[figure], abs=2e-3), figure
    ours, theirs = load_file(alone.weights), load_file(together.weights)
    for name, tensor in ours.items():
        torch.testing.assert_close(theirs[name], tensor, rtol=2e-2, atol=2e-3)
    rows = [
        [row["path"] for row in csv.DictReader(run.predictions.open())] for run in (alone, together)
    ]
    assert rows[0] == rows[1]
    assert len(set(rows[1])) == len(rows[1]) == 20


def test_moving_statistics_and_dropout_learn_as_one_process_does(
    parts: Path, random_weights: Path, tmp_path: Path
) -> None:
    run = RunDirectory(tmp_path / "run")
    moving = (
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
    with torchrun("finetune", parts, *options(random_weights), *moving, "-o", run.path) as started:
        _, errors = started.communicate(timeout=200)
    assert started.returncode == 0, errors
    losses = [json.loads(line)["train_loss"] for line in run.history.read_text().splitlines()]
    assert losses[-1] < losses[0]
    assert "Warning" not in errors, errors


def test_a_process_that_dies_ends_the_other_and_both_go_on(
    forked: Run, parts: Path, random_weights: Path, tmp_path: Path
) -> None:
    run = RunDirectory(tmp_path / "run")
    many = ("--epochs", 4000, "--finetune-epochs", 1)
    with torchrun("finetune", parts, *options(random_weights), *many, "-o", run.path) as started:
        deadline = time.monotonic() + 150
        while not run.checkpoint.exists():
            assert started.poll() is None, started.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.kill(workers(started)[1], signal.SIGKILL)
        killed = time.monotonic()
        _, errors = started.communicate(timeout=60)
    assert time.monotonic() - killed < 30
    assert started.returncode != 0
    assert len(re.findall("processes has ended", errors)) == 1, errors
    assert f"edgetl finetune --resume {run.path}" in errors
    epochs = len(run.history.read_text().splitlines())
    with torchrun("finetune", "--resume", run.path) as started:
        while len(run.history.read_text().splitlines()) <= epochs:
            assert started.poll() is None, started.communicate()[1]
            assert time.monotonic() < deadline + 100
            time.sleep(0.05)
        started.send_signal(signal.SIGINT)  # torchrun hands it on
        _, errors = started.communicate(timeout=60)
    assert len(re.findall("Interrupted after epoch", errors)) == 1, errors
    numbers = [json.loads(line)["epoch"] for line in run.history.read_text().splitlines()]
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) > epochs
    alone = forked("finetune", "--resume", run.path)
    assert alone.returncode == 1
    assert "is of 2 processes and this is one of 1" in alone.stderr


def test_what_is_wrong_is_told_once(tmp_path: Path, random_weights: Path) -> None:
    with torchrun("finetune", tmp_path / "nothing", *options(random_weights)) as started:
        _, errors = started.communicate(timeout=100)
    assert started.returncode != 0
    assert len(re.findall("No data folder at", errors)) == 1, errors


def test_each_process_takes_the_gpu_of_its_local_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert select_gpu(1) is None
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert select_gpu(1) == torch.device("cuda", 1)
    assert taken == [1]
    with pytest.raises(
        ConfigError, match="LOCAL_RANK is 2, but PyTorch sees 2 GPUs: each process needs its own"
    ):
        select_gpu(2)
    assert taken == [1]


def test_a_world_of_one_is_alone_on_its_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name, value in {
        "WORLD_SIZE": "1",
        "RANK": "0",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "1",
    }.items():
        monkeypatch.setenv(name, value)
    with init_distributed() as ranks:
        assert ranks is SINGLE_PROCESS
        assert not torch.distributed.is_initialized()
    assert taken == [1]
    with init_distributed("cpu"):
        assert taken == [1], "a run on the CPU touches no GPU"


def test_torchrun_with_one_process_trains_as_without_it(
    forked: Run, parts: Path, random_weights: Path, tmp_path: Path
) -> None:
    runs = [RunDirectory(tmp_path / name) for name in ("plain", "torchrun")]
    arguments = ["finetune", parts, *options(random_weights), "--epochs", 1, "--finetune-epochs", 1]
    assert forked(*arguments, "-o", runs[0].path).returncode == 0
    with torchrun(*arguments, "-o", runs[1].path, processes=1) as started:
        _, errors = started.communicate(timeout=200)
    assert started.returncode == 0, errors
    assert json.loads(runs[1].metrics.read_text())["processes"] == 1
    assert runs[0].weights.read_bytes() == runs[1].weights.read_bytes()


def test_one_process_is_alone() -> None:
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
def test_together_they_have_each_image_once(
    world: int, batch_size: int, more: int, sampling: str
) -> None:
    batch_size, images = max(batch_size, 2 * world), 2 * world + more
    labels = torch.arange(images) % 3
    whole = EpochSampler(labels, sampling, batch_size, seed=1, processes=Processes(0, 1))  # type: ignore[arg-type]
    each = [
        EpochSampler(labels, sampling, batch_size, seed=1, processes=Processes(rank, world))
        for rank in range(world)
    ]  # type: ignore[arg-type]
    parts = [order.sample_batches(2) for order in each]
    assert {len(part) for part in parts} == {each[0].steps_per_epoch}
    drawn = sorted(position for part in parts for batch in part for position in batch)
    assert drawn == sorted(position for batch in whole.sample_batches(2) for position in batch)
    assert min(len(batch) for part in parts for batch in part) >= 2
    own = [order.shard(range(images)) for order in each]
    assert sorted(position for part in own for position in part) == list(range(images))


def test_a_lost_connection_is_told_from_other_errors() -> None:
    assert is_peer_failure(
        RuntimeError(
            "[third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1234"
        )
    )
    assert not is_peer_failure(
        RuntimeError("frozen tensors changed during training: features.0.weight")
    )
    assert not is_peer_failure(ValueError("gloo"))

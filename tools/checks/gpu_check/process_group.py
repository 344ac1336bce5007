"""NCCL with one process: the group, DDP and averaged buffers, as several processes use them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from edgetl.train.common.distributed import Processes
from tools.checks.gpu_check.clock import device_ms
from tools.checks.gpu_check.record import Record
from tools.checks.gpu_check.settings import Settings


class SingleRankProcesses(Processes):
    """A group of one process that takes the way of many: `Processes` skips every collective for a world of 1."""

    @property
    def is_distributed(self) -> bool:
        """True."""
        return True


def check_process_group(settings: Settings, record: Record) -> None:
    """Step `process_group`."""
    device = settings.device
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    if device == "cuda":
        record.measure(nccl=".".join(map(str, torch.cuda.nccl.version())))  # type: ignore[no-untyped-call]
    with _group(backend) as ranks:
        record.require("the group has one process", dist.get_world_size() == 1, backend)
        record.require("objects go through the group", ranks.broadcast("seed 7") == "seed 7")
        record.require(
            "flags go through the group", ranks.all_reduce_any(True, False) == (True, False)
        )
        ranks.barrier()
        _check_step(record, ranks, device)
        _check_average(record, ranks, device)


def _check_step(record: Record, ranks: Processes, device: str) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )
    network.to(device)
    parallel = ranks.wrap_ddp(network)
    wrapped = isinstance(parallel, nn.parallel.DistributedDataParallel)
    record.require(
        "the network is wrapped in DistributedDataParallel", wrapped, type(parallel).__name__
    )
    pixels, labels = torch.randn(8, 3, 16, 16, device=device), torch.arange(8, device=device) % 4
    F.cross_entropy(network(pixels), labels).backward()  # type: ignore[no-untyped-call]
    alone = [
        parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None
    ]
    network.zero_grad()
    F.cross_entropy(parallel(pixels), labels).backward()  # type: ignore[no-untyped-call]
    together = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    close = [torch.allclose(a, b, atol=1e-5) for a, b in zip(alone, together, strict=True)]
    record.require("gradients are those without the group", bool(close) and all(close), len(close))


def _check_average(record: Record, ranks: Processes, device: str) -> None:
    buffers = [torch.randn(size, device=device) for size in (32, 96, 1280)]
    before = [buffer.clone() for buffer in buffers]
    ranks.all_reduce_mean(buffers)
    same = all(torch.allclose(a, b) for a, b in zip(before, buffers, strict=True))
    record.require("the mean over one process is the value itself", same)
    record.measure(average_ms=device_ms(lambda: ranks.all_reduce_mean(buffers), 20, device))


@contextmanager
def _group(backend: str) -> Iterator[Processes]:
    with tempfile.TemporaryDirectory() as folder:
        store = f"file://{Path(folder) / 'store'}"
        dist.init_process_group(backend, init_method=store, rank=0, world_size=1)
        try:
            channel = dist.new_group([0], backend="gloo")
            yield SingleRankProcesses(0, 1, channel)  # type: ignore[arg-type]
        finally:
            dist.destroy_process_group()

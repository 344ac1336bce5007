"""NCCL with one process: the process group, DDP and averaged buffers."""

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
    """Group of one process that runs every collective, which `Processes` skips at world size 1."""

    @property
    def is_distributed(self) -> bool:
        """True, so that no collective is skipped."""
        return True


def check_process_group(settings: Settings, record: Record) -> None:
    """Run step `process_group`: every collective that training uses, in one process."""
    device = settings.device
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    if device == "cuda":
        record.measure(nccl=".".join(map(str, torch.cuda.nccl.version())))  # type: ignore[no-untyped-call]
    with _group(backend) as processes:
        record.require("the group has one process", dist.get_world_size() == 1, backend)
        record.require("objects are broadcast", processes.broadcast("seed 7") == "seed 7")
        flags = processes.all_reduce_any(True, False)
        record.require("flags are reduced", flags == (True, False))
        processes.barrier()
        _check_step(record, processes, device)
        _check_average(record, processes, device)


def _check_step(record: Record, processes: Processes, device: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )
    model.to(device)
    ddp_model = processes.wrap_ddp(model)
    wrapped = isinstance(ddp_model, nn.parallel.DistributedDataParallel)
    text = "the model is wrapped in DistributedDataParallel"
    record.require(text, wrapped, type(ddp_model).__name__)
    pixels = torch.randn(8, 3, 16, 16, device=device)
    labels = torch.arange(8, device=device) % 4
    F.cross_entropy(model(pixels), labels).backward()  # type: ignore[no-untyped-call]
    local_gradients = [
        parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None
    ]
    model.zero_grad()
    F.cross_entropy(ddp_model(pixels), labels).backward()  # type: ignore[no-untyped-call]
    ddp_gradients = [
        parameter.grad for parameter in model.parameters() if parameter.grad is not None
    ]
    pairs = zip(local_gradients, ddp_gradients, strict=True)
    close = [torch.allclose(local, ddp, atol=1e-5) for local, ddp in pairs]
    text = "gradients match those without DistributedDataParallel"
    record.require(text, bool(close) and all(close), len(close))


def _check_average(record: Record, processes: Processes, device: str) -> None:
    buffers = [torch.randn(size, device=device) for size in (32, 96, 1280)]
    originals = [buffer.clone() for buffer in buffers]
    processes.all_reduce_mean(buffers)
    pairs = zip(originals, buffers, strict=True)
    unchanged = all(torch.allclose(original, mean) for original, mean in pairs)
    record.require("the mean over one process is the value itself", unchanged)
    record.measure(average_ms=device_ms(lambda: processes.all_reduce_mean(buffers), 20, device))


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

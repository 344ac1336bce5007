"""Data-parallel training in several processes started by torchrun.

Every process runs all of `finetune`. The main process measures and decides for all (`broadcast`,
`run_on_main`) and is the only one that writes. Steps and images are divided among all.
"""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from edgetl.core.config.finetune import Device, FinetuneConfig
from edgetl.core.errors import ConfigError, RunError
from edgetl.device.hardware.cpu import available_cores

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

T = TypeVar("T")
_TIMEOUT = timedelta(hours=1)
"""Time that processes wait for one another; the main process may have many images to read."""


@dataclass(frozen=True)
class DistributedGroup:
    """Processes that work together; by default, a single process."""

    rank: int = 0
    """Index of this process, from 0."""
    world_size: int = 1
    """Number of processes."""
    process_group: ProcessGroup | None = None
    """PyTorch's process group for CPU tensors and objects."""

    @property
    def is_main(self) -> bool:
        """Whether this process decides and writes."""
        return self.rank == 0

    @property
    def is_distributed(self) -> bool:
        """Whether there is more than one process."""
        return self.world_size > 1

    def shard(self, count: int) -> range:
        """Return this process's share of `range(count)`; each index belongs to one process."""
        return range(self.rank, count, self.world_size)

    def broadcast(self, value: T) -> T:
        """Broadcast a value from rank 0."""
        return self.run_on_main(lambda: value)

    def run_on_main(self, make: Callable[[], T]) -> T:
        """Run `make` on rank 0 and broadcast its result or exception."""
        if not self.is_distributed:
            return make()
        box: list[Any] = [None, None]
        if self.is_main:
            try:
                box[0] = make()
            except Exception as cause:
                box[1] = cause
        dist.broadcast_object_list(
            box, src=dist.get_global_rank(self._process_group, 0), group=self._process_group
        )
        if box[1] is not None:
            raise box[1]
        result: T = box[0]
        return result

    def all_gather(self, value: T) -> list[T]:
        """Return the values of all processes, in order of rank."""
        if not self.is_distributed:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self._process_group)
        return values

    def all_reduce_any(self, *flags: bool) -> tuple[bool, ...]:
        """Return, for each flag, whether it is set in any process."""
        if not self.is_distributed:
            return flags
        counts = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(counts, group=self._process_group)
        return tuple(bool(count) for count in counts)

    @contextmanager
    def main_process_first(self) -> Iterator[None]:
        """Run the block on the main process first; the others then find its cache entries."""
        if not self.is_main:
            self.barrier()
        yield
        if self.is_main:
            self.barrier()

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.is_distributed:
            dist.barrier(group=self._process_group)

    @property
    def _process_group(self) -> ProcessGroup:
        assert self.process_group is not None
        return self.process_group


@dataclass(frozen=True)
class Processes(DistributedGroup):
    """All processes of a training run."""

    local_group: DistributedGroup = DistributedGroup()
    """Processes on this machine."""

    def wrap_ddp(self, module: nn.Module) -> nn.Module:
        """Return the module with gradients averaged over the processes.

        The set of trainable parameters must not change afterwards.

        Source: Li et al., "PyTorch Distributed: Experiences on Accelerating Data Parallel Training"
        (2020).
        """
        if not self.is_distributed:
            return module
        devices = {parameter.device for parameter in module.parameters()}
        on_gpu = any(device.type == "cuda" for device in devices)
        with warnings.catch_warnings():
            # PyTorch 2.15 deprecates the option's name; older versions lack the new one.
            warnings.simplefilter("ignore", FutureWarning)
            # Buffers are averaged after every step, so rank 0's need not be broadcast.
            return nn.parallel.DistributedDataParallel(
                module,
                device_ids=[torch.cuda.current_device()] if on_gpu else None,
                broadcast_buffers=False,
            )

    @torch.no_grad()
    def all_reduce_mean(self, tensors: Sequence[Tensor]) -> None:
        """Set each float tensor to its mean over the processes."""
        if not self.is_distributed or not tensors:
            return
        flat = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
        dist.all_reduce(flat)
        flat /= self.world_size
        parts = torch.split(flat, [tensor.numel() for tensor in tensors])
        torch._foreach_copy_(
            list(tensors),
            [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)],
        )


SINGLE_PROCESS = Processes()


def is_main_process() -> bool:
    """Return whether this is the main process."""
    return _read_env_int("WORLD_SIZE", 1) == 1 or _read_env_int("RANK", 0) == 0


@contextmanager
def init_distributed(device: Device = "auto") -> Iterator[Processes]:
    """Join the processes that torchrun has started; yield SINGLE_PROCESS if there is only one.

    An error in one process ends all of them, and one of them reports it.

    Args:
        device: value of `--device`; with `cpu` no GPU is touched.

    Raises:
        ConfigError: there is no GPU for this process.
        RunError: the connection to another process was lost, or SIGTERM was received.
        SystemExit: another process has reported the error.
    """
    world_size = _read_env_int("WORLD_SIZE", 1)
    rank = _read_env_int("RANK", 0)
    local_world_size = _read_env_int("LOCAL_WORLD_SIZE", world_size)
    local_rank = _read_env_int("LOCAL_RANK", rank)
    started_by_torchrun = "LOCAL_RANK" in os.environ
    gpu = select_gpu(local_rank) if started_by_torchrun and device != "cpu" else None
    if world_size == 1:
        yield SINGLE_PROCESS
        return
    # torchrun sets one thread per process unless the user has set a number.
    torch.set_num_threads(max(1, available_cores() // local_world_size))
    store: Store = next(iter(rendezvous("env://", timeout=_TIMEOUT)))[0]
    # GPU tensors use NCCL, with an explicit device so that it does not guess. Objects and barriers
    # use gloo and do not wait for a GPU.
    backend = "cpu:gloo,cuda:nccl" if gpu else "gloo"
    dist.init_process_group(
        backend,
        store=PrefixStore("edgetl", store),
        rank=rank,
        world_size=world_size,
        timeout=_TIMEOUT,
        device_id=gpu,
    )
    previous_handler = signal.signal(signal.SIGTERM, _raise_terminated)
    try:
        process_group = _new_process_group(range(world_size))
        # PyTorch requires every process to create the groups of all machines, in the same order.
        local_groups = [
            _new_process_group(range(start, min(start + local_world_size, world_size)))
            for start in range(0, world_size, local_world_size)
        ]
        local_group = DistributedGroup(
            local_rank, local_world_size, local_groups[rank // local_world_size]
        )
        yield Processes(rank, world_size, process_group, local_group)
        dist.destroy_process_group()
    except BaseException as cause:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if not _is_first_to_report(store):
            raise SystemExit(130 if isinstance(cause, KeyboardInterrupt) else 1) from cause
        raise
    finally:
        signal.signal(signal.SIGTERM, previous_handler)


def select_gpu(local_rank: int) -> torch.device | None:
    """Make GPU number `local_rank` the current one; return None on a machine without GPUs.

    Call it before anything else uses a GPU.

    Raises:
        ConfigError: the machine has GPUs, but not this many.
    """
    count = torch.cuda.device_count()
    if count == 0:
        return None
    if local_rank >= count:
        raise ConfigError(
            f"LOCAL_RANK is {local_rank}, but PyTorch sees {count} GPU{'s' * (count > 1)}: "
            "each process needs its own. "
            f"Start torchrun with --nproc-per-node {count}, or train on the CPU with {{device}} cpu.",
            FinetuneConfig,
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def _new_process_group(ranks: range) -> ProcessGroup:
    group = dist.new_group(list(ranks), backend="gloo", timeout=_TIMEOUT)
    # A process outside the group gets a number instead, which is never used.
    return cast("ProcessGroup", group)


class TerminatedError(RunError):
    """SIGTERM received: from torchrun after another process has ended, or from a cancelled job."""


def is_peer_failure(cause: BaseException) -> bool:
    """Return whether an error means that another process has failed or is unreachable."""
    message = str(cause).lower()
    return isinstance(cause, (dist.DistError, TerminatedError)) or (
        isinstance(cause, RuntimeError)
        and any(
            text in message for text in ("gloo", "nccl", "connection closed", "connection reset")
        )
    )


def ignore_sigterm(group: DistributedGroup) -> None:
    """Ignore SIGTERM: the error is known, and torchrun's signal would interrupt reporting it."""
    if group.is_distributed:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _is_first_to_report(store: Store) -> bool:
    try:
        return bool(store.add("edgetl-reported", 1) == 1)
    except RuntimeError:  # the process that hosts the store has ended, perhaps without a report
        return True


def _raise_terminated(_number: int, _frame: FrameType | None) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise TerminatedError(
        "Training was terminated: one of its processes has ended, or the job was cancelled."
    )


def _read_env_int(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isdigit() else default

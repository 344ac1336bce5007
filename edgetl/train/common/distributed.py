"""Several processes that train one network, as torchrun starts them: who this one is, and how all of them stay at one.

Every process runs the whole of `finetune`. What is measured or found out on the way is the first one's (`agree`, `first_makes`), steps and
images are divided among all, and only the first writes.
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

from edgetl.core.config.finetune import Device
from edgetl.core.errors import ConfigError, RunError
from edgetl.device.hardware.cpu import available_cores

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

T = TypeVar("T")
_TIMEOUT = timedelta(hours=1)
"""For one another: the first process may have many images to read."""


@dataclass(frozen=True)
class DistributedGroup:
    """Processes that work together, or one alone."""

    rank: int = 0
    """This one, counted from 0."""
    world_size: int = 1
    """How many there are."""
    process_group: ProcessGroup | None = None
    """Between their CPUs."""

    @property
    def is_main(self) -> bool:
        """Whether this is the process that decides and writes."""
        return self.rank == 0

    @property
    def is_distributed(self) -> bool:
        """Whether there are others."""
        return self.world_size > 1

    def shard(self, count: int) -> range:
        """This process's share of so many things: together the processes have each once."""
        return range(self.rank, count, self.world_size)

    def broadcast(self, value: T) -> T:
        """The first process's value."""
        return self.run_on_main(lambda: value)

    def run_on_main(self, make: Callable[[], T]) -> T:
        """What the first process makes, or the error that ended it, in every process."""
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
        made: T = box[0]
        return made

    def all_gather(self, value: T) -> list[T]:
        """The value of each process, in order."""
        if not self.is_distributed:
            return [value]
        found: list[Any] = [None] * self.world_size
        dist.all_gather_object(found, value, group=self._process_group)
        return found

    def all_reduce_any(self, *flags: bool) -> tuple[bool, ...]:
        """Of each flag, whether it is set in any process."""
        if not self.is_distributed:
            return flags
        counts = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(counts, group=self._process_group)
        return tuple(bool(count) for count in counts)

    @contextmanager
    def main_process_first(self) -> Iterator[None]:
        """The first process goes through the block before the others: it leaves in a cache what they find there."""
        if not self.is_main:
            self.barrier()
        yield
        if self.is_main:
            self.barrier()

    def barrier(self) -> None:
        """Wait until every process is here."""
        if self.is_distributed:
            dist.barrier(group=self._process_group)

    @property
    def _process_group(self) -> ProcessGroup:
        assert self.process_group is not None
        return self.process_group


@dataclass(frozen=True)
class Processes(DistributedGroup):
    """All processes of a training."""

    local_group: DistributedGroup = DistributedGroup()
    """Those on this machine."""

    def wrap_ddp(self, module: nn.Module) -> nn.Module:
        """The module with gradients that are the processes' mean; its trained parameters are set when this is called.

        Li et al., "PyTorch Distributed: Experiences on Accelerating Data Parallel Training" (2020).
        """
        if not self.is_distributed:
            return module
        devices = {parameter.device for parameter in module.parameters()}
        on_gpu = any(device.type == "cuda" for device in devices)
        with warnings.catch_warnings():
            # The option has another name from PyTorch 2.15 on, which older ones do not know.
            warnings.simplefilter("ignore", FutureWarning)
            # Statistics are averaged after every step, which is more than the first process's for all.
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
    """Whether this process is the one that tells the user how things go: the only one, or the first."""
    return _read_env_int("WORLD_SIZE", 1) == 1 or _read_env_int("RANK", 0) == 0


@contextmanager
def init_distributed(device: Device = "auto") -> Iterator[Processes]:
    """The processes that torchrun has started with this one; ALONE where it has not, or has started only one.

    Ends together: an error of one process ends all of them, and one tells why.

    Args:
        device: as `--device`; with `cpu` no GPU is touched.

    Raises:
        ConfigError: there is no GPU for this process.
        RunError: the connection to the others was lost, or this process was told to end.
        SystemExit: another process has told why all of them end.
    """
    world, rank = _read_env_int("WORLD_SIZE", 1), _read_env_int("RANK", 0)
    local_world, local_rank = (
        _read_env_int("LOCAL_WORLD_SIZE", world),
        _read_env_int("LOCAL_RANK", rank),
    )
    started_by_torchrun = "LOCAL_RANK" in os.environ
    gpu = select_gpu(local_rank) if started_by_torchrun and device != "cpu" else None
    if world == 1:
        yield SINGLE_PROCESS
        return
    # torchrun sets one thread a process where the user has set none.
    torch.set_num_threads(max(1, available_cores() // local_world))
    store: Store = next(iter(rendezvous("env://", timeout=_TIMEOUT)))[0]
    # Tensors of a GPU go over NCCL, which is told the GPU so that it need not guess; objects and barriers go over gloo and wait for no GPU.
    backend = "cpu:gloo,cuda:nccl" if gpu else "gloo"
    dist.init_process_group(
        backend,
        store=PrefixStore("edgetl", store),
        rank=rank,
        world_size=world,
        timeout=_TIMEOUT,
        device_id=gpu,
    )
    before = signal.signal(signal.SIGTERM, _raise_terminated)
    try:
        channel = _new_process_group(range(world))
        # Every process makes the groups of all machines: that is how PyTorch numbers them.
        groups = [
            _new_process_group(range(start, min(start + local_world, world)))
            for start in range(0, world, local_world)
        ]
        yield Processes(
            rank,
            world,
            channel,
            DistributedGroup(local_rank, local_world, groups[rank // local_world]),
        )
        dist.destroy_process_group()
    except BaseException as cause:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if not _is_first_to_report(store):
            raise SystemExit(130 if isinstance(cause, KeyboardInterrupt) else 1) from cause
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def select_gpu(local_rank: int) -> torch.device | None:
    """Make GPU number `local_rank` the current one, before anything else uses a GPU; None on a machine without.

    Raises:
        ConfigError: the machine has GPUs, but fewer.
    """
    count = torch.cuda.device_count()
    if count == 0:
        return None
    if local_rank >= count:
        raise ConfigError(
            f"LOCAL_RANK is {local_rank} and PyTorch sees {count} GPU{'s' * (count > 1)}: each process needs its own. "
            f"Start torchrun with --nproc-per-node {count}, or train on the CPU with --device cpu."
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def _new_process_group(ranks: range) -> ProcessGroup:
    made = dist.new_group(list(ranks), backend="gloo", timeout=_TIMEOUT)
    # Where a process is not among them it is a number, which is never used.
    return cast("ProcessGroup", made)


class TerminatedError(RunError):
    """SIGTERM came: torchrun sends it when a process has ended, and so does whoever cancels a job."""


def is_peer_failure(cause: BaseException) -> bool:
    """Whether an error says that another process cannot be reached, or that torchrun has seen it end."""
    words = str(cause).lower()
    return isinstance(cause, (dist.DistError, TerminatedError)) or (
        isinstance(cause, RuntimeError)
        and any(word in words for word in ("gloo", "nccl", "connection closed", "connection reset"))
    )


def ignore_sigterm(group: DistributedGroup) -> None:
    """Ignore SIGTERM from now on: why this process ends is known, and torchrun would interrupt it telling so."""
    if group.is_distributed:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _is_first_to_report(store: Store) -> bool:
    try:
        return bool(store.add("edgetl-told", 1) == 1)
    except RuntimeError:  # the process that kept it has gone, and nobody knows what it said
        return True


def _raise_terminated(_number: int, _frame: FrameType | None) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise TerminatedError(
        "This training was told to end: one of its processes has ended, or the job was cancelled."
    )


def _read_env_int(name: str, otherwise: int) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isdigit() else otherwise

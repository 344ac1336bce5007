"""Whether a CPU trains faster in bfloat16: it depends on the network, so it is measured with real steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgetl.train.computing import Computing
from edgetl.train.prefix import Values


def step_milliseconds(
    network: nn.Module, forward: Callable[..., Tensor], values: Values, labels: Tensor, computing: Computing
) -> dict[str, float]:
    """Time of a forward and backward pass in each arithmetic; the network is left as it was."""
    with _undisturbed(network):
        return {name: _fastest(forward, values, labels, replace(computing, precision=name)) for name in ("fp32", "bf16")}


def _fastest(forward: Callable[..., Tensor], values: Values, labels: Tensor, computing: Computing) -> float:
    taken = []
    for _ in range(3):
        started = time.perf_counter()
        with computing.arithmetic():
            loss = F.cross_entropy(forward(*values).float(), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        taken.append(time.perf_counter() - started)
    # The first builds the kernels.
    return min(taken[1:]) * 1e3


@contextmanager
def _undisturbed(network: nn.Module) -> Iterator[None]:
    # Measuring must leave no trace: neither in BatchNorm's statistics, nor in gradients, nor in the random numbers that follow.
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    with torch.random.fork_rng(devices=[]):
        yield
    with torch.no_grad():
        for name, buffer in network.named_buffers():
            buffer.copy_(buffers[name])
    network.zero_grad(set_to_none=True)

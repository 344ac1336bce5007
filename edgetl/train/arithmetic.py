"""Whether a CPU trains faster in bfloat16: it depends on the network, so it is measured with real steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgetl.train.computing import Arithmetic, Computing
from edgetl.train.prefix import Values


def keep_slow_kernels_in_float32(network: nn.Module) -> None:
    """Strided grouped convolutions compute in float32 under autocast on a CPU.

    oneDNN has no fast backward kernel for them in bfloat16 (seen with PyTorch 2.11 and 2.15): that one layer took half of a step of
    MobileNetV2's last five blocks, 3.5 ms an image instead of 1.9.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.groups > 1 and max(module.stride) > 1:
            module.forward = partial(_in_float32, module)  # type: ignore[method-assign]


def _in_float32(module: nn.Conv2d, values: Tensor) -> Tensor:
    under_autocast = torch.is_autocast_enabled(values.device.type)
    with torch.autocast(values.device.type, enabled=False):
        given = values.float() if under_autocast else values
        computed: Tensor = module._conv_forward(given, module.weight, module.bias)
    return computed


def step_milliseconds(
    network: nn.Module, forward: Callable[..., Tensor], values: Values, labels: Tensor, computing: Computing
) -> dict[str, float]:
    """Time of a forward and backward pass in each arithmetic that may be chosen; the network is left as it was."""
    names: list[Arithmetic] = ["fp32", "bf16"] if computing.may_use_bf16 else [computing.precision]
    with _undisturbed(network):
        return {name: _fastest(forward, values, labels, replace(computing, precision=name)) for name in names}


def _fastest(forward: Callable[..., Tensor], values: Values, labels: Tensor, computing: Computing) -> float:
    taken = []
    for _ in range(3):
        started = time.perf_counter()
        with computing.arithmetic():
            loss = F.cross_entropy(forward(*values).float(), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        computing.wait()
        taken.append(time.perf_counter() - started)
    # The first builds the kernels.
    return min(taken[1:]) * 1e3


@contextmanager
def _undisturbed(network: nn.Module) -> Iterator[None]:
    # Measuring must leave no trace: neither in BatchNorm's statistics, nor in gradients, nor in the random numbers that follow.
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    with torch.random.fork_rng():
        yield
    with torch.no_grad():
        for name, buffer in network.named_buffers():
            buffer.copy_(buffers[name])
    network.zero_grad(set_to_none=True)

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

from edgetl.train.computing import Arithmetic, Computing, cudnn_autotuning
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
    network: nn.Module,
    forward: Callable[..., Tensor],
    values: Values,
    labels: Tensor,
    computing: Computing,
) -> dict[str, float]:
    """Time of a forward and backward pass in each arithmetic that may be chosen; the network is left as it was."""
    names: list[Arithmetic] = ["fp32", "bf16"] if computing.may_use_bf16 else [computing.precision]
    with undisturbed(network), cudnn_autotuning(True):
        return {
            name: _fastest(forward, values, labels, replace(computing, precision=name))
            for name in names
        }


def _fastest(
    forward: Callable[..., Tensor], values: Values, labels: Tensor, computing: Computing
) -> float:
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
def undisturbed(network: nn.Module) -> Iterator[None]:
    """Restore buffers, gradients (to None) and random generators after the block, so that a measurement leaves no trace.

    Only the generators of the CPU and of the GPU that holds the network are saved: asking for every GPU's would make a
    CUDA context on each of them.
    """
    buffers = list(network.buffers())
    saved = [buffer.clone() for buffer in buffers]
    gpus = {
        tensor.device
        for tensor in (*network.parameters(), *buffers)
        if tensor.device.type == "cuda"
    }
    current = [torch.cuda.current_device() if gpu.index is None else gpu.index for gpu in gpus]
    try:
        with torch.random.fork_rng(devices=current, device_type="cuda"):
            yield
    finally:
        with torch.no_grad():
            # One launch for each type: lists of several types are copied tensor by tensor.
            for dtype in {buffer.dtype for buffer in buffers}:
                pairs = [
                    pair for pair in zip(buffers, saved, strict=True) if pair[0].dtype == dtype
                ]
                torch._foreach_copy_([buffer for buffer, _ in pairs], [copy for _, copy in pairs])
        network.zero_grad(set_to_none=True)

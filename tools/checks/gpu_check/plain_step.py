"""A training step in plain PyTorch, the yardstick, with one thing changed at a time."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgetl.train.features.batches import Batch
from tools.checks.gpu_check.clock import device_ms, wall_ms

COMPILED = "torch.compile"
VARIANTS = (
    "cudnn.benchmark off",
    "cudnn.benchmark on",
    "cudnn.benchmark on, ReLU6 in place",
    "CUDA graph",
    COMPILED,
)


def plain_step_ms(
    variant: str, network: nn.Module, batch: Batch, runs: int, device: str
) -> tuple[float, float]:
    """Milliseconds of a step by the clock and by the device's events.

    Args:
        variant: one of VARIANTS. bf16 autocast, channels last and fused Adam are common to all; ReLU6 is
            out of place in all but one.
    """
    network = copy.deepcopy(network).train()
    for module in network.modules():
        if isinstance(module, nn.ReLU6):
            module.inplace = variant.endswith("in place")
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = variant != "cudnn.benchmark off"
    try:
        step = _step(variant, network, batch, device)
        return wall_ms(step, runs, device), device_ms(step, runs, device)
    finally:
        torch.backends.cudnn.benchmark = before


def _step(variant: str, network: nn.Module, batch: Batch, device: str) -> Callable[[], None]:
    (pixels,), labels = batch
    graphed = variant == "CUDA graph" and device == "cuda"
    optimizer = torch.optim.Adam(network.parameters(), 1e-3, fused=True, capturable=graphed)
    forward: Callable[[Tensor], Any] = network
    if variant == COMPILED:
        # On a CPU a rehearsal traces, and leaves the compiler's minutes out.
        backend = "inductor" if device == "cuda" else "eager"
        forward = torch.compile(network, backend=backend)

    def step() -> None:
        with torch.autocast(device, torch.bfloat16, cache_enabled=not graphed):
            logits = forward(pixels)
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(logits.float(), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    for _ in range(3 if graphed else 1):
        step()
    return _captured(step) if graphed else step


def _captured(step: Callable[[], None]) -> Callable[[], None]:
    # Warm-up on a side stream, then capture: PyTorch's notes on CUDA semantics, "Whole-network capture".
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay

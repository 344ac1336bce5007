"""Baseline training step in plain PyTorch, in variants that differ by one setting each."""

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
    variant: str, model: nn.Module, batch: Batch, runs: int, device: str
) -> tuple[float, float]:
    """Return the wall time and the device time of a step, ms.

    Args:
        variant: one of VARIANTS. All use bf16 autocast, channels last and fused Adam; ReLU6 is in
            place in one of them only.
        model: model to train; a copy is used.
        batch: images and labels, on the device.
        runs: timed steps.
        device: `cuda` or `cpu`.
    """
    model = copy.deepcopy(model).train()
    for module in model.modules():
        if isinstance(module, nn.ReLU6):
            module.inplace = variant.endswith("in place")
    previous = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = variant != "cudnn.benchmark off"
    try:
        step = _make_step(variant, model, batch, device)
        return wall_ms(step, runs, device), device_ms(step, runs, device)
    finally:
        torch.backends.cudnn.benchmark = previous


def _make_step(variant: str, model: nn.Module, batch: Batch, device: str) -> Callable[[], None]:
    (pixels,), labels = batch
    use_graph = variant == "CUDA graph" and device == "cuda"
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, fused=True, capturable=use_graph)
    forward: Callable[[Tensor], Any] = model
    if variant == COMPILED:
        # A rehearsal on the CPU only traces the model: compiling takes minutes.
        backend = "inductor" if device == "cuda" else "eager"
        forward = torch.compile(model, backend=backend)

    def step() -> None:
        with torch.autocast(device, torch.bfloat16, cache_enabled=not use_graph):
            logits = forward(pixels)
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(logits.float(), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    for _ in range(3 if use_graph else 1):
        step()
    return _capture_graph(step) if use_graph else step


def _capture_graph(step: Callable[[], None]) -> Callable[[], None]:
    # Warm up on a side stream, then capture: "Whole-network capture" in PyTorch's notes on CUDA.
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

"""Kernel launches and time on the device, by PyTorch's profiler (CUPTI), of any library in the process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tools.checks.gpu_check.clock import wait

LAUNCHES = (
    "cudaLaunchKernel", "cudaLaunchKernelExC", "cudaLaunchCooperativeKernel", "cuLaunchKernel",
    "cuLaunchKernelEx", "cudaGraphLaunch",
)  # fmt: skip


def launches_and_device_ms(
    call: Callable[[], Any], runs: int, device: str
) -> tuple[float | None, float | None]:
    """Launches, and milliseconds of kernels and copies on the device, both divided by `runs`; None on a CPU."""
    if device != "cuda":
        call()
        return None, None
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        call()
        wait(device)
    events = profile.key_averages()
    launches = sum(entry.count for entry in events if entry.key in LAUNCHES)
    return launches / runs, sum(entry.self_device_time_total for entry in events) / runs / 1e3

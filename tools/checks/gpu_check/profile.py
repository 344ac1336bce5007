"""Kernel launches and device time of any library in the process, by PyTorch's profiler (CUPTI)."""

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
    """Return the launches and the device time of kernels and copies in ms, both per run.

    Args:
        call: function that executes all runs.
        runs: number of runs in one call.
        device: `cuda`, or `cpu`, where both results are None.
    """
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

"""Timing of device work, with CUDA events on a GPU."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch


def wait(device: str) -> None:
    """Block until all work queued on the device has finished."""
    if device == "cuda":
        torch.cuda.synchronize()


def event() -> torch.cuda.Event:
    """Create a CUDA event with timing enabled."""
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def device_ms(call: Callable[[], Any], runs: int, device: str) -> float:
    """Return the mean device time of a call in ms: CUDA events on a GPU, the clock on a CPU."""
    call()
    wait(device)
    if device == "cuda":
        start, end = event(), event()
        start.record()
        for _ in range(runs):
            call()
        end.record()
        end.synchronize()
        elapsed: float = start.elapsed_time(end)
        return elapsed / runs
    start_s = time.perf_counter()
    for _ in range(runs):
        call()
    return (time.perf_counter() - start_s) / runs * 1e3


def wall_ms(call: Callable[[], Any], runs: int, device: str) -> float:
    """Return the mean wall time of a call in ms, synchronized before and after all runs."""
    call()
    wait(device)
    start_s = time.perf_counter()
    for _ in range(runs):
        call()
    wait(device)
    return (time.perf_counter() - start_s) / runs * 1e3

"""Time of a device, by its events where it has them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch


def wait(device: str) -> None:
    """Wait until the device has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def event() -> torch.cuda.Event:
    """Make an event that keeps its time."""
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def device_ms(call: Callable[[], Any], runs: int, device: str) -> float:
    """Mean milliseconds of a call on the device: by events on a GPU, by the clock on a CPU."""
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
    began = time.perf_counter()
    for _ in range(runs):
        call()
    return (time.perf_counter() - began) / runs * 1e3


def wall_ms(call: Callable[[], Any], runs: int, device: str) -> float:
    """Mean milliseconds of a call by the clock; the device is waited for at both ends."""
    call()
    wait(device)
    began = time.perf_counter()
    for _ in range(runs):
        call()
    wait(device)
    return (time.perf_counter() - began) / runs * 1e3

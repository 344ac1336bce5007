"""NVML's energy counter, as edgetl reads it, against power that is sampled beside it; clocks and throttling."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from itertools import pairwise
from typing import Any

import torch

from edgetl.device.hardware.energy import EnergyMeter
from tools.checks.gpu_check.clock import wait
from tools.checks.gpu_check.record import Record
from tools.checks.gpu_check.settings import Settings

SECONDS = 10.0
"""The counter moves in steps of tens of milliseconds; over ten seconds they are less than 1%."""
SAMPLE_S = 0.02
AGREEMENT = 0.05
"""Share by which the two may differ: NVML states 5% for sampled power."""
Sample = tuple[float, float]
"""Seconds on a monotonic clock, and watts."""


def check_power(settings: Settings, record: Record) -> None:
    """Step `power`."""
    seconds = 0.5 if settings.rehearsal else SECONDS
    read_state = _state_reader() if settings.device == "cuda" else None
    if read_state is not None:
        record.measure(before=read_state())
    side = 256 if settings.rehearsal else 8192
    values = torch.randn(side, side, device=settings.device).to(torch.bfloat16)

    def load() -> None:
        for _ in range(8):
            torch.mm(values, values)
        wait(settings.device)

    read_power = (
        (lambda: float(read_state()["power_w"])) if read_state is not None else (lambda: 0.0)
    )
    joules, samples, calls = measure_energy(load, read_power, EnergyMeter(), seconds)
    record.measure(
        seconds=seconds, matrix_products=8 * calls, samples=len(samples), counted_j=joules
    )
    record.require(
        "power was sampled throughout", len(samples) >= seconds / SAMPLE_S / 4, len(samples)
    )
    if read_state is None:
        return
    record.measure(after=read_state())
    sampled = integral_j(samples)
    counted = joules.get("nvml:0")
    record.measure(sampled_j=sampled, mean_w=sampled / seconds)
    record.require("edgetl's meter has NVML's energy counter", counted is not None, sorted(joules))
    if counted is not None:
        difference = abs(counted / sampled - 1)
        text = f"counted and sampled energy agree within {AGREEMENT:.0%}"
        record.require(text, difference <= AGREEMENT, f"{counted:.0f} J and {sampled:.0f} J")


def measure_energy(
    load: Callable[[], None], read_power: Callable[[], float], meter: Any, seconds: float
) -> tuple[dict[str, float], list[Sample], int]:
    """Repeat `load` for so long; returns joules by source, sampled power, and the number of calls."""
    samples: list[Sample] = []
    ended = threading.Event()

    def sample() -> None:
        while not ended.is_set():
            samples.append((time.monotonic(), read_power()))
            ended.wait(SAMPLE_S)

    load()
    thread = threading.Thread(target=sample, daemon=True)
    calls = 0
    meter.start()
    thread.start()
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        load()
        calls += 1
    ended.set()
    joules: dict[str, float] = dict(meter.stop() or {})
    thread.join()
    return joules, samples, calls


def integral_j(samples: Sequence[Sample]) -> float:
    """Energy between the first and the last sample, by the trapezoidal rule."""
    return sum(
        (later - earlier) * (first + second) / 2
        for (earlier, first), (later, second) in pairwise(samples)
    )


def _state_reader() -> Callable[[], dict[str, Any]]:
    nvml = import_module("pynvml")  # the package nvidia-ml-py
    nvml.nvmlInit()
    # CUDA and NVML may number GPUs differently; the address on the bus is the same.
    handle = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(0).uuid}")

    def read() -> dict[str, Any]:
        return {
            "power_w": nvml.nvmlDeviceGetPowerUsage(handle) / 1000,
            "sm_clock_mhz": nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
            "memory_clock_mhz": nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM),
            "temperature_c": nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
            "throttle_reasons": hex(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)),
        }

    return read

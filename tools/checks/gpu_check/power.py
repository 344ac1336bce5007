"""Comparison of edgetl's NVML energy counter with sampled power; GPU clocks and throttling."""

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
"""Measuring time: the counter's steps of tens of milliseconds are less than 1% of ten seconds."""
SAMPLE_S = 0.02
AGREEMENT = 0.05
"""Allowed relative difference: NVML specifies 5% for sampled power."""
Sample = tuple[float, float]
"""Time on a monotonic clock in seconds, and power in watts."""


def check_power(settings: Settings, record: Record) -> None:
    """Run step `power`: compare counted and sampled energy under load."""
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

    def read_power() -> float:
        return 0.0 if read_state is None else float(read_state()["power_w"])

    joules, samples, calls = measure_energy(load, read_power, EnergyMeter(), seconds)
    record.measure(
        seconds=seconds, matrix_products=8 * calls, samples=len(samples), counted_j=joules
    )
    enough_samples = len(samples) >= seconds / SAMPLE_S / 4
    record.require("power was sampled throughout", enough_samples, len(samples))
    if read_state is None:
        return
    record.measure(after=read_state())
    sampled_j = integrate_energy_j(samples)
    counted_j = joules.get("nvml:0")
    record.measure(sampled_j=sampled_j, mean_w=sampled_j / seconds)
    text = "edgetl's energy meter reads the NVML counter"
    record.require(text, counted_j is not None, sorted(joules))
    if counted_j is not None:
        difference = abs(counted_j / sampled_j - 1)
        text = f"counted and sampled energy agree within {AGREEMENT:.0%}"
        record.require(text, difference <= AGREEMENT, f"{counted_j:.0f} J and {sampled_j:.0f} J")


def measure_energy(
    load: Callable[[], None], read_power: Callable[[], float], meter: Any, seconds: float
) -> tuple[dict[str, float], list[Sample], int]:
    """Repeat `load` for `seconds`; return joules by source, power samples, and number of calls."""
    samples: list[Sample] = []
    stop = threading.Event()

    def sample() -> None:
        while not stop.is_set():
            samples.append((time.monotonic(), read_power()))
            stop.wait(SAMPLE_S)

    load()
    thread = threading.Thread(target=sample, daemon=True)
    calls = 0
    meter.start()
    thread.start()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        load()
        calls += 1
    stop.set()
    joules: dict[str, float] = dict(meter.stop() or {})
    thread.join()
    return joules, samples, calls


def integrate_energy_j(samples: Sequence[Sample]) -> float:
    """Return the energy between the first and the last sample, J, by the trapezoidal rule."""
    return sum(
        (end_s - start_s) * (start_w + end_w) / 2
        for (start_s, start_w), (end_s, end_w) in pairwise(samples)
    )


def _state_reader() -> Callable[[], dict[str, Any]]:
    nvml = import_module("pynvml")  # the package nvidia-ml-py
    nvml.nvmlInit()
    # CUDA and NVML may number GPUs differently; the UUID is the same in both.
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

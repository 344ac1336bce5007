"""What is read before and after a timed block, beside the clock."""

from __future__ import annotations

from typing import Any

from edgetl.device.energy import EnergyMeter
from edgetl.device.memory import resident_memory_bytes
from edgetl.device.nvml import (
    GpuReader,
    first_cuda_device,
    open_nvml,
    read_gpu_facts,
    read_gpu_states,
)


class BlockWatch:
    """Energy and growth of memory of one block, over all its slices."""

    def __init__(self, meter: EnergyMeter) -> None:
        self._meter = meter
        self._held: int | None = None
        self._slices = 0
        self.memory_growth_bytes: int | None = None
        self.energy_j: dict[str, float] = {}

    def start(self) -> None:
        """A slice begins; growth counts from the first one."""
        if self._slices == 0:
            self._held = resident_memory_bytes()
        self._meter.start()

    def stop(self) -> None:
        """It has ended: its energy adds up."""
        used = self._meter.stop()
        # A counter that failed in one slice has not seen all images: it says nothing about the block.
        known = used if self._slices == 0 else self.energy_j.keys() & used.keys()
        self.energy_j = {source: self.energy_j.get(source, 0.0) + used[source] for source in known}
        self._slices += 1
        held = resident_memory_bytes()
        self.memory_growth_bytes = None if held is None or self._held is None else held - self._held


class GpuWatch:
    """State of the GPU that CUDA programs use, read right after slices, while its clocks are still those of the work."""

    def __init__(self, reader: GpuReader | None = None) -> None:
        """Find the GPU.

        Args:
            reader: reads the GPUs; None takes NVML.
        """
        self._reader = reader or open_nvml()
        gpus = read_gpu_facts(self._reader).get("gpus", [])
        self._index = first_cuda_device([gpu["uuid"] for gpu in gpus])
        self._readings: list[dict[str, Any]] = []

    def read(self) -> None:
        """Take one reading; do nothing without NVML."""
        states = read_gpu_states(self._reader)
        if self._index < len(states):
            self._readings.append(states[self._index])

    def summary(self) -> dict[str, Any]:
        """Return the readings so far in one object; empty without any.

        `sm_clocks_mhz` are in the order of the readings, `throttle_reasons` any reading's, and of
        temperature, power and memory the largest; `index` is NVML's.
        """
        if not self._readings:
            return {}
        peaks = ("temperature_c", "power_w", "memory_used_bytes")
        reasons = {
            reason for reading in self._readings for reason in reading["throttle_reasons"] or ()
        }
        return {
            "index": self._index,
            "sm_clocks_mhz": _known(self._readings, "sm_clock_mhz"),
            "memory_clocks_mhz": _known(self._readings, "memory_clock_mhz"),
            "max_sm_clock_mhz": self._readings[0]["max_sm_clock_mhz"],
            "throttle_reasons": sorted(reasons),
            **{name: max(_known(self._readings, name), default=None) for name in peaks},
        }


def _known(readings: list[dict[str, Any]], name: str) -> list[Any]:
    return [reading[name] for reading in readings if reading[name] is not None]

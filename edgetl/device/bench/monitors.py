"""Readings of energy, memory, processor time and the GPU around the timed slices of a block."""

from __future__ import annotations

import time
from collections.abc import Iterable

from edgetl.core.artifacts.bench_rows import GpuReading, largest
from edgetl.core.artifacts.device import GpuState
from edgetl.device.hardware.energy import EnergyMeter
from edgetl.device.hardware.memory import resident_memory_bytes
from edgetl.device.hardware.nvml import (
    GpuReader,
    first_cuda_device,
    open_nvml,
    read_gpu_info,
    read_gpu_states,
)


class BlockMonitor:
    """Energy, processor time and memory growth of one block, over all its slices."""

    def __init__(self, meter: EnergyMeter) -> None:
        self._meter = meter
        self._initial_memory_bytes: int | None = None
        self._slice_count = 0
        self._start_cpu_ns = 0
        self.cpu_ns = 0
        """Processor time of all threads of the process."""
        self.memory_growth_bytes: int | None = None
        """Growth of the resident memory since the first slice; None if it cannot be read."""
        self.energy_j: dict[str, float] = {}
        """Energy by source, J."""

    def start(self) -> None:
        """Start a slice; memory growth counts from the first one."""
        if self._slice_count == 0:
            self._initial_memory_bytes = resident_memory_bytes()
        self._meter.start()
        self._start_cpu_ns = time.process_time_ns()

    def stop(self) -> None:
        """End a slice and add its energy."""
        self.cpu_ns += time.process_time_ns() - self._start_cpu_ns
        slice_energy_j = self._meter.stop()
        # A counter that failed in one slice does not cover the block, so it is dropped.
        self.energy_j = {
            source: self.energy_j.get(source, 0.0) + energy_j
            for source, energy_j in slice_energy_j.items()
            if self._slice_count == 0 or source in self.energy_j
        }
        self._slice_count += 1
        memory_bytes = resident_memory_bytes()
        if memory_bytes is None or self._initial_memory_bytes is None:
            self.memory_growth_bytes = None
        else:
            self.memory_growth_bytes = memory_bytes - self._initial_memory_bytes


class GpuMonitor:
    """State of the GPU that CUDA programs use.

    It is read right after a slice, while the clocks are still those of the work.
    """

    def __init__(self, reader: GpuReader | None = None) -> None:
        """Find the GPU.

        Args:
            reader: reads the GPUs; None means NVML.
        """
        self._reader = reader or open_nvml()
        boards = read_gpu_info(self._reader).boards
        self._gpu_index = first_cuda_device([board.uuid for board in boards])
        self._states: list[GpuState] = []

    def read(self) -> None:
        """Read the state once, if NVML is available."""
        states = read_gpu_states(self._reader)
        if self._gpu_index < len(states):
            self._states.append(states[self._gpu_index])

    def summarize(self) -> GpuReading | None:
        """Return a summary of the states so far, None if there are none."""
        if not self._states:
            return None
        states = self._states
        reasons = {reason for state in states for reason in state.throttle_reasons or ()}
        return GpuReading(
            sm_clocks_mhz=_without_none(state.sm_clock_mhz for state in states),
            max_sm_clock_mhz=states[0].max_sm_clock_mhz,
            throttle_reasons=tuple(sorted(reasons)),
            temperature_c=largest(state.temperature_c for state in states),
            power_w=largest(state.power_w for state in states),
            memory_used_bytes=largest(state.memory_used_bytes for state in states),
            memory_clocks_mhz=_without_none(state.memory_clock_mhz for state in states),
            index=self._gpu_index,
        )


def _without_none(values: Iterable[int | None]) -> tuple[int, ...]:
    return tuple(value for value in values if value is not None)

"""NVIDIA's management library (NVML) through nvidia-ml-py: facts, state and energy of the GPUs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

from edgetl.core.artifacts.device import GpuState

CLOCK_EVENT_REASONS = {
    0x001: "gpu idle",
    0x002: "application clocks",
    0x004: "sw power cap",
    0x008: "hw slowdown",
    0x010: "sync boost",
    0x020: "sw thermal slowdown",
    0x040: "hw thermal slowdown",
    0x080: "hw power brake slowdown",
    0x100: "display clocks",
}
"""Bits of nvmlDeviceGetCurrentClocksEventReasons (NVML API Reference, nvmlClocksEventReasons)."""
_CLOCK_GRAPHICS, _CLOCK_SM, _CLOCK_MEM = 0, 1, 2
"""nvmlClockType_t."""
_TEMPERATURE_GPU = 0
"""nvmlTemperatureSensors_t: the sensor on the GPU's die."""


@dataclass(frozen=True)
class GpuBoard:
    """Facts about one GPU."""

    name: str | None
    uuid: str | None
    memory_bytes: int | None
    compute_capability: str | None


@dataclass(frozen=True)
class GpuInfo:
    """Versions of the driver, and all GPUs in NVML's order."""

    driver: str | None = None
    cuda: str | None = None
    """Highest version of CUDA that the driver supports."""
    boards: tuple[GpuBoard, ...] = ()


class GpuEnergyReader(Protocol):
    """Reader of the GPUs' energy counters."""

    def count_gpus(self) -> int:
        """Return the number of GPUs."""
        ...

    def energy_mj(self, index: int) -> int | None:
        """Return millijoules since the driver was loaded; None if this GPU does not count them."""
        ...


class GpuReader(Protocol):
    """Reader of the GPUs' facts and states."""

    def read_info(self) -> GpuInfo:
        """Return the facts that stay the same while the driver is loaded."""
        ...

    def read_states(self) -> list[GpuState]:
        """Return one reading per GPU, in NVML's order."""
        ...


class Nvml:
    """GPUs visible to this process. Values that a GPU or its driver does not provide are None.

    Source: NVML API Reference; nvidia-ml-py is NVIDIA's own Python binding of it.
    """

    def __init__(self, library: Any = None) -> None:
        """Initialize the library.

        Args:
            library: the module `pynvml`, or an object with its functions; None imports it.

        Raises:
            OSError: nvidia-ml-py is not installed, or there is no driver.
        """
        self._library = library or _import_pynvml()
        try:
            self._library.nvmlInit()
        except self._library.NVMLError as cause:
            raise OSError(f"nvmlInit failed: {cause}") from cause
        self._handles: dict[int, Any] = {}

    def count_gpus(self) -> int:
        """Return the number of GPUs.

        Raises:
            OSError: the driver failed.
        """
        try:
            return int(self._library.nvmlDeviceGetCount())
        except self._library.NVMLError as cause:
            raise OSError(f"nvmlDeviceGetCount failed: {cause}") from cause

    def energy_mj(self, index: int) -> int | None:
        """Return millijoules since the driver was loaded; Volta and newer count them."""
        energy: int | None = self._read(index, "nvmlDeviceGetTotalEnergyConsumption")
        return energy

    def read_info(self) -> GpuInfo:
        """Return names, UUIDs, memory and compute capability by GPU, and the driver's versions."""
        version = self._query("nvmlSystemGetCudaDriverVersion")
        return GpuInfo(
            driver=self._query("nvmlSystemGetDriverVersion"),
            # 13020 is CUDA 13.2.
            cuda=None if version is None else f"{version // 1000}.{version % 1000 // 10}",
            boards=tuple(self._read_board(index) for index in range(self.count_gpus())),
        )

    def _read_board(self, index: int) -> GpuBoard:
        memory = self._read(index, "nvmlDeviceGetMemoryInfo")
        capability = self._read(index, "nvmlDeviceGetCudaComputeCapability")
        return GpuBoard(
            name=self._read(index, "nvmlDeviceGetName"),
            uuid=self._read(index, "nvmlDeviceGetUUID"),
            memory_bytes=None if memory is None else memory.total,
            compute_capability=None if capability is None else ".".join(map(str, capability)),
        )

    def read_states(self) -> list[GpuState]:
        """Return the clocks, throttling, heat, power, memory, load and processes of each GPU."""
        return [self._read_gpu_state(index) for index in range(self.count_gpus())]

    def _read_gpu_state(self, index: int) -> GpuState:
        memory = self._read(index, "nvmlDeviceGetMemoryInfo")
        load = self._read(index, "nvmlDeviceGetUtilizationRates")
        level = self._read(index, "nvmlDeviceGetPerformanceState")
        mig = self._read(index, "nvmlDeviceGetMigMode")
        persistence = self._read(index, "nvmlDeviceGetPersistenceMode")
        processes = self._read(index, "nvmlDeviceGetComputeRunningProcesses")
        return GpuState(
            graphics_clock_mhz=self._read(index, "nvmlDeviceGetClockInfo", _CLOCK_GRAPHICS),
            sm_clock_mhz=self._read(index, "nvmlDeviceGetClockInfo", _CLOCK_SM),
            memory_clock_mhz=self._read(index, "nvmlDeviceGetClockInfo", _CLOCK_MEM),
            max_graphics_clock_mhz=self._read(index, "nvmlDeviceGetMaxClockInfo", _CLOCK_GRAPHICS),
            max_sm_clock_mhz=self._read(index, "nvmlDeviceGetMaxClockInfo", _CLOCK_SM),
            max_memory_clock_mhz=self._read(index, "nvmlDeviceGetMaxClockInfo", _CLOCK_MEM),
            throttle_reasons=self._throttle_reasons(index),
            temperature_c=self._read(index, "nvmlDeviceGetTemperature", _TEMPERATURE_GPU),
            power_w=_from_milli(self._read(index, "nvmlDeviceGetPowerUsage")),
            power_limit_w=_from_milli(self._read(index, "nvmlDeviceGetEnforcedPowerLimit")),
            memory_used_bytes=None if memory is None else memory.used,
            memory_total_bytes=None if memory is None else memory.total,
            utilization_percent=None if load is None else load.gpu,
            performance_state=None if level is None else f"P{level}",
            persistence_mode=None if persistence is None else bool(persistence),
            mig_mode=None if mig is None else bool(mig[0]),
            compute_processes=(
                None if processes is None else tuple(process.pid for process in processes)
            ),
        )

    def _throttle_reasons(self, index: int) -> tuple[str, ...] | None:
        mask = self._read(index, "nvmlDeviceGetCurrentClocksEventReasons")
        if mask is None:
            # Drivers before 535 have only the old name.
            mask = self._read(index, "nvmlDeviceGetCurrentClocksThrottleReasons")
        return None if mask is None else clock_event_reason_names(mask)

    def _read(self, index: int, function: str, *arguments: int) -> Any:
        if index not in self._handles:
            handle = self._query("nvmlDeviceGetHandleByIndex", index)
            if handle is None:
                return None
            self._handles[index] = handle
        return self._query(function, self._handles[index], *arguments)

    def _query(self, function: str, *arguments: Any) -> Any:
        try:
            return getattr(self._library, function)(*arguments)
        except (AttributeError, self._library.NVMLError):
            return None


@cache
def open_nvml() -> Nvml | None:
    """Return the library, initialized once per process; None if there is none."""
    try:
        return Nvml()
    except Exception:  # A broken driver must not end a measurement that works without it.
        return None


def read_gpu_states(reader: GpuReader | None) -> list[GpuState]:
    """Return one reading per GPU; empty without a reader, or if it fails."""
    try:
        return [] if reader is None else reader.read_states()
    except Exception:  # See `open_nvml`.
        return []


def read_gpu_info(reader: GpuReader | None) -> GpuInfo:
    """Return the driver's versions and each GPU's facts; empty without a reader, or if it fails."""
    try:
        return GpuInfo() if reader is None else reader.read_info()
    except Exception:  # See `open_nvml`.
        return GpuInfo()


def first_cuda_device(
    uuids: Sequence[str | None], environment: Mapping[str, str] = os.environ
) -> int:
    """Return NVML's index of CUDA's device 0, following CUDA_VISIBLE_DEVICES.

    NVML counts in PCI order. CUDA does so only with CUDA_DEVICE_ORDER=PCI_BUS_ID, and puts the
    fastest GPU first otherwise: with different GPUs in one machine the index may then be wrong
    (CUDA C++ Programming Guide, "CUDA Environment Variables").

    Args:
        uuids: the GPUs' UUIDs in NVML's order.
        environment: the process's environment variables.
    """
    device = environment.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip()
    if device.isdecimal() and int(device) < len(uuids):
        return int(device)
    if device.startswith("GPU-"):
        matches = (index for index, uuid in enumerate(uuids) if (uuid or "").startswith(device))
        return next(matches, 0)
    return 0


def clock_event_reason_names(mask: int) -> tuple[str, ...]:
    """Return the names of the set bits of a mask of clock event reasons."""
    return tuple(name for bit, name in CLOCK_EVENT_REASONS.items() if mask & bit)


def _import_pynvml() -> Any:
    try:
        import pynvml
    except ImportError as cause:
        raise OSError("nvidia-ml-py is not installed") from cause
    return pynvml


def _from_milli(value: int | None) -> float | None:
    return None if value is None else value / 1000

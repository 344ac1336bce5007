"""Fake of the parts of the module `pynvml` that edgetl uses."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from edgetl.core.artifacts.bench_rows import GpuReading


class NVMLError(Exception):
    """Exception that nvidia-ml-py raises for every code except NVML_SUCCESS."""


class FakePynvml:
    """Two GPUs: a busy H100, and an older card that supports little more than its name."""

    NVMLError = NVMLError

    def __init__(self) -> None:
        self.initialized = 0
        self.energies_mj: list[int | None] = [2**40, None]
        self.sm_clock_mhz = 1755
        self.reasons = 0x004
        self.processes: list[int] = []

    def nvmlInit(self) -> None:  # noqa: N802
        self.initialized += 1

    def nvmlSystemGetDriverVersion(self) -> str:  # noqa: N802
        return "580.65.06"

    def nvmlSystemGetCudaDriverVersion(self) -> int:  # noqa: N802
        return 13020

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return 0x1000 + index

    def nvmlDeviceGetName(self, handle: int) -> str:  # noqa: N802
        return ["NVIDIA H100 80GB HBM3", "NVIDIA K20"][handle - 0x1000]

    def nvmlDeviceGetUUID(self, handle: int) -> str:  # noqa: N802
        return f"GPU-{handle:x}-aaaa"

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:  # noqa: N802
        energy = self.energies_mj[handle - 0x1000]
        if energy is None:
            raise NVMLError("Not Supported")
        return energy

    def nvmlDeviceGetCudaComputeCapability(self, handle: int) -> tuple[int, int]:  # noqa: N802
        self._refuse_old(handle)
        return 9, 0

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:  # noqa: N802
        self._refuse_old(handle)
        return SimpleNamespace(total=80 * 2**30, used=2 * 2**30)

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Any:  # noqa: N802
        self._refuse_old(handle)
        return SimpleNamespace(gpu=97, memory=40)

    def nvmlDeviceGetClockInfo(self, handle: int, kind: int) -> int:  # noqa: N802
        self._refuse_old(handle)
        return [1740, self.sm_clock_mhz, 2619][kind]

    def nvmlDeviceGetMaxClockInfo(self, handle: int, kind: int) -> int:  # noqa: N802
        self._refuse_old(handle)
        return [1980, 1980, 2619][kind]

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: int) -> int:  # noqa: N802
        self._refuse_old(handle)
        return self.reasons

    def nvmlDeviceGetTemperature(self, handle: int, sensor: int) -> int:  # noqa: N802
        self._refuse_old(handle)
        return [54][sensor]

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:  # noqa: N802
        self._refuse_old(handle)
        return 412_500

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: int) -> int:  # noqa: N802
        self._refuse_old(handle)
        return 700_000

    def nvmlDeviceGetPerformanceState(self, handle: int) -> int:  # noqa: N802
        self._refuse_old(handle)
        return 0

    def nvmlDeviceGetPersistenceMode(self, handle: int) -> int:  # noqa: N802
        self._refuse_old(handle)
        return 1

    def nvmlDeviceGetMigMode(self, handle: int) -> list[int]:  # noqa: N802
        self._refuse_old(handle)
        return [0, 0]

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> list[Any]:  # noqa: N802
        self._refuse_old(handle)
        return [SimpleNamespace(pid=pid) for pid in self.processes]

    @staticmethod
    def _refuse_old(handle: int) -> None:
        if handle != 0x1000:
            raise NVMLError("Not Supported")


def gpu_reading(**changes: Any) -> GpuReading:
    """Return a GPU reading of one round with `changes`."""
    reading = GpuReading(
        sm_clocks_mhz=(1980,),
        max_sm_clock_mhz=1980,
        throttle_reasons=(),
        temperature_c=50,
        power_w=300.0,
        memory_used_bytes=2**30,
        memory_clocks_mhz=(2619,),
    )
    return replace(reading, **changes)

"""NVIDIA's management library by ctypes: the energy counters of GPUs, without a Python package."""

from __future__ import annotations

import ctypes
from typing import Protocol

_LIBRARY = "libnvidia-ml.so.1"


class EnergyCounters(Protocol):
    """GPUs that count the energy they take."""

    def count(self) -> int:
        """How many GPUs there are."""
        ...

    def energy_mj(self, index: int) -> int | None:
        """Millijoules since the driver was loaded; None where this GPU does not count them."""
        ...


class Nvml:
    """The library as the driver brings it.

    Source: NVML API Reference, nvmlDeviceGetTotalEnergyConsumption (Volta and newer).

    Raises:
        OSError: no such library, or no driver behind it.
    """

    def __init__(self) -> None:
        self._library = ctypes.CDLL(_LIBRARY)
        self._handles: dict[int, ctypes.c_void_p] = {}
        self._call("nvmlInit_v2")

    def count(self) -> int:
        """How many GPUs the driver shows to this process."""
        number = ctypes.c_uint()
        self._call("nvmlDeviceGetCount_v2", ctypes.byref(number))
        return number.value

    def energy_mj(self, index: int) -> int | None:
        """Millijoules since the driver was loaded; None where this GPU does not count them."""
        counted = ctypes.c_ulonglong()
        try:
            if index not in self._handles:
                handle = ctypes.c_void_p()
                self._call("nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(index), ctypes.byref(handle))
                self._handles[index] = handle
            self._call("nvmlDeviceGetTotalEnergyConsumption", self._handles[index], ctypes.byref(counted))
        except OSError:
            return None
        return counted.value

    def _call(self, name: str, *arguments: object) -> None:
        try:
            code = getattr(self._library, name)(*arguments)
        except AttributeError as cause:
            raise OSError(f"{_LIBRARY} has no {name}") from cause
        if code != 0:
            raise OSError(f"{name} answered {code}")

"""Measure energy between two points in time with the device's own counters.

All values are gross: they cover whatever part of the device the source measures, including other
programs and the idle draw.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Protocol

from edgetl.device.hardware.nvml import GpuEnergyReader, open_nvml
from edgetl.device.hardware.procfs import SYS, read_int, read_text

RAIL_POLL_INTERVAL_S = 0.1
"""Interval between two samples of a rail's power."""
RAPL_POLL_INTERVAL_S = 20.0
"""Interval between two readings of RAPL's counters.

The smallest of them, 65 kJ wide, wraps around after a minute at 1 kW.
"""
MIN_GPU_WINDOW_S = 2.0
"""Minimum time between two readings of a GPU's counter.

Recent GPUs update it every 20 to 100 ms (PETSc, PetscLogGpuEnergyMeter), so each end of the window
may be 0.1 s late: 5% of 2 s. Windows shorter than the update period read 0 (Zeus, release 0.6.1).
"""
MODULE_RAILS = ("VDD_IN", "POM_5V_IN")
"""Device tree labels of the supply of a complete Jetson module.

AGX Orin has neither: it measures only parts of the module.
"""

Clock = Callable[[], float]


class EnergySource(Protocol):
    """Source of energy readings."""

    name: str
    poll_interval_s: float | None
    """Polling interval between start and stop; None if polling is not needed."""

    def start(self, now: float) -> None:
        """Reset to 0 J."""
        ...

    def poll(self, now: float) -> None:
        """Take a reading."""
        ...

    def joules(self) -> float | None:
        """Return the energy from the start to the last reading; None if that reading failed."""
        ...


class EnergyMeter:
    """Joules from `start` to `stop`, by source. Neither raises; a source that fails is left out.

    - `rapl:package-0`: Intel's and AMD's processor packages, counted by the hardware
      (Documentation/power/powercap/powercap.rst). Since 2020 only root may read the counters;
      unreadable ones are listed in `denied_source_names`.
    - `nvml:0`: NVIDIA GPUs, the complete board, counted by the driver (NVML API Reference,
      nvmlDeviceGetTotalEnergyConsumption); left out if less than `MIN_GPU_WINDOW_S` passed from
      start to stop.
    - `ina3221:VDD_IN (sampled)`: a Jetson module's supply (Documentation/hwmon/ina3221.rst). The
      sensor reports power, which a thread reads every 100 ms and integrates by the trapezoidal
      rule.
    """

    def __init__(
        self, sys: Path = SYS, nvml: GpuEnergyReader | None = None, clock: Clock = time.monotonic
    ) -> None:
        """Find the energy sources.

        Args:
            sys: mount point of sysfs.
            nvml: the GPUs' counters; None uses NVIDIA's library if there is one.
            clock: returns the time in seconds.
        """
        self._clock = clock
        rapl, self.denied_source_names = _find_rapl_counters(sys)
        self._sources: list[EnergySource] = [
            *rapl,
            *_find_gpu_counters(nvml),
            *_find_power_rails(sys),
        ]
        self._stop_event: threading.Event | None = None
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    @property
    def source_names(self) -> tuple[str, ...]:
        """Names of the sources found on this device."""
        return tuple(source.name for source in self._sources)

    def start(self) -> None:
        """Start measuring, or restart."""
        self._stop_thread()
        for source in self._sources:
            _try_call(source.start, self._clock())
        periods = [
            source.poll_interval_s for source in self._sources if source.poll_interval_s is not None
        ]
        self._stop_event = threading.Event()
        if periods:
            self._thread = threading.Thread(
                target=self._poll_until_stopped,
                args=(self._stop_event, min(periods)),
                name="energy",
                daemon=True,
            )
            try:
                self._thread.start()
            except RuntimeError:
                # No thread is available. The readings at both ends remain.
                self._thread = None

    def stop(self) -> dict[str, float]:
        """Return joules by source since `start`; empty if not started or no source has a value."""
        if self._stop_event is None:
            return {}
        self._stop_thread()
        self._stop_event = None
        self._poll_sources()
        readings = ((source.name, _try_call(source.joules)) for source in self._sources)
        return {name: joules for name, joules in readings if joules is not None}

    def _poll_until_stopped(self, stop_event: threading.Event, interval_s: float) -> None:
        while not stop_event.wait(interval_s):
            self._poll_sources()

    def _poll_sources(self) -> None:
        with self._lock:
            for source in self._sources:
                _try_call(source.poll, self._clock())

    def _stop_thread(self) -> None:
        if self._stop_event is not None:
            self._stop_event.set()
        if self._thread is not None:
            self._thread.join(timeout=5)
            self._thread = None


class EnergyCounter:
    """Energy counter that only grows, and wraps around to 0 at `modulus`."""

    def __init__(
        self,
        name: str,
        read: Callable[[], int | None],
        counts_per_joule: float,
        modulus: int | None = None,
        min_window_s: float = 0.0,
    ) -> None:
        """Initialize the counter.

        Args:
            name: the source's name.
            read: returns the counter's value; None if reading fails.
            counts_per_joule: counts in a joule.
            modulus: one more than the largest value; None if the counter never wraps around.
            min_window_s: shorter windows have no value, because the counter is updated too rarely.
        """
        self.name = name
        self._min_window_s = min_window_s
        self._start_s = self._last_poll_s = 0.0
        self.poll_interval_s = RAPL_POLL_INTERVAL_S if modulus else None
        self._read = read
        self._counts_per_joule = counts_per_joule
        self._modulus = modulus
        self._last_value: int | None = None
        self._total_counts = 0
        self._is_valid = False

    def start(self, now: float) -> None:
        """Reset to 0 J."""
        self._total_counts = 0
        self._last_value = None
        self._is_valid = False
        self._start_s = self._last_poll_s = now
        self._last_value = self._read()
        self._is_valid = self._last_value is not None

    def poll(self, now: float) -> None:
        """Add the counts since the last reading."""
        self._last_poll_s = now
        self._is_valid = False
        value = self._read()
        if value is None:
            return
        delta = None
        if self._last_value is not None:
            delta = counter_delta(self._last_value, value, self._modulus)
        if delta is None:
            # The counter was reset, or could not be read at the start: its counts are lost.
            self._last_value = None
            return
        self._total_counts += delta
        self._last_value = value
        self._is_valid = True

    def joules(self) -> float | None:
        """Return the energy from the start to the last reading; None if the window is too short."""
        if not self._is_valid or self._last_poll_s - self._start_s < self._min_window_s:
            return None
        return self._total_counts / self._counts_per_joule


class PowerRail:
    """Power supply whose voltage and current are sampled."""

    poll_interval_s: float | None = RAIL_POLL_INTERVAL_S

    def __init__(self, name: str, folder: Path, channel: int) -> None:
        self.name = f"{name} (sampled)"
        self._voltage_file = folder / f"in{channel}_input"
        self._current_file = folder / f"curr{channel}_input"
        self._last_sample: tuple[float, float] | None = None
        self._total_joules = 0.0
        self._is_valid = False

    def watts(self) -> float | None:
        """Return the present power; None if it cannot be read. hwmon reports mV and mA."""
        millivolts = read_int(self._voltage_file)
        milliamperes = read_int(self._current_file)
        if millivolts is None or milliamperes is None:
            return None
        return millivolts * milliamperes / 1e6

    def start(self, now: float) -> None:
        """Reset to 0 J."""
        self._total_joules = 0.0
        self._last_sample = None
        self._is_valid = False
        self.poll(now)

    def poll(self, now: float) -> None:
        """Add the trapezoid since the last sample."""
        self._is_valid = False
        watts = self.watts()
        if watts is None:
            return
        if self._last_sample is not None:
            last_s, last_watts = self._last_sample
            self._total_joules += (now - last_s) * (last_watts + watts) / 2
            self._is_valid = True
        self._last_sample = now, watts

    def joules(self) -> float | None:
        """Return the energy from the start to the last sample; None if that sample failed."""
        return self._total_joules if self._is_valid else None


def counter_delta(before: int, after: int, modulus: int | None) -> int | None:
    """Return the counts between two readings, with at most one wraparound; None after a reset."""
    if after >= before:
        return after - before
    if modulus is None or before > modulus:
        return None
    return modulus - before + after


def _find_rapl_counters(sys: Path) -> tuple[list[EnergyCounter], tuple[str, ...]]:
    """Return the counters of package domains, and the names of those without read permission.

    Sub-domains (cores, memory) are parts of a package, or exist on few processors.
    """
    counters = []
    denied_names = []
    for folder in sorted((sys / "class/powercap").glob("intel-rapl:*")):
        label = read_text(folder / "name")
        file = folder / "energy_uj"
        if folder.name.count(":") != 1 or label is None or not label.startswith("package"):
            continue
        name = f"rapl:{label}"
        try:
            file.read_bytes()
        except PermissionError:
            denied_names.append(name)
        except OSError:
            continue
        else:
            modulus = read_int(folder / "max_energy_range_uj")
            if read_int(file) is not None:
                counters.append(EnergyCounter(name, partial(read_int, file), 1e6, modulus))
    return counters, tuple(denied_names)


def _find_gpu_counters(nvml: GpuEnergyReader | None) -> list[EnergyCounter]:
    try:
        library = nvml or open_nvml()
        if library is None:
            return []
        indices = [
            index for index in range(library.count_gpus()) if library.energy_mj(index) is not None
        ]
    except Exception:  # A broken driver must not prevent a measurement without it.
        return []
    return [
        EnergyCounter(
            f"nvml:{index}", partial(library.energy_mj, index), 1e3, min_window_s=MIN_GPU_WINDOW_S
        )
        for index in indices
    ]


def _find_power_rails(sys: Path) -> list[PowerRail]:
    chips = [
        folder
        for folder in sorted((sys / "class/hwmon").glob("hwmon*"))
        if read_text(folder / "name") == "ina3221"
    ]
    channels = [
        (read_text(folder / f"in{channel}_label"), folder, channel)
        for folder in chips
        for channel in (1, 2, 3)
    ]
    rails = [
        PowerRail(f"ina3221:{label}", folder, channel)
        for label, folder, channel in channels
        if label in MODULE_RAILS
    ]
    return [rail for rail in rails if rail.watts() is not None]


def _try_call(call: Callable[..., float | None], *arguments: float) -> float | None:
    """Return the result of a call, or None if it raises: a failing source must not end the run."""
    try:
        return call(*arguments)
    except Exception:
        return None

"""Energy taken between two moments, by the counters that the device has.

All of it is gross: the part that the source measures, everything that ran on it, and what it takes when idle.
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
"""Between two samples of power."""
RAPL_POLL_INTERVAL_S = 20.0
"""Between two looks at RAPL's counters: the smallest of them, 65 kJ wide, starts again after a minute at 1 kW."""
MIN_GPU_WINDOW_S = 2.0
"""Least time between two readings of a GPU's counter. Recent GPUs bring it up to date every 20 to 100 ms (PETSc, PetscLogGpuEnergyMeter),
so that each end of the window may be 0.1 s late: 5% of 2 s. Windows shorter than its period read 0 (Zeus, release 0.6.1)."""
MODULE_RAILS = ("VDD_IN", "POM_5V_IN")
"""The supply of a whole Jetson module, as its device tree labels it. AGX Orin measures only parts of itself and has neither."""

Clock = Callable[[], float]


class EnergySource(Protocol):
    """One thing that tells energy."""

    name: str
    poll_interval_s: float | None
    """How often it has to be looked at between start and stop; None: not at all."""

    def start(self, now: float) -> None:
        """Begin at 0 J."""
        ...

    def poll(self, now: float) -> None:
        """Take a reading."""
        ...

    def joules(self) -> float | None:
        """From the start to the last reading, if that one was good; None where it cannot be told."""
        ...


class EnergyMeter:
    """Joules from `start` to `stop`, by source; neither ever raises, and a source that fails meanwhile is left out.

    - `rapl:package-0`: Intel's and AMD's processor packages, counted by the hardware (Documentation/power/powercap/powercap.rst).
      Since 2020 only root may read the counters: those that exist but are refused stand in `denied`.
    - `nvml:0`: NVIDIA GPUs, the whole board, counted by the driver (NVML API Reference, nvmlDeviceGetTotalEnergyConsumption);
      left out where less than `GPU_WINDOW_SECONDS` passed from start to stop.
    - `ina3221:VDD_IN (sampled)`: a Jetson module's supply (Documentation/hwmon/ina3221.rst). The sensor tells power; it is
      read every 100 ms in a thread and integrated by the trapezoidal rule.
    """

    def __init__(
        self, sys: Path = SYS, nvml: GpuEnergyReader | None = None, clock: Clock = time.monotonic
    ) -> None:
        """Look for sources.

        Args:
            sys: where sysfs is.
            nvml: the GPUs' counters; None takes NVIDIA's library where there is one.
            clock: seconds.
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
        """What can be measured here."""
        return tuple(source.name for source in self._sources)

    def start(self) -> None:
        """Begin, or begin anew."""
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
            except RuntimeError:  # no more threads: the readings at both ends remain
                self._thread = None

    def stop(self) -> dict[str, float]:
        """Joules by source since `start`; empty where nothing was started or nothing can be told."""
        if self._stop_event is None:
            return {}
        self._stop_thread()
        self._stop_event = None
        self._poll_sources()
        found = ((source.name, _try_call(source.joules)) for source in self._sources)
        return {name: joules for name, joules in found if joules is not None}

    def _poll_until_stopped(self, stopping: threading.Event, seconds: float) -> None:
        while not stopping.wait(seconds):
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
    """A counter of energy that only grows, and starts again from 0 where it is `width` wide."""

    def __init__(
        self,
        name: str,
        read: Callable[[], int | None],
        per_joule: float,
        width: int | None = None,
        least_s: float = 0.0,
    ) -> None:
        """Args:
        name: of the source.
        read: returns the counter's value; None where it fails.
        per_joule: counts in a joule.
        width: one more than the largest value; None: it never starts again.
        least_s: a window shorter than this has no figure, because the counter is brought up to date too rarely.
        """
        self.name = name
        self._min_window_s = least_s
        self._start_s = self._last_poll_s = 0.0
        self.poll_interval_s = RAPL_POLL_INTERVAL_S if width else None
        self._read, self._counts_per_joule, self._modulus = read, per_joule, width
        self._last_value: int | None = None
        self._total_counts = 0
        self._is_valid = False

    def start(self, now: float) -> None:
        """Begin at 0 J."""
        self._total_counts, self._last_value, self._is_valid = 0, None, False
        self._start_s = self._last_poll_s = now
        self._last_value = self._read()
        self._is_valid = self._last_value is not None

    def poll(self, now: float) -> None:
        """Add what was counted since the reading before."""
        self._last_poll_s = now
        self._is_valid = False
        value = self._read()
        step = (
            None
            if value is None or self._last_value is None
            else counter_delta(self._last_value, value, self._modulus)
        )
        if value is not None and step is None:  # set back by a reset: what was before is lost
            self._last_value = None
        elif value is not None and step is not None:
            self._total_counts, self._last_value, self._is_valid = (
                self._total_counts + step,
                value,
                True,
            )

    def joules(self) -> float | None:
        """From the start to the last reading; None where that was too short a time for this counter."""
        if not self._is_valid or self._last_poll_s - self._start_s < self._min_window_s:
            return None
        return self._total_counts / self._counts_per_joule


class PowerRail:
    """A supply of which volts and amperes are told, sampled."""

    poll_interval_s: float | None = RAIL_POLL_INTERVAL_S

    def __init__(self, name: str, folder: Path, channel: int) -> None:
        self.name = f"{name} (sampled)"
        self._voltage_file, self._current_file = (
            folder / f"in{channel}_input",
            folder / f"curr{channel}_input",
        )
        self._last_sample: tuple[float, float] | None = None
        self._total_joules = 0.0
        self._is_valid = False

    def watts(self) -> float | None:
        """The power right now; hwmon tells mV and mA."""
        millivolts, milliamperes = read_int(self._voltage_file), read_int(self._current_file)
        return (
            None if millivolts is None or milliamperes is None else millivolts * milliamperes / 1e6
        )

    def start(self, now: float) -> None:
        """Begin at 0 J."""
        self._total_joules, self._last_sample, self._is_valid = 0.0, None, False
        self.poll(now)

    def poll(self, now: float) -> None:
        """Add the trapezoid since the sample before."""
        self._is_valid = False
        watts = self.watts()
        if watts is None:
            return
        if self._last_sample is not None:
            before, power = self._last_sample
            self._total_joules += (now - before) * (power + watts) / 2
            self._is_valid = True
        self._last_sample = now, watts

    def joules(self) -> float | None:
        """From the start to the last sample."""
        return self._total_joules if self._is_valid else None


def counter_delta(before: int, after: int, width: int | None) -> int | None:
    """What a counter went on by; one that is `width` wide may have started again once. None: it was set back."""
    if after >= before:
        return after - before
    return None if width is None or before > width else width - before + after


def _find_rapl_counters(sys: Path) -> tuple[list[EnergyCounter], tuple[str, ...]]:
    """Package domains and the names of those refused; sub-domains (cores, memory) are parts of them, or shown by few."""
    found, denied = [], []
    for folder in sorted((sys / "class/powercap").glob("intel-rapl:*")):
        label, file = read_text(folder / "name"), folder / "energy_uj"
        if folder.name.count(":") != 1 or label is None or not label.startswith("package"):
            continue
        name = f"rapl:{label}"
        try:
            file.read_bytes()
        except PermissionError:
            denied.append(name)
        except OSError:
            continue
        else:
            width = read_int(folder / "max_energy_range_uj")
            if read_int(file) is not None:
                found.append(EnergyCounter(name, partial(read_int, file), 1e6, width))
    return found, tuple(denied)


def _find_gpu_counters(nvml: GpuEnergyReader | None) -> list[EnergyCounter]:
    try:
        library = nvml or open_nvml()
        if library is None:
            return []
        counting = [
            index for index in range(library.count_gpus()) if library.energy_mj(index) is not None
        ]
    except Exception:  # whatever a driver does: a device without it is measured too
        return []
    return [
        EnergyCounter(
            f"nvml:{index}", partial(library.energy_mj, index), 1e3, least_s=MIN_GPU_WINDOW_S
        )
        for index in counting
    ]


def _find_power_rails(sys: Path) -> list[PowerRail]:
    chips = [
        folder
        for folder in sorted((sys / "class/hwmon").glob("hwmon*"))
        if read_text(folder / "name") == "ina3221"
    ]
    places = [
        (read_text(folder / f"in{channel}_label"), folder, channel)
        for folder in chips
        for channel in (1, 2, 3)
    ]
    rails = [
        PowerRail(f"ina3221:{label}", folder, channel)
        for label, folder, channel in places
        if label in MODULE_RAILS
    ]
    return [rail for rail in rails if rail.watts() is not None]


def _try_call(call: Callable[..., float | None], *arguments: float) -> float | None:
    """A source that fails must not cost the run that it watches."""
    try:
        return call(*arguments)
    except Exception:
        return None

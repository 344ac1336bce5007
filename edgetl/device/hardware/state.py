"""What changes on a device: counters since boot, load, clocks, heat, power. Two readings tell what happened between them."""

from __future__ import annotations

import os
import re
import subprocess
import time
from pathlib import Path
from typing import Any

from edgetl.device.hardware.cpu import cpu_cgroup_folders
from edgetl.device.hardware.info import frequency_limits_khz, read_cpufreq
from edgetl.device.hardware.nvml import GpuReader, open_nvml, read_gpu_states
from edgetl.device.hardware.power import battery_percent, power_mode, power_source
from edgetl.device.hardware.procfs import (
    PROC,
    SYS,
    read_int,
    read_lines,
    read_named_ints,
    read_size_bytes,
    read_text,
    to_float,
    to_int,
)

CPU_SENSOR_CHIPS = ("coretemp", "k10temp")
"""hwmon chips of processors that often have no thermal zone (Documentation/hwmon)."""
_VCGENCMD_TIMEOUT_S = 2.0
_MIN_TEMPERATURE_C = -60.0


def read_device_state(
    proc: Path = PROC, sys: Path = SYS, gpus: GpuReader | None = None
) -> dict[str, Any]:
    """One reading; None for whatever the device does not tell. Counters count from boot.

    Args:
        proc: where procfs is.
        sys: where sysfs is.
        gpus: reads the GPUs; None takes NVML on this machine, and nothing for another's files.
    """
    readings = read_gpu_states(open_nvml() if gpus is None and proc == PROC else gpus)
    clocks = read_cpufreq(sys, "scaling_cur_freq")
    temperatures = _temperatures(sys)
    governors = (
        read_text(path)
        for path in (sys / "devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_governor")
    )
    return {
        "monotonic_s": time.monotonic(),
        "load": _load_average(proc),
        "cpu_seconds": _cpu_seconds(proc),
        "pressure_us": {
            name: _pressure_us(proc / "pressure" / name) for name in ("cpu", "memory", "io")
        },
        "swap_used_bytes": _swap_used_bytes(proc),
        "throttling": _cgroup_throttling(proc, sys),
        "thermal_throttles": _thermal_throttles(sys),
        "firmware_throttled": _firmware_throttle_flags(proc, sys),
        "over_current_events": _over_current_events(sys),
        "temperatures_c": temperatures,
        "temperature_c": max(temperatures.values()) if temperatures else None,
        "frequency_khz": max(clocks.values(), default=None),
        "frequencies_khz": clocks or None,
        "frequency_limits_khz": frequency_limits_khz(sys, "scaling"),
        "governors": sorted({governor for governor in governors if governor}) or None,
        "turbo": _is_turbo_enabled(sys),
        "power_mode": power_mode(proc.parent),
        "power_source": power_source(sys),
        "battery_percent": battery_percent(sys),
        "gpus": {str(index): reading for index, reading in enumerate(readings)} or None,
    }


def _load_average(proc: Path) -> list[float] | None:
    values = [to_float(field) for field in (read_text(proc / "loadavg") or "").split()[:3]]
    known = [value for value in values if value is not None]
    return known if len(known) == 3 else None


def _cpu_seconds(proc: Path) -> dict[str, float] | None:
    """Seconds of all cores since boot; guest time is part of user (proc_stat(5))."""
    fields = next(iter(read_lines(proc / "stat")), "").split()
    ticks = [to_int(field) for field in fields[1:9]]
    known = [value for value in ticks if value is not None and value >= 0]
    if fields[:1] != ["cpu"] or len(known) < len(ticks) or len(known) < 4:
        return None
    rate = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
    names = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
    seconds = {name: value / rate for name, value in zip(names, known, strict=False)}
    busy = sum(seconds.get(name, 0.0) for name in ("user", "nice", "system", "irq", "softirq"))
    return {"busy": busy, "total": sum(seconds.values()), "steal": seconds.get("steal", 0.0)}


def _pressure_us(path: Path) -> int | None:
    """Microseconds in which some task was held up (Documentation/accounting/psi.rst)."""
    some = next((line for line in read_lines(path) if line.startswith("some")), "")
    return to_int(some.partition("total=")[2])


def _swap_used_bytes(proc: Path) -> int | None:
    total, free = (read_size_bytes(proc / "meminfo", name) for name in ("SwapTotal", "SwapFree"))
    return None if total is None or free is None else total - free


def _cgroup_throttling(proc: Path, sys: Path) -> dict[str, float] | None:
    """How often, and for how long, a CPU quota stopped this process's groups; v2 counts microseconds, v1 nanoseconds."""
    stats = [read_named_ints(folder / "cpu.stat") for folder in cpu_cgroup_folders(proc, sys)]
    stats = [stat for stat in stats if "nr_throttled" in stat]
    if not stats:
        return None
    seconds = (
        stat.get("throttled_usec", 0) / 1e6 + stat.get("throttled_time", 0) / 1e9 for stat in stats
    )
    return {"periods": sum(stat["nr_throttled"] for stat in stats), "seconds": sum(seconds)}


def _thermal_throttles(sys: Path) -> dict[str, int] | None:
    """{"core", "package"}: how often Intel's CPUs throttled for heat (Documentation/ABI/testing/sysfs-devices-system-cpu).

    Every thread of a core shows the core's events, and every core the package's: each is counted once.
    """
    seen: dict[str, dict[tuple[Any, ...], int]] = {}
    for folder in (sys / "devices/system/cpu").glob("cpu[0-9]*"):
        package = read_int(folder / "topology/physical_package_id") or 0
        core = read_int(folder / "topology/core_id")
        places = {"core": (package, folder.name if core is None else core), "package": (package,)}
        for kind, place in places.items():
            count = read_int(folder / f"thermal_throttle/{kind}_throttle_count")
            if count is not None:
                counts = seen.setdefault(kind, {})
                counts[place] = max(count, counts.get(place, 0))
    return {kind: sum(counts.values()) for kind, counts in sorted(seen.items())} or None


def _firmware_throttle_flags(proc: Path, sys: Path) -> str | None:
    """Raspberry Pi's get_throttled as hexadecimal digits: from the firmware driver, or else from the vcgencmd program."""
    shown = sorted((sys / "devices/platform").glob("soc*/soc*:firmware/get_throttled"))
    word = read_text(shown[0]) if shown else None
    if word is None and "Raspberry Pi" in (read_text(proc / "device-tree/model") or ""):
        word = _run_vcgencmd()
    digits = re.fullmatch(r"(?:throttled=)?(?:0x)?([0-9a-fA-F]{1,8})", word or "")
    return digits.group(1) if digits else None


def _run_vcgencmd() -> str | None:
    try:
        done = subprocess.run(
            ["vcgencmd", "get_throttled"],
            capture_output=True,
            timeout=_VCGENCMD_TIMEOUT_S,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return done.stdout.decode("ascii", errors="replace").strip()


def _over_current_events(sys: Path) -> dict[str, int] | None:
    """Jetson's counters: oc1 low voltage, oc2 average and oc3 instantaneous over-current (Jetson Linux Developer Guide, Orin)."""
    paths = sorted((sys / "class/hwmon").glob("hwmon*/oc*_event_cnt"))
    return {
        path.name.partition("_")[0]: count
        for path in paths
        if (count := read_int(path)) is not None
    } or None


def _temperatures(sys: Path) -> dict[str, float] | None:
    """The hottest sensor of each kind, degrees Celsius; a part that is switched off reports an impossible cold, or nothing."""
    found: dict[str, float] = {}
    zones = [
        (read_text(path.parent / "type"), path)
        for path in sorted((sys / "class/thermal").glob("thermal_zone*/temp"))
    ]
    chips = [
        (read_text(path.parent / "name"), path)
        for path in sorted((sys / "class/hwmon").glob("hwmon*/temp*_input"))
    ]
    for kind, path in [*zones, *((name, path) for name, path in chips if name in CPU_SENSOR_CHIPS)]:
        value = read_int(path)
        if value is not None and value / 1000 > _MIN_TEMPERATURE_C:
            name = kind or path.parent.name
            found[name] = max(value / 1000, found.get(name, _MIN_TEMPERATURE_C))
    return found or None


def _is_turbo_enabled(sys: Path) -> bool | None:
    """Whether clocks above the nominal one are allowed (intel_pstate.rst, cpufreq.rst)."""
    cpu = sys / "devices/system/cpu"
    forbidden, boost = (
        read_int(cpu / "intel_pstate/no_turbo"),
        read_int(cpu / "cpufreq/boost"),
    )
    if forbidden in (0, 1):
        return forbidden == 0
    return boost == 1 if boost in (0, 1) else None

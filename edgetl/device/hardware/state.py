"""Read a device's changing state: counters since boot, load, clocks, temperatures, power.

The difference of two readings describes the time between them.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from pathlib import Path

from edgetl.core.artifacts.device import CpuTime, DeviceState, PressureStalls, QuotaThrottling
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
"""hwmon chips of processors that often lack a thermal zone (Documentation/hwmon)."""
_VCGENCMD_TIMEOUT_S = 2.0
_MIN_TEMPERATURE_C = -60.0


def read_device_state(
    proc: Path = PROC, sys: Path = SYS, gpus: GpuReader | None = None
) -> DeviceState:
    """Read the state once; None for values that the device does not report. Counters start at boot.

    Args:
        proc: mount point of procfs.
        sys: mount point of sysfs.
        gpus: reads the GPUs' states; None uses NVML if `proc` is this machine's.
    """
    if gpus is None and proc == PROC:
        gpus = open_nvml()
    readings = read_gpu_states(gpus)
    clocks = read_cpufreq(sys, "scaling_cur_freq")
    temperatures = _temperatures(sys)
    governors = (
        read_text(path)
        for path in (sys / "devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_governor")
    )
    return DeviceState(
        monotonic_s=time.monotonic(),
        load=_load_average(proc),
        cpu_seconds=_cpu_seconds(proc),
        pressure_us=PressureStalls(
            *(_pressure_us(proc / "pressure" / name) for name in ("cpu", "memory", "io"))
        ),
        swap_used_bytes=_swap_used_bytes(proc),
        throttling=_cgroup_throttling(proc, sys),
        thermal_throttles=_thermal_throttles(sys),
        firmware_throttled=_firmware_throttle_flags(proc, sys),
        over_current_events=_over_current_events(sys),
        temperatures_c=temperatures,
        temperature_c=max(temperatures.values()) if temperatures else None,
        frequency_khz=max(clocks.values(), default=None),
        frequencies_khz=clocks or None,
        frequency_limits_khz=frequency_limits_khz(sys, "scaling"),
        governors=tuple(sorted({governor for governor in governors if governor})) or None,
        turbo=_is_turbo_enabled(sys),
        power_mode=power_mode(proc.parent),
        power_source=power_source(sys),
        battery_percent=battery_percent(sys),
        gpus={str(index): reading for index, reading in enumerate(readings)} or None,
    )


def _load_average(proc: Path) -> tuple[float, float, float] | None:
    fields = (read_text(proc / "loadavg") or "").split()[:3]
    values = [value for value in map(to_float, fields) if value is not None]
    return (values[0], values[1], values[2]) if len(values) == 3 else None


def _cpu_seconds(proc: Path) -> CpuTime | None:
    """Return the seconds of all cores since boot; guest time is part of user (proc_stat(5))."""
    fields = next(iter(read_lines(proc / "stat")), "").split()
    numbers = [to_int(field) for field in fields[1:9]]
    ticks = [number for number in numbers if number is not None and number >= 0]
    if fields[:1] != ["cpu"] or len(ticks) < len(numbers) or len(ticks) < 4:
        return None
    ticks_per_s = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
    names = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
    seconds = {name: value / ticks_per_s for name, value in zip(names, ticks, strict=False)}
    busy = sum(seconds.get(name, 0.0) for name in ("user", "nice", "system", "irq", "softirq"))
    return CpuTime(busy, sum(seconds.values()), seconds.get("steal", 0.0))


def _pressure_us(path: Path) -> int | None:
    """Return the microseconds in which some task was stalled (Documentation/accounting/psi.rst)."""
    some_line = next((line for line in read_lines(path) if line.startswith("some")), "")
    return to_int(some_line.partition("total=")[2])


def _swap_used_bytes(proc: Path) -> int | None:
    total, free = (read_size_bytes(proc / "meminfo", name) for name in ("SwapTotal", "SwapFree"))
    if total is None or free is None:
        return None
    return total - free


def _cgroup_throttling(proc: Path, sys: Path) -> QuotaThrottling | None:
    """Return how often and for how long a CPU quota stopped this process's groups.

    cgroup v2 counts microseconds, v1 nanoseconds.
    """
    stats = [read_named_ints(folder / "cpu.stat") for folder in cpu_cgroup_folders(proc, sys)]
    stats = [stat for stat in stats if "nr_throttled" in stat]
    if not stats:
        return None
    seconds = (
        stat.get("throttled_usec", 0) / 1e6 + stat.get("throttled_time", 0) / 1e9 for stat in stats
    )
    return QuotaThrottling(sum(stat["nr_throttled"] for stat in stats), sum(seconds))


def _thermal_throttles(sys: Path) -> dict[str, int] | None:
    """Return how often Intel's CPUs throttled for heat, as {"core", "package"}.

    Every thread of a core reports the core's events, and every core the package's: each is counted
    once.

    Source: Documentation/ABI/testing/sysfs-devices-system-cpu.
    """
    counts: dict[str, dict[tuple[int | str, ...], int]] = {}
    for folder in (sys / "devices/system/cpu").glob("cpu[0-9]*"):
        package = read_int(folder / "topology/physical_package_id") or 0
        core = read_int(folder / "topology/core_id")
        units: dict[str, tuple[int | str, ...]] = {
            "core": (package, folder.name if core is None else core),
            "package": (package,),
        }
        for kind, unit in units.items():
            count = read_int(folder / f"thermal_throttle/{kind}_throttle_count")
            if count is not None:
                unit_counts = counts.setdefault(kind, {})
                unit_counts[unit] = max(count, unit_counts.get(unit, 0))
    totals = {kind: sum(unit_counts.values()) for kind, unit_counts in sorted(counts.items())}
    return totals or None


def _firmware_throttle_flags(proc: Path, sys: Path) -> str | None:
    """Return Raspberry Pi's get_throttled as hexadecimal digits, from the driver or vcgencmd."""
    files = sorted((sys / "devices/platform").glob("soc*/soc*:firmware/get_throttled"))
    flags = read_text(files[0]) if files else None
    if flags is None and "Raspberry Pi" in (read_text(proc / "device-tree/model") or ""):
        flags = _run_vcgencmd()
    digits = re.fullmatch(r"(?:throttled=)?(?:0x)?([0-9a-fA-F]{1,8})", flags or "")
    return digits.group(1) if digits else None


def _run_vcgencmd() -> str | None:
    try:
        process = subprocess.run(
            ["vcgencmd", "get_throttled"],
            capture_output=True,
            timeout=_VCGENCMD_TIMEOUT_S,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return process.stdout.decode("ascii", errors="replace").strip()


def _over_current_events(sys: Path) -> dict[str, int] | None:
    """Return Jetson's event counters: oc1 low voltage, oc2 average, oc3 instantaneous over-current.

    Source: Jetson Linux Developer Guide, Orin.
    """
    paths = sorted((sys / "class/hwmon").glob("hwmon*/oc*_event_cnt"))
    counts = {
        path.name.partition("_")[0]: count
        for path in paths
        if (count := read_int(path)) is not None
    }
    return counts or None


def _temperatures(sys: Path) -> dict[str, float] | None:
    """Return the temperature of the hottest sensor of each kind in degrees Celsius.

    A part that is switched off reports an impossibly low temperature, or nothing.
    """
    temperatures: dict[str, float] = {}
    zones = [
        (read_text(path.parent / "type"), path)
        for path in sorted((sys / "class/thermal").glob("thermal_zone*/temp"))
    ]
    chips = [
        (read_text(path.parent / "name"), path)
        for path in sorted((sys / "class/hwmon").glob("hwmon*/temp*_input"))
    ]
    cpu_chips = [(name, path) for name, path in chips if name in CPU_SENSOR_CHIPS]
    for kind, path in [*zones, *cpu_chips]:
        millidegrees = read_int(path)
        if millidegrees is not None and millidegrees / 1000 > _MIN_TEMPERATURE_C:
            name = kind or path.parent.name
            hottest = temperatures.get(name, _MIN_TEMPERATURE_C)
            temperatures[name] = max(millidegrees / 1000, hottest)
    return temperatures or None


def _is_turbo_enabled(sys: Path) -> bool | None:
    """Return whether clocks above the nominal one are allowed (intel_pstate.rst, cpufreq.rst)."""
    cpu = sys / "devices/system/cpu"
    no_turbo = read_int(cpu / "intel_pstate/no_turbo")
    boost = read_int(cpu / "cpufreq/boost")
    if no_turbo in (0, 1):
        return no_turbo == 0
    return boost == 1 if boost in (0, 1) else None

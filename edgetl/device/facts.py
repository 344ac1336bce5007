"""What can be read about a device and its state; None where it does not tell."""

from __future__ import annotations

import os
import platform
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from edgetl.device.cores import available_cores, cgroup_quota, cpu_cgroups

PROC, SYS = Path("/proc"), Path("/sys")
MEASURED_PACKAGES = ("numpy", "pillow", "onnxruntime", "onnxruntime-gpu", "torch", "torchvision")


def device_facts(proc: Path = PROC, sys: Path = SYS) -> dict[str, Any]:
    """What stays the same while the device is up: board, processor, memory, software."""
    return {
        "host": platform.node() or None,
        "board": _text(proc / "device-tree/model") or _text(sys / "class/dmi/id/product_name"),
        "machine": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "cpu": _cpu_name(proc),
        "cores": os.cpu_count(),
        "cores_available": available_cores(proc, sys),
        "cpu_quota": cgroup_quota(proc, sys),
        "memory_bytes": _memory_bytes(proc),
        "gpus": _gpus(proc),
        "python": platform.python_version(),
        "packages": {name: version for name in MEASURED_PACKAGES if (version := installed_version(name))},
    }


def device_state(proc: Path = PROC, sys: Path = SYS) -> dict[str, Any]:
    """What changes: counters since boot, load, clocks, temperature. Two readings tell what happened between them."""
    return {
        "monotonic_s": time.monotonic(),
        "load": _load(proc),
        "cpu_seconds": _cpu_seconds(proc),
        "pressure_us": {name: _pressure(proc / "pressure" / name) for name in ("cpu", "memory", "io")},
        "throttling": _cgroup_throttling(proc, sys),
        "thermal_throttles": _thermal_throttles(sys),
        "firmware_throttled": _text(sys / "devices/platform/soc/soc:firmware/get_throttled"),
        "temperature_c": _temperature(sys),
        "frequency_khz": core_frequency(sys),
        "governors": sorted({text for path in _cpufreq(sys, "scaling_governor") if (text := _text(path))}) or None,
    }


def installed_version(package: str) -> str | None:
    """The version of an installed package; it is not imported."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def core_frequency(sys: Path = SYS) -> int | None:
    """The clock of the fastest core right now, kHz."""
    return max((value for path in _cpufreq(sys, "scaling_cur_freq") if (value := _number(path)) is not None), default=None)


def cpu_flags(proc: Path = PROC) -> set[str]:
    """The instruction sets that the CPU has, by the kernel's names; empty where it does not tell."""
    lines = (_text(proc / "cpuinfo") or "").splitlines()
    return {flag for line in lines if line.lower().startswith(("flags", "features")) for flag in line.partition(":")[2].split()}


def peak_memory_bytes(proc: Path = PROC) -> int | None:
    """This process's largest resident memory so far.

    VmHWM and not getrusage: the latter still counts what the parent held when it started this process.
    """
    lines = (_text(proc / "self/status") or "").splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0 \n\t") or None
    except OSError:
        return None


def _number(path: Path) -> int | None:
    try:
        return int(_text(path) or "")
    except ValueError:
        return None


def _cpufreq(sys: Path, name: str) -> list[Path]:
    return sorted((sys / "devices/system/cpu").glob(f"cpu[0-9]*/cpufreq/{name}"))


def _cpu_name(proc: Path) -> str | None:
    fields = [line.partition(":") for line in (_text(proc / "cpuinfo") or "").splitlines()]
    named = {name.strip(): value.strip() for name, _, value in reversed(fields)}
    return next((named[name] for name in ("model name", "Hardware", "Model", "cpu model", "uarch") if named.get(name)), None)


def _memory_bytes(proc: Path) -> int | None:
    lines = (_text(proc / "meminfo") or "").splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemTotal:")), None)


def _gpus(proc: Path) -> list[str]:
    texts = (_text(path) or "" for path in sorted((proc / "driver/nvidia/gpus").glob("*/information")))
    return [line.partition(":")[2].strip() for text in texts for line in text.splitlines() if line.startswith("Model:")]


def _load(proc: Path) -> list[float] | None:
    fields = (_text(proc / "loadavg") or "").split()
    return [float(value) for value in fields[:3]] if len(fields) >= 3 else None


def _cpu_seconds(proc: Path) -> dict[str, float] | None:
    """Seconds of all cores since boot; guest time is part of user (proc_stat(5))."""
    fields = (_text(proc / "stat") or "").partition("\n")[0].split()
    if len(fields) < 5 or fields[0] != "cpu":
        return None
    ticks = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
    names = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
    seconds = {name: int(value) / ticks for name, value in zip(names, fields[1:9], strict=False)}
    busy = sum(seconds.get(name, 0.0) for name in ("user", "nice", "system", "irq", "softirq"))
    return {"busy": busy, "total": sum(seconds.values()), "steal": seconds.get("steal", 0.0)}


def _pressure(path: Path) -> int | None:
    """Microseconds in which some task was held up (Documentation/accounting/psi.rst)."""
    lines = (_text(path) or "").splitlines()
    some = next((line for line in lines if line.startswith("some")), "")
    total = some.partition("total=")[2]
    return int(total) if total.isdigit() else None


def _cgroup_throttling(proc: Path, sys: Path) -> dict[str, float] | None:
    counted = [folder / "cpu.stat" for folder in cpu_cgroups(proc, sys)]
    stats = [dict(line.split()[:2] for line in text.splitlines()) for path in counted if (text := _text(path))]
    stats = [stat for stat in stats if "nr_throttled" in stat]
    if not stats:
        return None
    seconds = (int(stat.get("throttled_usec", 0)) / 1e6 + int(stat.get("throttled_time", 0)) / 1e9 for stat in stats)
    return {"periods": sum(int(stat["nr_throttled"]) for stat in stats), "seconds": sum(seconds)}


def _thermal_throttles(sys: Path) -> int | None:
    paths = (sys / "devices/system/cpu").glob("cpu[0-9]*/thermal_throttle/*_throttle_count")
    counts = [count for path in paths if (count := _number(path)) is not None]
    return sum(counts) if counts else None


def _temperature(sys: Path) -> float | None:
    zones = (_number(path) for path in (sys / "class/thermal").glob("thermal_zone*/temp"))
    return max((value / 1000 for value in zones if value is not None), default=None)

"""What stays the same about a device while it is up; None where it does not tell."""

from __future__ import annotations

import os
import platform
import re
from importlib import metadata
from pathlib import Path
from typing import Any

from edgetl.device.hardware.cpu import available_cores, cgroup_cpu_quota, is_emulated
from edgetl.device.hardware.nvml import GpuReader, open_nvml, read_gpu_info
from edgetl.device.hardware.power import power_mode
from edgetl.device.hardware.procfs import (
    PROC,
    SYS,
    path_exists,
    read_int,
    read_lines,
    read_size_bytes,
    read_text,
)

REPORTED_PACKAGES = ("numpy", "pillow", "onnxruntime", "onnxruntime-gpu", "torch", "torchvision")
INFERENCE_CPU_FLAGS = (
    *(
        "avx2",
        "fma",
        "avx512f",
        "avx512_vnni",
        "avx512_bf16",
        "avx512_fp16",
        "avx_vnni",
        "avx_vnni_int8",
        "amx_int8",
        "amx_bf16",
    ),
    *("neon", "asimd", "fphp", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2"),
)
"""The instruction sets that decide how fast a network runs, by the kernel's names: x86, then ARM (elf_hwcaps.rst)."""
ARM_CORE_NAMES = {
    ("0x41", "0xd03"): "Cortex-A53",
    ("0x41", "0xd05"): "Cortex-A55",
    ("0x41", "0xd07"): "Cortex-A57",
    ("0x41", "0xd08"): "Cortex-A72",
    ("0x41", "0xd09"): "Cortex-A73",
    ("0x41", "0xd0b"): "Cortex-A76",
    ("0x41", "0xd0c"): "Neoverse-N1",
    ("0x41", "0xd40"): "Neoverse-V1",
    ("0x41", "0xd41"): "Cortex-A78",
    ("0x41", "0xd42"): "Cortex-A78AE",
    ("0x41", "0xd49"): "Neoverse-N2",
    ("0x41", "0xd4f"): "Neoverse-V2",
    ("0x41", "0xd83"): "Neoverse-V3AE",
    ("0x4e", "0x003"): "Denver 2",
    ("0x4e", "0x004"): "Carmel",
}
"""(implementer, part) of /proc/cpuinfo to the core's name, as util-linux's lscpu has them: 64-bit ARM kernels give no model name."""


def collect_device_info(
    proc: Path = PROC,
    sys: Path = SYS,
    machine: str = platform.machine(),
    gpus: GpuReader | None = None,
) -> dict[str, Any]:
    """Board, processor, memory, GPU, container, software. What lies outside /proc and /sys is looked for beside `proc`.

    Args:
        proc: where procfs is.
        sys: where sysfs is.
        machine: the processor's architecture.
        gpus: describes the GPUs; None takes NVML on this machine, and nothing for another's files.
    """
    flags = cpu_flags(proc)
    nvml = read_gpu_info(open_nvml() if gpus is None and proc == PROC else gpus)
    boards = nvml.get("gpus", [])
    return {
        "host": platform.node() or None,
        "board": read_text(proc / "device-tree/model")
        or read_text(sys / "class/dmi/id/product_name"),
        "machine": machine,
        "emulated": is_emulated(proc, machine),
        "system": f"{platform.system()} {platform.release()}",
        "container": detect_container(proc),
        "cpu": _cpu_name(proc),
        "cpu_flags": [flag for flag in INFERENCE_CPU_FLAGS if flag in flags] if flags else None,
        "cores": os.cpu_count(),
        "cores_available": available_cores(proc, sys),
        "affinity": sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "cpu_quota": cgroup_cpu_quota(proc, sys),
        "frequency_limits_khz": frequency_limits_khz(sys, "cpuinfo"),
        "memory_bytes": read_size_bytes(proc / "meminfo", "MemTotal"),
        "swap_total_bytes": read_size_bytes(proc / "meminfo", "SwapTotal"),
        "gpus": _gpu_names(proc) or [gpu["name"] for gpu in boards if gpu["name"]],
        "gpu_driver": _gpu_driver_version(proc, sys) or nvml.get("driver"),
        "gpu_memory_bytes": [gpu["memory_bytes"] for gpu in boards] or None,
        "gpu_compute_capability": [gpu["compute_capability"] for gpu in boards] or None,
        "cuda_driver": nvml.get("cuda"),
        "power_mode": power_mode(proc.parent),
        "python": platform.python_version(),
        "packages": {
            name: version for name in REPORTED_PACKAGES if (version := installed_version(name))
        },
    }


def gpu_identity(proc: Path = PROC, sys: Path = SYS) -> tuple[str, str | None]:
    """Return the names of NVIDIA's GPUs, joined, and the driver's version: what code compiled for a GPU depends on."""
    return ", ".join(_gpu_names(proc)), _gpu_driver_version(proc, sys)


def installed_version(package: str) -> str | None:
    """The version of an installed package; it is not imported."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def read_cpufreq(sys: Path, name: str) -> dict[str, int]:
    """What each core's cpufreq says under this name, by the kernel's name of the core; cores in order (cpufreq.rst)."""
    paths = (sys / "devices/system/cpu").glob(f"cpu[0-9]*/cpufreq/{name}")
    ordered = sorted(paths, key=lambda path: (len(path.parts[-3]), path.parts[-3]))
    return {path.parts[-3]: value for path in ordered if (value := read_int(path)) is not None}


def fastest_core_frequency_khz(sys: Path = SYS) -> int | None:
    """The clock of the fastest core right now, kHz."""
    return max(read_cpufreq(sys, "scaling_cur_freq").values(), default=None)


def frequency_limits_khz(sys: Path, limit: str) -> list[int] | None:
    """[slowest, fastest] clock of any core, kHz: what the hardware can (limit `cpuinfo`), or what it is allowed (`scaling`)."""
    low, high = (read_cpufreq(sys, f"{limit}_{end}_freq").values() for end in ("min", "max"))
    return [min(low), max(high)] if low and high else None


def cpu_flags(proc: Path = PROC) -> set[str]:
    """The instruction sets that the CPU has, by the kernel's names; empty where it does not tell."""
    lines = (
        line
        for line in read_lines(proc / "cpuinfo")
        if line.lower().startswith(("flags", "features"))
    )
    return {flag for line in lines for flag in line.partition(":")[2].split()}


def has_int8_dot_product(proc: Path = PROC) -> bool:
    """Whether products of 8 bits are summed in 32: VNNI and AMX on x86, dot products on ARM; elsewhere sums of two saturate in 16."""
    return bool(cpu_flags(proc) & {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp"})


def peak_memory_bytes(proc: Path = PROC) -> int | None:
    """This process's largest resident memory so far.

    VmHWM and not getrusage: the latter still counts what the parent held when it started this process.
    """
    return read_size_bytes(proc / "self/status", "VmHWM")


def detect_container(proc: Path = PROC) -> str | None:
    """What this process is shut in: kubernetes, podman, docker, lxc, wsl, or what the first process was told; None: nothing seen.

    By the marks that the runtimes leave: /.dockerenv, /run/.containerenv, the service account that Kubernetes mounts,
    `container=` in the first process's environment (systemd's "Container Interface"), and names in its cgroup.
    """
    root = proc.parent
    groups = read_text(proc / "1/cgroup") or ""
    told = re.search(r"(?:^|\0)container=([\w.+-]+)", read_text(proc / "1/environ") or "")
    # Kubernetes first: the runtime below it leaves its own marks too.
    if (
        "kubepods" in groups
        or path_exists(root / "run/secrets/kubernetes.io")
        or path_exists(root / "var/run/secrets/kubernetes.io")
    ):
        return "kubernetes"
    if path_exists(root / "run/.containerenv") or "libpod" in groups:
        return "podman"
    if path_exists(root / ".dockerenv") or re.search(r"[/:]docker[/-]", groups):
        return "docker"
    if told:
        return told.group(1)
    if re.search(r"[/:]lxc[/.]", groups):
        return "lxc"
    return (
        "wsl" if "microsoft" in (read_text(proc / "sys/kernel/osrelease") or "").lower() else None
    )


def _cpu_name(proc: Path) -> str | None:
    fields = [
        (name.strip(), value.strip())
        for name, _, value in (line.partition(":") for line in read_lines(proc / "cpuinfo"))
    ]
    named = dict(reversed(fields))
    if named.get("model name"):
        return named["model name"]
    implementers = (value for name, value in fields if name == "CPU implementer")
    parts = (value for name, value in fields if name == "CPU part")
    cores = dict.fromkeys(
        ARM_CORE_NAMES[key]
        for key in zip(implementers, parts, strict=False)
        if key in ARM_CORE_NAMES
    )
    # "Hardware" comes after the core: every Raspberry Pi says BCM2835 there, whatever it is.
    return " + ".join(cores) or next(
        (named[name] for name in ("Hardware", "Model", "cpu model", "uarch") if named.get(name)),
        None,
    )


def _gpu_names(proc: Path) -> list[str]:
    """NVIDIA's, by name: cards from the driver, a Jetson's own by its chip in the device tree."""
    texts = (
        read_lines(path) for path in sorted((proc / "driver/nvidia/gpus").glob("*/information"))
    )
    cards = [
        line.partition(":")[2].strip()
        for lines in texts
        for line in lines
        if line.startswith("Model:")
    ]
    if cards:
        return cards
    nodes = [
        path
        for pattern in ("gpu@*", "*/gpu@*")
        for path in sorted((proc / "device-tree").glob(f"{pattern}/compatible"))
    ]
    chips = (re.match(r"nvidia,(\w+)", read_text(path) or "") for path in nodes)
    return [f"NVIDIA {chip.group(1)}" for chip in chips if chip]


def _gpu_driver_version(proc: Path, sys: Path) -> str | None:
    """The version of NVIDIA's kernel module; on a Jetson, whose driver comes with the system, that of Jetson Linux."""
    module = read_text(sys / "module/nvidia/version")
    loaded = re.search(
        r"Kernel Module.*?\s(\d+(?:\.\d+)+)\s", read_text(proc / "driver/nvidia/version") or ""
    )
    jetson = re.search(
        r"R(\d+) \(release\), REVISION: ([\d.]+)",
        read_text(proc.parent / "etc/nv_tegra_release") or "",
    )
    if module and re.fullmatch(r"[\d.]+", module):
        return module
    return (
        loaded.group(1)
        if loaded
        else f"L4T {jetson.group(1)}.{jetson.group(2)}"
        if jetson
        else None
    )

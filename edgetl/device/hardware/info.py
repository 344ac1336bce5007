"""Collect facts about a device that stay the same while it is up; None if not reported."""

from __future__ import annotations

import os
import platform
import re
from importlib import metadata
from pathlib import Path

from edgetl.core.artifacts.device import DeviceInfo
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
"""Instruction sets that affect inference speed, by the kernel's names: x86, then ARM.

Source: elf_hwcaps.rst.
"""
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
"""(implementer, part) of /proc/cpuinfo to the core's name, as in util-linux's lscpu.

64-bit ARM kernels report no model name.
"""


def collect_device_info(
    proc: Path = PROC,
    sys: Path = SYS,
    machine: str = platform.machine(),
    gpus: GpuReader | None = None,
) -> DeviceInfo:
    """Collect board, processor, memory, GPU, container and software.

    Files outside /proc and /sys are read from the parent folder of `proc`.

    Args:
        proc: mount point of procfs.
        sys: mount point of sysfs.
        machine: the processor's architecture.
        gpus: reads the GPUs' facts; None uses NVML if `proc` is this machine's.
    """
    flags = cpu_flags(proc)
    if gpus is None and proc == PROC:
        gpus = open_nvml()
    nvml = read_gpu_info(gpus)
    boards = nvml.boards
    versions = {name: installed_version(name) for name in REPORTED_PACKAGES}
    return DeviceInfo(
        host=platform.node() or None,
        board=read_text(proc / "device-tree/model") or read_text(sys / "class/dmi/id/product_name"),
        machine=machine,
        emulated=is_emulated(proc, machine),
        system=f"{platform.system()} {platform.release()}",
        container=detect_container(proc),
        cpu=cpu_name(proc),
        cpu_flags=tuple(flag for flag in INFERENCE_CPU_FLAGS if flag in flags) if flags else None,
        cores=os.cpu_count(),
        cores_available=available_cores(proc, sys),
        affinity=(
            tuple(sorted(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else None
        ),
        cpu_quota=cgroup_cpu_quota(proc, sys),
        frequency_limits_khz=frequency_limits_khz(sys, "cpuinfo"),
        memory_bytes=read_size_bytes(proc / "meminfo", "MemTotal"),
        swap_total_bytes=read_size_bytes(proc / "meminfo", "SwapTotal"),
        gpus=_gpu_names(proc) or tuple(board.name for board in boards if board.name),
        gpu_driver=_gpu_driver_version(proc, sys) or nvml.driver,
        gpu_memory_bytes=tuple(board.memory_bytes for board in boards) or None,
        gpu_compute_capability=tuple(board.compute_capability for board in boards) or None,
        cuda_driver=nvml.cuda,
        power_mode=power_mode(proc.parent),
        python=platform.python_version(),
        packages={name: version for name, version in versions.items() if version},
    )


def gpu_identity(proc: Path = PROC, sys: Path = SYS) -> tuple[str, str | None]:
    """Return the joined names of NVIDIA's GPUs and the driver's version.

    Code compiled for a GPU depends on both.
    """
    return ", ".join(_gpu_names(proc)), _gpu_driver_version(proc, sys)


def installed_version(package: str) -> str | None:
    """Return the version of an installed package without importing it; None if not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def read_cpufreq(sys: Path, name: str) -> dict[str, int]:
    """Return a cpufreq value by core, in the order of the cores (cpufreq.rst)."""
    paths = (sys / "devices/system/cpu").glob(f"cpu[0-9]*/cpufreq/{name}")
    ordered = sorted(paths, key=lambda path: (len(path.parts[-3]), path.parts[-3]))
    return {path.parts[-3]: value for path in ordered if (value := read_int(path)) is not None}


def fastest_core_frequency_khz(sys: Path = SYS) -> int | None:
    """Return the present clock of the fastest core in kHz."""
    return max(read_cpufreq(sys, "scaling_cur_freq").values(), default=None)


def frequency_limits_khz(sys: Path, limit: str) -> tuple[int, int] | None:
    """Return the (lowest, highest) clock of all cores in kHz.

    Args:
        sys: mount point of sysfs.
        limit: `cpuinfo` for the hardware's limits, `scaling` for the present policy's.
    """
    low, high = (read_cpufreq(sys, f"{limit}_{end}_freq").values() for end in ("min", "max"))
    return (min(low), max(high)) if low and high else None


def cpu_flags(proc: Path = PROC) -> set[str]:
    """Return the CPU's instruction sets by the kernel's names; empty if not reported."""
    lines = (
        line
        for line in read_lines(proc / "cpuinfo")
        if line.lower().startswith(("flags", "features"))
    )
    return {flag for line in lines for flag in line.partition(":")[2].split()}


def has_int8_dot_product(proc: Path = PROC) -> bool:
    """Return whether the CPU sums 8-bit products in 32 bits.

    VNNI and AMX do so on x86, dot products on ARM. Other CPUs sum pairs of products in 16 bits,
    which saturates.
    """
    return bool(cpu_flags(proc) & {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp"})


def peak_memory_bytes(proc: Path = PROC) -> int | None:
    """Return this process's peak resident memory.

    Read from VmHWM: getrusage also counts the memory of the parent at the time of the fork.
    """
    return read_size_bytes(proc / "self/status", "VmHWM")


def detect_container(proc: Path = PROC) -> str | None:
    """Return the container runtime: kubernetes, podman, docker, lxc, wsl or another name; or None.

    Runtimes are detected by /.dockerenv, /run/.containerenv, the service account that Kubernetes
    mounts, `container=` in the environment of process 1 (systemd's "Container Interface"), and
    names in its cgroup.
    """
    root = proc.parent
    groups = read_text(proc / "1/cgroup") or ""
    container = re.search(r"(?:^|\0)container=([\w.+-]+)", read_text(proc / "1/environ") or "")
    # Kubernetes comes first, because the runtime below it leaves its own marks too.
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
    if container:
        return container.group(1)
    if re.search(r"[/:]lxc[/.]", groups):
        return "lxc"
    if "microsoft" in (read_text(proc / "sys/kernel/osrelease") or "").lower():
        return "wsl"
    return None


def cpu_name(proc: Path = PROC) -> str | None:
    """Return the CPU's model, or its different cores; None if the kernel does not report it."""
    fields = [
        (name.strip(), value.strip())
        for name, _, value in (line.partition(":") for line in read_lines(proc / "cpuinfo"))
    ]
    first_values = dict(reversed(fields))
    if first_values.get("model name"):
        return first_values["model name"]
    implementers = (value for name, value in fields if name == "CPU implementer")
    parts = (value for name, value in fields if name == "CPU part")
    cores = dict.fromkeys(
        ARM_CORE_NAMES[key]
        for key in zip(implementers, parts, strict=False)
        if key in ARM_CORE_NAMES
    )
    if cores:
        return " + ".join(cores)
    # "Hardware" comes after the core, because every Raspberry Pi reports BCM2835 there.
    names = (first_values.get(field) for field in ("Hardware", "Model", "cpu model", "uarch"))
    return next((name for name in names if name), None)


def _gpu_names(proc: Path) -> tuple[str, ...]:
    """Return the names of NVIDIA's GPUs: cards from the driver, a Jetson's from the device tree."""
    texts = (
        read_lines(path) for path in sorted((proc / "driver/nvidia/gpus").glob("*/information"))
    )
    cards = tuple(
        line.partition(":")[2].strip()
        for lines in texts
        for line in lines
        if line.startswith("Model:")
    )
    if cards:
        return cards
    nodes = [
        path
        for pattern in ("gpu@*", "*/gpu@*")
        for path in sorted((proc / "device-tree").glob(f"{pattern}/compatible"))
    ]
    chips = (re.match(r"nvidia,(\w+)", read_text(path) or "") for path in nodes)
    return tuple(f"NVIDIA {chip.group(1)}" for chip in chips if chip)


def _gpu_driver_version(proc: Path, sys: Path) -> str | None:
    """Return the version of NVIDIA's kernel module, or of Jetson Linux, which contains it."""
    module = read_text(sys / "module/nvidia/version")
    module_version = re.search(
        r"Kernel Module.*?\s(\d+(?:\.\d+)+)\s", read_text(proc / "driver/nvidia/version") or ""
    )
    jetson_release = re.search(
        r"R(\d+) \(release\), REVISION: ([\d.]+)",
        read_text(proc.parent / "etc/nv_tegra_release") or "",
    )
    if module and re.fullmatch(r"[\d.]+", module):
        return module
    if module_version:
        return module_version.group(1)
    return f"L4T {jetson_release.group(1)}.{jetson_release.group(2)}" if jetson_release else None

"""CPU cores available to this process, its cgroups, and CPU emulation."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Sequence
from pathlib import Path

from edgetl.core.config.bench import BenchConfig
from edgetl.core.errors import BenchError
from edgetl.device.hardware.procfs import (
    PROC,
    SYS,
    path_exists,
    read_int,
    read_lines,
    read_text,
    to_int,
)


def available_cores(proc: Path = PROC, sys: Path = SYS) -> int:
    """Return min(affinity, cgroup CPU quota rounded up), at least 1."""
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    quota = cgroup_cpu_quota(proc, sys)
    if quota is not None:
        cores = min(cores, math.ceil(quota))
    return max(1, cores)


def resolve_intra_op_threads(counts: Sequence[int], force: bool = False) -> tuple[int, ...]:
    """Return the thread counts to measure with: `counts`, or all available cores if empty.

    Raises:
        BenchError: a count exceeds the available cores, without `force`.
    """
    cores = available_cores()
    too_many = [count for count in counts if count > cores]
    if too_many and not force:
        raise BenchError(
            f"{{threads}} must be at most {cores} (the available cores), "
            f"got {', '.join(map(str, too_many))}. "
            "Threads that share a core measure the scheduler: use fewer, or {force}.",
            BenchConfig,
        )
    return tuple(counts) or (cores,)


def cgroup_cpu_quota(proc: Path = PROC, sys: Path = SYS) -> float | None:
    """Return the lowest CPU quota of this process's cgroup and its parents, in cores, or None.

    Source: the kernel's documentation of cpu.max (cgroup v2) and of cpu.cfs_quota_us, where -1 is
    no limit (v1).
    """
    quotas = []
    for folder in cpu_cgroup_folders(proc, sys):
        limit, span = (*(read_text(folder / "cpu.max") or "").split(), "", "")[:2]
        if limit:
            quota, period = to_int(limit), to_int(span)
        else:
            quota = read_int(folder / "cpu.cfs_quota_us")
            period = read_int(folder / "cpu.cfs_period_us")
        if quota is not None and period is not None and quota > 0 and period > 0:
            quotas.append(quota / period)
    return min(quotas, default=None)


def cpu_cgroup_folders(proc: Path = PROC, sys: Path = SYS) -> list[Path]:
    """Return `cgroup_folders` of the CPU controller."""
    return cgroup_folders("cpu", proc, sys)


def cgroup_folders(controller: str, proc: Path = PROC, sys: Path = SYS) -> list[Path]:
    """Return a controller's existing folders from its root to this process's group.

    Both cgroup v1 and v2 are covered. In a container the path in /proc/self/cgroup may be the
    host's: the root is then the container's own group.
    """
    group_folders: list[Path] = []
    for line in read_lines(proc / "self/cgroup"):
        number, controllers, group = (*line.split(":", 2), "", "")[:3]
        if number == "0" and not controllers:
            roots = [sys / "fs/cgroup", sys / "fs/cgroup/unified"]
        elif controller in controllers.split(","):
            roots = [sys / "fs/cgroup" / controllers, sys / "fs/cgroup" / controller]
        else:
            continue
        parts = Path(group.strip("/")).parts
        folders = (root / Path(*parts[:depth]) for root in roots for depth in range(len(parts) + 1))
        group_folders += [
            folder for folder in folders if path_exists(folder) and folder not in group_folders
        ]
    return group_folders


EMULATED_ENV_VAR = "EDGETL_EMULATED"
"""Environment variable that marks the processor as emulated if /proc does not show it."""
_ARCHITECTURE_PREFIXES = {
    "x86": ("x86", "i386", "i486", "i586", "i686", "amd64"),
    "arm": ("arm", "aarch64"),
}
_CPUINFO_FIELDS = {"x86": "flags", "arm": "CPU implementer"}
"""Field of /proc/cpuinfo that only this family's kernel writes."""


def is_emulated(proc: Path = PROC, machine: str | None = None) -> bool:
    """Return whether the processor is emulated, as by qemu-user and binfmt_misc.

    The emulator replaces the result of `uname`, but not the kernel's files: its architecture
    (since Linux 6.1) and, unless the emulator replaces it too, the host's /proc/cpuinfo. 32-bit
    programs on a 64-bit kernel of the same family are not emulated.

    Args:
        proc: mount point of procfs.
        machine: architecture reported by `uname`; None uses `platform.machine()`.
    """
    if os.environ.get(EMULATED_ENV_VAR):
        return True
    uname_family = _architecture_family(machine or platform.machine())
    kernel_family = _architecture_family(read_text(proc / "sys/kernel/arch") or "")
    fields = {line.partition(":")[0].strip() for line in read_lines(proc / "cpuinfo")}
    cpuinfo_family = next(
        (family for family, field in _CPUINFO_FIELDS.items() if field in fields), None
    )
    if uname_family is None:
        return False
    return any(family not in (None, uname_family) for family in (kernel_family, cpuinfo_family))


def _architecture_family(machine: str) -> str | None:
    return next(
        (
            family
            for family, prefixes in _ARCHITECTURE_PREFIXES.items()
            if machine.lower().startswith(prefixes)
        ),
        None,
    )

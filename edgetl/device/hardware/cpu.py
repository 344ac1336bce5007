"""How many cores this process may really use."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Sequence
from pathlib import Path

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
    """min(affinity, cgroup CPU quota rounded up), at least 1. Quota: see `cgroup_quota`."""
    affinity = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    quota = cgroup_cpu_quota(proc, sys)
    return max(1, affinity if quota is None else min(affinity, math.ceil(quota)))


def resolve_intra_op_threads(asked: Sequence[int], force: bool = False) -> tuple[int, ...]:
    """The numbers of threads to measure with: those asked for, or all cores available where none was.

    Raises:
        BenchError: more than there are cores, and not insisted on.
    """
    cores = available_cores()
    too_many = [count for count in asked if count > cores]
    if too_many and not force:
        raise BenchError(
            f"--threads {', '.join(map(str, too_many))}: this process may use {cores} core{'s' if cores > 1 else ''}. "
            "Threads that share a core measure the scheduler: ask for fewer, or insist with --force."
        )
    return tuple(asked) or (cores,)


def cgroup_cpu_quota(proc: Path = PROC, sys: Path = SYS) -> float | None:
    """The tightest CPU quota on the way to this process's cgroup, in cores; None where there is none.

    Source: the kernel's documentation of cpu.max (cgroup v2) and of cpu.cfs_quota_us, where -1 is no limit (v1).
    """
    quotas = []
    for folder in cpu_cgroup_folders(proc, sys):
        limit, span = (*(read_text(folder / "cpu.max") or "").split(), "", "")[:2]
        quota = to_int(limit) if limit else read_int(folder / "cpu.cfs_quota_us")
        period = to_int(span) if limit else read_int(folder / "cpu.cfs_period_us")
        if quota is not None and period is not None and quota > 0 and period > 0:
            quotas.append(quota / period)
    return min(quotas, default=None)


def cpu_cgroup_folders(proc: Path = PROC, sys: Path = SYS) -> list[Path]:
    """As `cgroups`, of the CPU controller."""
    return cgroup_folders("cpu", proc, sys)


def cgroup_folders(controller: str, proc: Path = PROC, sys: Path = SYS) -> list[Path]:
    """The folders of a controller from its root to this process's group, of cgroup v1 and v2; those that exist.

    In a container the path in /proc/self/cgroup may be the host's: the root is then the container's own group.
    """
    found: list[Path] = []
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
        found += [folder for folder in folders if path_exists(folder) and folder not in found]
    return found


EMULATED_ENV_VAR = "EDGETL_EMULATED"
"""Set to anything, this says that the processor is emulated, where nothing in /proc would."""
_ARCHITECTURE_PREFIXES = {
    "x86": ("x86", "i386", "i486", "i586", "i686", "amd64"),
    "arm": ("arm", "aarch64"),
}
_CPUINFO_FIELDS = {"x86": "flags", "arm": "CPU implementer"}
"""The line of /proc/cpuinfo that a family's kernel writes and no other."""


def is_emulated(proc: Path = PROC, machine: str | None = None) -> bool:
    """Whether programs for another kind of processor run here, as qemu-user and binfmt_misc let them.

    The emulator answers for `uname` but the kernel's own files stay as they are: its architecture (since Linux 6.1) and, unless
    the emulator feigns it, the host's /proc/cpuinfo. 32-bit programs on a 64-bit kernel of the same family are not emulated.

    Args:
        proc: where /proc is.
        machine: what programs are told that the machine is; None takes what this one is told.
    """
    if os.environ.get(EMULATED_ENV_VAR):
        return True
    told = _architecture_family(machine or platform.machine())
    kernel = _architecture_family(read_text(proc / "sys/kernel/arch") or "")
    fields = {line.partition(":")[0].strip() for line in read_lines(proc / "cpuinfo")}
    shown = next((family for family, field in _CPUINFO_FIELDS.items() if field in fields), None)
    return told is not None and any(family not in (None, told) for family in (kernel, shown))


def _architecture_family(machine: str) -> str | None:
    return next(
        (
            family
            for family, starts in _ARCHITECTURE_PREFIXES.items()
            if machine.lower().startswith(starts)
        ),
        None,
    )

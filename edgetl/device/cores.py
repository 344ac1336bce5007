"""How many cores this process may really use."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

from edgetl.core.errors import BenchError
from edgetl.device.kernel_files import PROC, SYS, exists, read_lines, read_number, read_text, to_int


def available_cores(proc: Path = PROC, sys: Path = SYS) -> int:
    """min(affinity, cgroup CPU quota rounded up), at least 1. Quota: see `cgroup_quota`."""
    affinity = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    quota = cgroup_quota(proc, sys)
    return max(1, affinity if quota is None else min(affinity, math.ceil(quota)))


def intra_op_threads(asked: Sequence[int], force: bool = False) -> tuple[int, ...]:
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


def cgroup_quota(proc: Path = PROC, sys: Path = SYS) -> float | None:
    """The tightest CPU quota on the way to this process's cgroup, in cores; None where there is none.

    Source: the kernel's documentation of cpu.max (cgroup v2) and of cpu.cfs_quota_us, where -1 is no limit (v1).
    """
    quotas = []
    for folder in cpu_cgroups(proc, sys):
        limit, span = (*(read_text(folder / "cpu.max") or "").split(), "", "")[:2]
        quota = to_int(limit) if limit else read_number(folder / "cpu.cfs_quota_us")
        period = to_int(span) if limit else read_number(folder / "cpu.cfs_period_us")
        if quota is not None and period is not None and quota > 0 and period > 0:
            quotas.append(quota / period)
    return min(quotas, default=None)


def cpu_cgroups(proc: Path = PROC, sys: Path = SYS) -> list[Path]:
    """As `cgroups`, of the CPU controller."""
    return cgroups("cpu", proc, sys)


def cgroups(controller: str, proc: Path = PROC, sys: Path = SYS) -> list[Path]:
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
        found += [folder for folder in folders if exists(folder) and folder not in found]
    return found

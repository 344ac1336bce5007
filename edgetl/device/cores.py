"""How many cores this process may really use."""

from __future__ import annotations

import math
import os
from pathlib import Path


def available_cores(proc: Path = Path("/proc"), sys: Path = Path("/sys")) -> int:
    """min(affinity, cgroup CPU quota rounded up), at least 1. Quota: see `cgroup_quota`."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cgroup_quota(proc, sys)
    return max(1, affinity if quota is None else min(affinity, math.ceil(quota)))


def cgroup_quota(proc: Path = Path("/proc"), sys: Path = Path("/sys")) -> float | None:
    """The tightest CPU quota on the way to this process's cgroup, in cores; None where there is none.

    Source: the kernel's documentation of cpu.max (cgroup v2) and of cpu.cfs_quota_us, where -1 is no limit (v1).
    """
    quotas = []
    for folder in cpu_cgroups(proc, sys):
        try:
            if (folder / "cpu.max").is_file():
                quota, period = (folder / "cpu.max").read_text().split()[:2]
            else:
                quota, period = ((folder / f"cpu.cfs_{part}_us").read_text().strip() for part in ("quota", "period"))
            if quota != "max" and int(quota) > 0:
                quotas.append(int(quota) / int(period))
        except (OSError, ValueError, ZeroDivisionError):
            continue
    return min(quotas, default=None)


def cpu_cgroups(proc: Path = Path("/proc"), sys: Path = Path("/sys")) -> list[Path]:
    """The folders of the CPU controller from its root to this process's group, of cgroup v1 and v2; those that exist.

    In a container the path in /proc/self/cgroup may be the host's: the root is then the container's own group.
    """
    try:
        lines = (proc / "self/cgroup").read_text().splitlines()
    except OSError:
        return []
    found: list[Path] = []
    for line in lines:
        number, controllers, group = (*line.split(":", 2), "", "")[:3]
        if number == "0" and not controllers:
            roots = [sys / "fs/cgroup", sys / "fs/cgroup/unified"]
        elif "cpu" in controllers.split(","):
            roots = [sys / "fs/cgroup" / controllers, sys / "fs/cgroup/cpu"]
        else:
            continue
        parts = Path(group.strip("/")).parts
        folders = (root / Path(*parts[:depth]) for root in roots for depth in range(len(parts) + 1))
        found += [folder for folder in folders if folder.is_dir() and folder not in found]
    return found

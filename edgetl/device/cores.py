"""How many cores this process may really use."""

from __future__ import annotations

import math
import os
from pathlib import Path


def available_cores(proc: Path = Path("/proc"), sys: Path = Path("/sys")) -> int:
    """min(affinity, cgroup CPU quota rounded up), at least 1. Quota: cpu.max of cgroup v2 (kernel documentation), any level."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cgroup_quota(proc, sys)
    return max(1, affinity if quota is None else min(affinity, math.ceil(quota)))


def cgroup_quota(proc: Path = Path("/proc"), sys: Path = Path("/sys")) -> float | None:
    """The tightest CPU quota on the way to this process's cgroup, in cores; None where there is none."""
    root = sys / "fs/cgroup"
    try:
        lines = (proc / "self/cgroup").read_text().splitlines()
    except OSError:
        return None
    group = next((line[3:] for line in lines if line.startswith("0::")), "/").strip("/")
    folders = [root, *(root / Path(*Path(group).parts[: depth + 1]) for depth in range(len(Path(group).parts)))]
    quotas = []
    for folder in folders:
        try:
            quota, period = (folder / "cpu.max").read_text().split()[:2]
            if quota != "max":
                quotas.append(int(quota) / int(period))
        except (OSError, ValueError):
            continue
    return min(quotas, default=None)

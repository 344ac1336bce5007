"""How much memory this process may still take."""

from __future__ import annotations

from pathlib import Path

from edgetl.device.cores import cpu_cgroups

_UNKNOWN = 2 * 2**30


def free_memory_bytes(proc: Path = Path("/proc"), sys: Path = Path("/sys")) -> int:
    """What the kernel counts as available, or what the cgroups leave where that is less; 2 GiB where neither says.

    Source: the kernel's documentation of MemAvailable in /proc/meminfo and of memory.max, memory.current and memory.stat (cgroup v2).
    """
    free = [amount for amount in (_available(proc), *map(_left, cpu_cgroups(proc, sys))) if amount is not None]
    return max(0, min(free, default=_UNKNOWN))


def _available(proc: Path) -> int | None:
    try:
        lines = (proc / "meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _left(group: Path) -> int | None:
    try:
        limit, used = ((group / f"memory.{name}").read_text().strip() for name in ("max", "current"))
        # Files that were read count as used, though the kernel drops them as soon as memory is wanted.
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return int(limit) - int(used) + int(statistics.get("inactive_file", 0))
    except (OSError, ValueError):  # no such controller, or "max": no limit
        return None

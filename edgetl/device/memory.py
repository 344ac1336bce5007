"""How much memory this process may still take, and how much it holds."""

from __future__ import annotations

from pathlib import Path

from edgetl.device.cores import cpu_cgroups
from edgetl.device.kernel_files import PROC, SYS, read_bytes, read_number, read_numbers

_UNKNOWN = 2 * 2**30


def free_memory_bytes(proc: Path = PROC, sys: Path = SYS) -> int:
    """What the kernel counts as available, or what the cgroups leave where that is less; 2 GiB where neither says.

    Source: the kernel's documentation of MemAvailable in /proc/meminfo and of memory.max, memory.current and memory.stat (cgroup v2).
    """
    free = [amount for amount in (read_bytes(proc / "meminfo", "MemAvailable"), *map(_left, cpu_cgroups(proc, sys))) if amount is not None]
    return max(0, min(free, default=_UNKNOWN))


def resident_memory_bytes(proc: Path = PROC) -> int | None:
    """What this process holds in memory now; None where the kernel does not tell."""
    return read_bytes(proc / "self/status", "VmRSS")


def _left(group: Path) -> int | None:
    limit, used = (read_number(group / f"memory.{name}") for name in ("max", "current"))
    if limit is None or used is None:  # no such controller, or "max": no limit
        return None
    # Files that were read count as used, though the kernel drops them as soon as memory is wanted.
    return limit - used + read_numbers(group / "memory.stat").get("inactive_file", 0)

"""Reading what the kernel shows in /proc and /sys: absent, unreadable and malformed are all None."""

from __future__ import annotations

import math
from pathlib import Path

PROC, SYS = Path("/proc"), Path("/sys")
_MAX_COUNTER_VALUE = 2**64
"""The kernel's counters are at most this wide; what is longer is no number of its."""


def read_text(path: Path) -> str | None:
    """The file without the white space and NUL bytes around it; None where nothing is left."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0 \n\t") or None
    except (OSError, ValueError):
        return None


def read_lines(path: Path) -> list[str]:
    """The file's lines; none where it cannot be read."""
    return (read_text(path) or "").splitlines()


def read_int(path: Path) -> int | None:
    """The whole number that the file holds, and nothing else."""
    return to_int(read_text(path))


def read_named_ints(path: Path) -> dict[str, int]:
    """Lines of a name and a whole number, as in cgroup's cpu.stat; other lines are left out."""
    pairs = (line.split() for line in read_lines(path))
    return {
        pair[0]: number
        for pair in pairs
        if len(pair) == 2 and (number := to_int(pair[1])) is not None
    }


def read_size_bytes(path: Path, name: str) -> int | None:
    """A line such as `MemTotal:  948000 kB` (proc_meminfo(5)), in bytes."""
    for line in read_lines(path):
        words = line.split()
        if len(words) == 3 and words[0] == f"{name}:" and words[2] == "kB":
            amount = to_int(words[1])
            return None if amount is None or amount < 0 else amount * 1024
    return None


def to_int(text: str | None) -> int | None:
    """A whole number as the kernel writes it."""
    try:
        number = int(text or "")
    except ValueError:
        return None
    return number if abs(number) < _MAX_COUNTER_VALUE else None


def to_float(text: str | None) -> float | None:
    """A finite number: JSON has no other."""
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def path_exists(path: Path) -> bool:
    """Whether there is such a file; one that this process may not see is not there for it."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False

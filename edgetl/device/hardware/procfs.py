"""Read files in /proc and /sys. Absent, unreadable and malformed values are all None."""

from __future__ import annotations

import math
from pathlib import Path

PROC, SYS = Path("/proc"), Path("/sys")
_MAX_COUNTER_VALUE = 2**64
"""Exclusive upper bound of the kernel's counters; larger numbers are malformed."""


def read_text(path: Path) -> str | None:
    """Return a file's text without surrounding white space and NUL bytes; None if empty."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0 \n\t") or None
    except (OSError, ValueError):
        return None


def read_lines(path: Path) -> list[str]:
    """Return a file's lines; an empty list if it cannot be read."""
    return (read_text(path) or "").splitlines()


def read_int(path: Path) -> int | None:
    """Return the integer in a file that contains nothing else."""
    return to_int(read_text(path))


def read_named_ints(path: Path) -> dict[str, int]:
    """Return the lines of a name and an integer, as in cgroup's cpu.stat; skip other lines."""
    pairs = (line.split() for line in read_lines(path))
    return {
        pair[0]: number
        for pair in pairs
        if len(pair) == 2 and (number := to_int(pair[1])) is not None
    }


def read_size_bytes(path: Path, name: str) -> int | None:
    """Return the value of a line such as `MemTotal:  948000 kB` (proc_meminfo(5)) in bytes."""
    for line in read_lines(path):
        words = line.split()
        if len(words) == 3 and words[0] == f"{name}:" and words[2] == "kB":
            kibibytes = to_int(words[1])
            if kibibytes is None or kibibytes < 0:
                return None
            return kibibytes * 1024
    return None


def to_int(text: str | None) -> int | None:
    """Parse an integer; None if malformed."""
    try:
        number = int(text or "")
    except ValueError:
        return None
    return number if abs(number) < _MAX_COUNTER_VALUE else None


def to_float(text: str | None) -> float | None:
    """Parse a finite number; None if malformed, infinite or NaN, which JSON cannot represent."""
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def path_exists(path: Path) -> bool:
    """Return whether a path exists and this process may see it."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False

"""Is this processor real, or does another one play it?"""

from __future__ import annotations

import os
import platform
from pathlib import Path

from edgetl.device.kernel_files import PROC, read_lines, read_text

EMULATED = "EDGETL_EMULATED"
"""Set to anything, this says that the processor is emulated, where nothing in /proc would."""
_FAMILIES = {"x86": ("x86", "i386", "i486", "i586", "i686", "amd64"), "arm": ("arm", "aarch64")}
_CPUINFO = {"x86": "flags", "arm": "CPU implementer"}
"""The line of /proc/cpuinfo that a family's kernel writes and no other."""


def emulated(proc: Path = PROC, machine: str | None = None) -> bool:
    """Whether programs for another kind of processor run here, as qemu-user and binfmt_misc let them.

    The emulator answers for `uname` but the kernel's own files stay as they are: its architecture (since Linux 6.1) and, unless
    the emulator feigns it, the host's /proc/cpuinfo. 32-bit programs on a 64-bit kernel of the same family are not emulated.

    Args:
        proc: where /proc is.
        machine: what programs are told that the machine is; None takes what this one is told.
    """
    if os.environ.get(EMULATED):
        return True
    told = _family(machine or platform.machine())
    kernel = _family(read_text(proc / "sys/kernel/arch") or "")
    fields = {line.partition(":")[0].strip() for line in read_lines(proc / "cpuinfo")}
    shown = next((family for family, field in _CPUINFO.items() if field in fields), None)
    return told is not None and any(family not in (None, told) for family in (kernel, shown))


def _family(machine: str) -> str | None:
    return next(
        (family for family, starts in _FAMILIES.items() if machine.lower().startswith(starts)), None
    )

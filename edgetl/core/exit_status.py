"""Exit statuses of child processes in words."""

from __future__ import annotations

import signal

_CAUSES = {
    "SIGKILL": "often: out of memory",
    "SIGILL": "illegal instruction, usually one that this CPU lacks",
}


def is_illegal_instruction(status: int) -> bool:
    """Return whether a process was killed for an instruction that the CPU does not know."""
    return status == -signal.SIGILL


def describe_exit_status(status: int) -> str:
    """Return how a process ended, such as "exited with status 1" or "was killed by SIGSEGV".

    Args:
        status: the return code of `subprocess`, negative after a signal.
    """
    if status >= 0:
        return f"exited with status {status}"
    known_numbers = {item.value for item in signal.Signals}
    name = signal.Signals(-status).name if -status in known_numbers else f"signal {-status}"
    cause = f" ({_CAUSES[name]})" if name in _CAUSES else ""
    return f"was killed by {name}{cause}"

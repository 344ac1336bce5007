"""Exit codes of the program, the same for every command; docs/reference/exit-codes.md lists them."""

from __future__ import annotations

import signal
from enum import IntEnum


class ExitCode(IntEnum):
    """Status with which the program ends."""

    OK = 0
    USER_ERROR = 1
    """An error that the user can fix."""
    USAGE = 2
    """A wrong command line; Click's own."""
    BUG = 3
    FAILED_CHECK = 4
    """A limit is exceeded, the data have errors, or a variant does not match its reference."""
    UNDECIDED = 5
    """The measurements are inconclusive for a limit, or the data have only warnings."""
    HANGUP = 128 + signal.SIGHUP
    INTERRUPTED = 128 + signal.SIGINT
    TERMINATED = 128 + signal.SIGTERM

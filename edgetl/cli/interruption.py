"""Handling of signals: requests to end are handled like Ctrl-C, crashes print a stack."""

from __future__ import annotations

import faulthandler
import signal
from types import FrameType

_received_signals: list[int] = []


def install_signal_handlers() -> None:
    """Forward SIGTERM and SIGHUP to the current handler of SIGINT, and print a stack on a crash.

    SIGTERM and SIGHUP come from containers, batch systems and closed terminals. A signal that is
    ignored stays ignored: `nohup` and some supervisors start a program with SIGHUP ignored so that
    it outlives its terminal.
    """
    # `predict` runs a model in this process. Without the handler, a runtime that uses an
    # instruction that the CPU lacks would end it without a word on standard error.
    faulthandler.enable(2, all_threads=False)
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _forward_to_sigint)


def interrupted_exit_status() -> int:
    """Return the exit status of an interrupted command: 128 + signal number, 130 for Ctrl-C."""
    return 128 + (_received_signals[0] if _received_signals else signal.SIGINT)


def _forward_to_sigint(number: int, frame: FrameType | None) -> None:
    _received_signals.append(number)
    handler = signal.getsignal(signal.SIGINT)
    if callable(handler):
        handler(signal.SIGINT, frame)
    else:
        # SIGINT is ignored, as in programs that a shell starts in the background.
        raise KeyboardInterrupt

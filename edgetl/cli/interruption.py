"""Treat SIGTERM and SIGHUP as Ctrl-C, as containers, batch systems and closed terminals send them."""

from __future__ import annotations

import signal
from types import FrameType

_received_signals: list[int] = []


def install_signal_handlers() -> None:
    """Let SIGTERM and SIGHUP do what SIGINT does at that moment; a signal that is ignored stays so.

    `nohup` and some supervisors start a program with SIGHUP ignored: it then outlives its terminal,
    as asked.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _forward_to_sigint)


def interrupted_exit_status() -> int:
    """Return the exit status of an interrupted command: 128 and the signal's number, 130 for Ctrl-C."""
    return 128 + (_received_signals[0] if _received_signals else signal.SIGINT)


def _forward_to_sigint(number: int, frame: FrameType | None) -> None:
    _received_signals.append(number)
    handler = signal.getsignal(signal.SIGINT)
    if callable(handler):
        handler(signal.SIGINT, frame)
    else:
        # Started in the background by a shell, which ignores SIGINT there.
        raise KeyboardInterrupt

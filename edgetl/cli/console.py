"""The terminal: tables and notes on standard output, progress and errors on standard error."""

from __future__ import annotations

import atexit
import gc
import io
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO, cast

from edgetl.core.untrusted_text import escape_control_characters, escape_json_controls

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console
    from rich.segment import Segment


NON_TERMINAL_WIDTH = 200
"""Columns where output goes to a file or a pipe: paths and messages are not folded for a screen that is not there."""


class _LazyConsole:
    """A rich Console that is made when something is printed: help and completion do not pay for it."""

    def __init__(self, stderr: bool) -> None:
        object.__setattr__(
            self,
            "_options",
            {"stderr": stderr, "width": _console_width(sys.stderr if stderr else sys.stdout)},
        )

    def _get_console(self) -> Console:
        try:
            made: Console = object.__getattribute__(self, "_instance")
        except AttributeError:
            made = _console_class()(highlight=False, **object.__getattribute__(self, "_options"))
            object.__setattr__(self, "_instance", made)
        return made

    def __getattr__(self, name: str) -> Any:
        return getattr(self._get_console(), name)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(self._get_console(), name, value)

    def __enter__(self) -> Any:
        return self._get_console().__enter__()

    def __exit__(self, *error: Any) -> None:
        self._get_console().__exit__(*error)


def _console_class() -> type[Console]:
    from rich.console import Console
    from rich.segment import Segment

    class HarmlessConsole(Console):
        """Shows control characters of what it prints instead of sending them to the terminal."""

        def render(self, renderable: Any, options: Any = None) -> Iterator[Segment]:
            for segment in super().render(renderable, options):
                text = escape_control_characters(segment.text)
                # Segments that rich itself makes to steer the terminal are marked as such.
                yield (
                    segment
                    if segment.control or text == segment.text
                    else Segment(text, segment.style)
                )

    return HarmlessConsole


def _console_width(stream: TextIO | None) -> int | None:
    return (
        None
        if (stream is not None and stream.isatty()) or "COLUMNS" in os.environ
        else NON_TERMINAL_WIDTH
    )


out = cast("Console", _LazyConsole(stderr=False))
"""Results."""
err = cast("Console", _LazyConsole(stderr=True))
"""Progress, warnings and errors: never mixed into --json."""


class _PipeTolerantStream(io.FileIO):
    """A standard stream whose reader (head, less) may leave: nothing is wrong then, and what was begun is done to its end."""

    is_pipe_closed = False

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            self.is_pipe_closed = True
            return len(memoryview(data).cast("B"))


_PIPE_TOLERANT_STREAMS: dict[str, _PipeTolerantStream] = {}


def tolerate_closed_pipes() -> None:
    """From now on standard output and standard error may be closed at the other end, or from the start: what is written is dropped.

    What their encoding lacks is written as an escape: an ASCII terminal must not end a command that has done its work.
    """
    _open_closed_streams()
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and stream is getattr(sys, f"__{name}__"):
            raw = _PIPE_TOLERANT_STREAMS[name] = _PipeTolerantStream(
                stream.fileno(), "w", closefd=False
            )
            buffered = io.BufferedWriter(raw)
            layout = {
                key: getattr(stream, key)
                for key in ("encoding", "errors", "line_buffering", "write_through")
            }
            if layout["errors"] == "strict" and not _is_unicode(stream.encoding):
                layout["errors"] = "backslashreplace"
            setattr(sys, name, io.TextIOWrapper(buffered, **layout))


def _open_closed_streams() -> None:
    # `>&-`: the next file to be opened would take the number, and be written into by whatever prints.
    for number, name in ((0, "stdin"), (1, "stdout"), (2, "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free, which is this one
        if getattr(sys, name) is None:
            stream = open(number, "r" if number == 0 else "w", encoding="utf-8", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)


def _is_unicode(encoding: str) -> bool:
    return encoding.lower().replace("-", "").replace("_", "").startswith("utf")


def is_stdout_open() -> bool:
    """Whether anybody may still read standard output."""
    return not (
        "stdout" in _PIPE_TOLERANT_STREAMS and _PIPE_TOLERANT_STREAMS["stdout"].is_pipe_closed
    )


def print_json(content: Any, indent: int | None = None) -> None:
    """One JSON object on standard output, and nothing else."""
    escaped = not _is_unicode(sys.stdout.encoding or "utf-8")
    sys.stdout.write(
        escape_json_controls(
            json.dumps(content, ensure_ascii=escaped, allow_nan=False, indent=indent)
        )
        + "\n"
    )


@contextmanager
def heavy_imports() -> Iterator[None]:
    """Import inside; what was made is then taken for permanent.

    PyTorch's modules are half a million objects that live until the end: collecting while they are made costs a fifth of the import, and
    every later collection would go through them again.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
        # Extensions look for leaks when the interpreter ends, and would report everything that is frozen.
        atexit.register(gc.unfreeze)

"""Terminal output: results on standard output, progress and errors on standard error."""

from __future__ import annotations

import atexit
import gc
import io
import json
import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO, cast

from edgetl.core.untrusted_text import escape_control_characters, escape_json_controls

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console
    from rich.segment import Segment
    from rich.table import Table

VERDICT_STYLES = {
    "faster": "bold green",
    "slower": "bold red",
    "inconclusive": "yellow",
    "noisy": "yellow",
}
NON_TERMINAL_WIDTH = 200
"""Columns if the output is a file or a pipe, so that paths and messages are not wrapped."""


class _LazyConsole:
    """A rich Console created on first use, so that help and completion start without rich."""

    def __init__(self, stderr: bool) -> None:
        object.__setattr__(
            self,
            "_options",
            {"stderr": stderr, "width": _console_width(sys.stderr if stderr else sys.stdout)},
        )

    def _get_console(self) -> Console:
        try:
            console: Console = object.__getattribute__(self, "_instance")
        except AttributeError:
            console = _console_class()(highlight=False, **object.__getattribute__(self, "_options"))
            object.__setattr__(self, "_instance", console)
        return console

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
        """Console that escapes control characters instead of sending them to the terminal."""

        def render(self, renderable: Any, options: Any = None) -> Iterator[Segment]:
            for segment in super().render(renderable, options):
                text = escape_control_characters(segment.text)
                # rich marks the segments that it creates to control the terminal.
                if segment.control or text == segment.text:
                    yield segment
                else:
                    yield Segment(text, segment.style)

    return HarmlessConsole


def _console_width(stream: TextIO | None) -> int | None:
    is_terminal = stream is not None and stream.isatty()
    return None if is_terminal or "COLUMNS" in os.environ else NON_TERMINAL_WIDTH


out = cast("Console", _LazyConsole(stderr=False))
"""Console for results."""
err = cast("Console", _LazyConsole(stderr=True))
"""Console for progress, warnings and errors, which must not mix with the output of --json."""


class _PipeTolerantStream(io.FileIO):
    """Standard stream that drops output once its reader (head, less) has closed the pipe.

    This is not an error: the command finishes its work.
    """

    is_pipe_closed = False

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            self.is_pipe_closed = True
            return len(memoryview(data).cast("B"))


_PIPE_TOLERANT_STREAMS: dict[str, _PipeTolerantStream] = {}


def tolerate_closed_pipes() -> None:
    """Let the command finish if standard output or error is closed, at the start or later.

    Characters that the encoding lacks are written as escapes: a command must not fail after its
    work because the terminal is ASCII.
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
    # After `>&-` the next opened file would get the free descriptor, and prints would end up in it.
    for number, name in ((0, "stdin"), (1, "stdout"), (2, "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free descriptor, which is this one
        if getattr(sys, name) is None:
            mode = "r" if number == 0 else "w"
            stream = open(number, mode, encoding="utf-8", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)


def _is_unicode(encoding: str) -> bool:
    return encoding.lower().replace("-", "").replace("_", "").startswith("utf")


def is_stdout_open() -> bool:
    """Return whether standard output may still have a reader."""
    stream = _PIPE_TOLERANT_STREAMS.get("stdout")
    return stream is None or not stream.is_pipe_closed


def print_json(content: Any, indent: int | None = None) -> None:
    """Print `content` as one JSON object on standard output."""
    escape_non_ascii = not _is_unicode(sys.stdout.encoding or "utf-8")
    text = json.dumps(content, ensure_ascii=escape_non_ascii, allow_nan=False, indent=indent)
    sys.stdout.write(escape_json_controls(text) + "\n")


def verdict_markup(verdict: str) -> str:
    """Return the verdict of a comparison of latencies in its color."""
    return f"[{VERDICT_STYLES[verdict]}]{verdict}[/]"


def plain_table() -> Table:
    """Return an empty table whose only line is the one below the headings."""
    from rich import box
    from rich.table import Table

    return Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        header_style="bold",
        show_edge=False,
    )


@contextmanager
def heavy_imports() -> Iterator[None]:
    """Pause garbage collection while importing large packages, and freeze the new objects.

    PyTorch's modules create half a million objects that live until exit. Collecting during the
    import takes a fifth of its time, and every later collection would traverse them again.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
        # Some extensions check for leaks at exit and would report every frozen object.
        atexit.register(gc.unfreeze)

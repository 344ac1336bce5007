"""Processes forked from a server that has PyTorch imported, which takes seconds.

Not for tests of start-up, imports, signals or environment variables of libraries.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import IO

import pytest

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    [
        "edgetl.train.finetune", "edgetl.export.exporter", "albumentations", "imagehash",
        "onnxscript", "matplotlib.backends.backend_agg", "torch._dynamo", "tests.helpers.stock_model",
    ]
)  # fmt: skip


def start(
    arguments: list[str],
    folder: Path,
    output: Path,
    prepare: Callable[[], None] | None = None,
) -> ForkServerProcess:
    """Start the program.

    Args:
        arguments: command line, without the program's name.
        folder: working directory.
        output: folder for its stdout and stderr, in the files `out` and `err`.
        prepare: called first in the process.
    """
    process = PROCESSES.Process(
        target=_run_program, args=(arguments, dict(os.environ), folder, output, prepare)
    )
    process.start()
    return process


def program(
    arguments: list[str], folder: Path, output: Path, seconds: float
) -> subprocess.CompletedProcess[str]:
    """Run the program and return its exit status and output.

    Raises:
        subprocess.TimeoutExpired: it took longer than `seconds`.
    """
    process = start(arguments, folder, output)
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        raise subprocess.TimeoutExpired(["edgetl", *arguments], seconds)
    return subprocess.CompletedProcess(
        ["edgetl", *arguments],
        process.exitcode,
        (output / "out").read_text(),
        (output / "err").read_text(),
    )


def _run_program(
    arguments: list[str],
    environment: dict[str, str],
    folder: Path,
    output: Path,
    prepare: Callable[[], None] | None,
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for name, descriptor in (("out", 1), ("err", 2)):
        with (output / name).open("wb") as stream:
            os.dup2(stream.fileno(), descriptor)
    from edgetl.cli.app import main

    if prepare is not None:
        prepare()
    sys.argv = ["edgetl", *arguments]
    main()


def fork_workers(module: ModuleType, patch: pytest.MonkeyPatch) -> None:
    """Let `module`, which starts its workers with `subprocess.Popen`, fork them."""
    patch.setattr(
        module, "subprocess", SimpleNamespace(**{**vars(subprocess), "Popen": ForkedPopen})
    )


class ForkedPopen:
    """`subprocess.Popen` of `python -P -m MODULE ARGUMENTS` with pipes."""

    def __init__(
        self,
        command: list[str],
        *,
        stdin: int,
        stdout: int,
        stderr: IO[bytes],
        env: Mapping[str, str],
        start_new_session: bool,
        text: bool = False,
        encoding: str | None = None,
    ) -> None:
        _, isolation, module_option, module, *arguments = command
        assert (isolation, module_option) == ("-P", "-m")
        assert stdin == stdout == subprocess.PIPE
        assert start_new_session
        child_stdin, write_end = os.pipe()
        read_end, child_stdout = os.pipe()
        streams = [
            Connection(os.dup(stream)) for stream in (child_stdin, child_stdout, stderr.fileno())
        ]
        self._process = PROCESSES.Process(
            target=_run_module, args=(module, arguments, dict(env), streams)
        )
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid
        for stream in streams:
            stream.close()
        os.close(child_stdin)
        os.close(child_stdout)
        self.stdin = os.fdopen(write_end, "w" if text else "wb", encoding=encoding)
        self.stdout = os.fdopen(read_end, "r" if text else "rb", encoding=encoding)

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self._process.name, timeout or 0)
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def communicate(self) -> None:
        for pipe in (self.stdin, self.stdout):
            with suppress(BrokenPipeError):
                pipe.close()
        self.wait()


def _run_module(
    module: str, arguments: list[str], environment: dict[str, str], streams: list[Connection]
) -> None:
    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    for descriptor, stream in enumerate(streams):
        os.dup2(stream.fileno(), descriptor)
        stream.close()
    sys.stdin = os.fdopen(0, closefd=False)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__")

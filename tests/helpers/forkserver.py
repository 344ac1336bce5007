"""Run the program in processes forked from a server that has PyTorch imported, to save seconds."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from multiprocessing.context import ForkServerProcess
from pathlib import Path

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    [
        "edgetl.train.finetune", "edgetl.export.exporter", "albumentations", "imagehash",
        "onnxscript", "matplotlib.backends.backend_agg", "torch._dynamo", "tests.helpers.stock_model",
    ]
)  # fmt: skip


def start(arguments: list[str], folder: Path, output: Path) -> ForkServerProcess:
    """Start the program.

    Args:
        arguments: command line, without the program's name.
        folder: working directory.
        output: folder for its stdout and stderr, in the files `out` and `err`.
    """
    process = PROCESSES.Process(
        target=_run_program, args=(arguments, dict(os.environ), folder, output)
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
    arguments: list[str], environment: dict[str, str], folder: Path, output: Path
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for name, descriptor in (("out", 1), ("err", 2)):
        with (output / name).open("wb") as stream:
            os.dup2(stream.fileno(), descriptor)
    from edgetl.cli.app import main

    sys.argv = ["edgetl", *arguments]
    main()

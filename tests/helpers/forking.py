"""Processes forked from one that has made the heavy imports: each is a process of its own, and none waits seconds for PyTorch."""

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
        "edgetl.train.finetune", "edgetl.export.exporter", "albumentations", "imagehash", "onnxscript", "matplotlib.backends.backend_agg",
        "torch._dynamo",
    ]
)  # fmt: skip


def start(arguments: list[str], folder: Path, said: Path) -> ForkServerProcess:
    """The program, begun in `folder`; what it says goes into the files `out` and `err` of the folder `said`."""
    process = PROCESSES.Process(target=_work, args=(arguments, dict(os.environ), folder, said))
    process.start()
    return process


def program(
    arguments: list[str], folder: Path, said: Path, seconds: float
) -> subprocess.CompletedProcess[str]:
    """The same, waited for."""
    process = start(arguments, folder, said)
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        raise subprocess.TimeoutExpired(["edgetl", *arguments], seconds)
    return subprocess.CompletedProcess(
        ["edgetl", *arguments],
        process.exitcode,
        (said / "out").read_text(),
        (said / "err").read_text(),
    )


def _work(arguments: list[str], environment: dict[str, str], folder: Path, said: Path) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for name, descriptor in (("out", 1), ("err", 2)):
        with (said / name).open("wb") as stream:
            os.dup2(stream.fileno(), descriptor)
    from edgetl.cli.app import main

    sys.argv = ["edgetl", *arguments]
    main()

"""Starting worker processes, giving them their turns, and telling what became of them."""

from __future__ import annotations

import json
import math
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import edgetl
from edgetl.core.errors import BenchError, error_from_json
from edgetl.device.bench.job import WorkerJob
from edgetl.device.hardware.procfs import PROC, read_text

IDLE_TIMEOUT_S = 600.0
"""Without using the CPU: compilers, drivers and swapping all use some of it in ten minutes, a deadlock does not."""
STARTUP_TIMEOUT_S = 2 * 3600.0
"""Until the model has answered once: on a small board TensorRT builds an engine for half an hour, torch.compile compiles for minutes."""
TASK_TIMEOUT_S = 4 * 3600.0
"""Gate or profile: the model is opened more than once, and answers up to a hundred times; compilers may run before each."""
INFERENCE_TIMEOUT_S = 60.0
"""For an answer of onnxruntime on a CPU, where nothing is compiled: a model that loops without end is not waited for."""
TIMEOUT_MARGIN_S = 600.0
"""On top of whatever is planned: a swapped-out process has to come back, and answers have to be written."""
_AUTOTUNE_RUNS = 10
_SLOWDOWN_FACTOR = 10
"""Times as long as planned: a hot board halves its clock, and others may want the cores."""


def job_timeout_s(job: WorkerJob) -> float:
    """For a job's answer, once everything that was asked piece by piece is done; seconds."""
    if job.task == "measure":
        return TIMEOUT_MARGIN_S
    if job.task == "gate" and job.runtime == "onnxruntime" and job.source.provider == "cpu":
        return TIMEOUT_MARGIN_S + INFERENCE_TIMEOUT_S * (
            len(job.files) * (1 + job.source.batch) + _AUTOTUNE_RUNS
        )
    return TASK_TIMEOUT_S + job.seconds


def step_timeout_s(job: WorkerJob, piece: str, run_s: float) -> float:
    """For one piece of a measurement; seconds.

    Args:
        job: what is measured.
        piece: as the worker is asked for it: `warm-up S`, `slice S`, `paced S`.
        run_s: what the process's first run took; those after it are faster.
    """
    protocol, kind = job.protocol, piece.partition(" ")[0]
    if kind == "warm-up":
        # Its time is looked at after two windows, then after each.
        planned = protocol.warmup_seconds + 3 * max(
            protocol.window_seconds, protocol.window_runs * run_s
        )
    elif kind == "slice":
        runs = protocol.slice_warm_runs + math.ceil(protocol.block_runs / protocol.slices)
        planned = max(protocol.block_seconds / protocol.slices, runs * run_s)
    else:
        planned = protocol.paced_seconds_at_most + idle_allowance_s(job, piece) + run_s
    return TIMEOUT_MARGIN_S + _SLOWDOWN_FACTOR * planned


def idle_allowance_s(job: WorkerJob, piece: str) -> float:
    """How long the process sleeps in a piece because it was asked to: between two paced arrivals; seconds."""
    rates = {stream.name: stream.rate for stream in job.streams}
    rate = rates.get(piece.partition(" ")[2])
    return 0.0 if rate is None else 1 / rate


STDERR_TAIL_LINES = 12
_IDLE_POLL_S, _IDLE_CPU_SHARE = 0.01, 0.05
_MAX_SPIN_S = 0.2
_ACTIVITY_POLL_S = 10.0
"""Between two looks at what a silent process does: a slice is over by then, and not disturbed."""
_MIN_ACTIVITY_NS = 10_000_000
_STACK_DUMP_WAIT_S, _KILL_WAIT_S = 1.0, 10.0
_STACK_HEADER = "Stack (most recent call first):"


def run_job(job: WorkerJob, folder: Path) -> dict[str, Any]:
    """Run `job` in a fresh process and wait for it; nothing else of edgetl's runs meanwhile.

    Args:
        job: what to do.
        folder: an existing folder for the exchange of files.

    Raises:
        BenchError: the process died, or hung and was ended; its last words are in the message.
        EdgetlError: what the worker itself found wrong, as the class that it raised.
    """
    with Worker(job, folder) as worker:
        return worker.result()


class Worker:
    """A process with one job, which it does piece by piece as it is asked to; between two pieces it sleeps."""

    def __init__(self, job: WorkerJob, folder: Path) -> None:
        self._job, self._folder = job, Path(tempfile.mkdtemp(dir=folder))
        self._first_inference_s = 0.0
        question = self._folder / "job.json"
        question.write_text(job.to_json(), encoding="utf-8")
        with self._stderr_file.open("wb") as words:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-P",
                    "-m",
                    job.worker_module,
                    str(question),
                    str(self._result_file),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=words,
                env=make_worker_environment(job.source.threads),
                # Ctrl-C reaches this process alone, which then ends the worker: the answer to it is in one place.
                start_new_session=True,
            )

    def __enter__(self) -> Worker:
        """The process is ended at the block's end, whatever happened in it."""
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        # Where a driver holds it no signal reaches it: then it is left behind.
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_KILL_WAIT_S)
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):
                pipe.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def wait_until_ready(self) -> None:
        """The model is open, has answered once, and its threads sleep.

        Raises:
            EdgetlError: as `run_job`.
        """
        reply = (
            self._read_reply("opening the model", STARTUP_TIMEOUT_S) or self._raise_worker_error()
        )
        self._first_inference_s = float(reply.split()[1])
        wait_until_idle(self._process.pid)

    def request(self, piece: str) -> None:
        """Do one piece of the job and wait until it is done.

        Raises:
            EdgetlError: as `run_job`.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{piece}\n".encode())
            self._process.stdin.flush()
        except BrokenPipeError:
            self._raise_worker_error()
        if not self._read_reply(
            f"in `{piece}`",
            step_timeout_s(self._job, piece, self._first_inference_s),
            idle_allowance_s(self._job, piece),
        ):
            self._raise_worker_error()
        wait_until_idle(self._process.pid)

    def result(self) -> dict[str, Any]:
        """What the whole job gave.

        Raises:
            EdgetlError: as `run_job`.
        """
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        while self._read_reply("before its answer", job_timeout_s(self._job)):
            pass
        if self._wait_for_exit() != 0 or not self._result_file.is_file():
            self._raise_worker_error()
        content: dict[str, Any] = json.loads(self._result_file.read_text(encoding="utf-8"))
        if "error" in content:
            raise error_from_json(content["error"])
        result: dict[str, Any] = content["answer"]
        return result

    @property
    def _result_file(self) -> Path:
        return self._folder / "answer.json"

    @property
    def _stderr_file(self) -> Path:
        return self._folder / "words.txt"

    def _read_reply(self, doing: str, patience_s: float, pause_s: float = 0.0) -> bytes:
        """The process's next line; empty where it has ended. One that hangs is ended, see `patience`."""
        assert self._process.stdout is not None
        began = stirred = time.monotonic()
        asleep_s, spent = IDLE_TIMEOUT_S + pause_s, None
        while not select.select(
            [self._process.stdout], [], [], min(_ACTIVITY_POLL_S, patience_s, asleep_s)
        )[0]:
            now, used = time.monotonic(), _read_cpu_time_ns(self._process.pid, PROC)
            if used is None or spent is None or abs(used - spent) > _MIN_ACTIVITY_NS:
                stirred, spent = now, used
            if now - began >= patience_s:
                self._abort_hung(f"{doing}: no answer for {_format_duration(now - began)}")
            if now - stirred >= asleep_s:
                self._abort_hung(
                    f"{doing}: neither an answer nor any use of the CPU for {_format_duration(now - stirred)}"
                )
        return self._process.stdout.readline()

    def _abort_hung(self, doing: str) -> NoReturn:
        self._process.send_signal(signal.SIGUSR1)
        time.sleep(_STACK_DUMP_WAIT_S)
        self._process.kill()
        _, marked, stack = self._read_stderr().partition(_STACK_HEADER)
        where = (marked + stack).splitlines()[:STDERR_TAIL_LINES] or ["It did not say where."]
        job, source = self._job, self._job.source
        hung = f"The {job.task} process of {job.runtime} ({source.model.name}, {source.provider}) hung {doing}. It was ended."
        told = "Try another --provider or --threads, or leave this configuration out; if it stays, please report the lines above."
        raise BenchError("\n".join([hung, *where, told]))

    def _wait_for_exit(self) -> int:
        try:
            return self._process.wait(TIMEOUT_MARGIN_S)
        except subprocess.TimeoutExpired:
            self._abort_hung(f"on its way out: not gone after {_format_duration(TIMEOUT_MARGIN_S)}")

    def _raise_worker_error(self) -> NoReturn:
        if self._wait_for_exit() == 0 and self._result_file.is_file():
            raise error_from_json(
                json.loads(self._result_file.read_text(encoding="utf-8"))["error"]
            )
        raise BenchError(_crash_message(self._job, self._wait_for_exit(), self._read_stderr()))

    def _read_stderr(self) -> str:
        return self._stderr_file.read_text(encoding="utf-8", errors="replace")


def wait_until_idle(pid: int, proc: Path = PROC) -> None:
    """Wait until a process that has been told nothing also does nothing.

    Threads of a pool do not sleep at once when they run out of work: on two cores onnxruntime's were measured to spin for 40 ms and
    OpenMP's for 10, in which the next process would share a core with them. Where the kernel does not tell (proc_pid_schedstat), a
    fixed time.
    """
    give_up = time.monotonic() + _MAX_SPIN_S
    before = _read_cpu_time_ns(pid, proc)
    while time.monotonic() < give_up:
        time.sleep(_IDLE_POLL_S)
        now = _read_cpu_time_ns(pid, proc)
        if (
            before is not None
            and now is not None
            and now - before < _IDLE_CPU_SHARE * _IDLE_POLL_S * 1e9
        ):
            return
        before = now


def _read_cpu_time_ns(pid: int, proc: Path) -> int | None:
    """CPU time of all threads of a process."""
    spent = [
        (read_text(path) or "").partition(" ")[0]
        for path in (proc / str(pid) / "task").glob("*/schedstat")
    ]
    return sum(map(int, spent)) if spent and all(map(str.isdigit, spent)) else None


def make_worker_environment(threads: int) -> dict[str, str]:
    """This process's environment with every thread pool told the same number, and no telemetry."""
    pools = (
        "OMP_NUM_THREADS",
        "MKL_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "VECLIB_MAXIMUM_THREADS",
        "NUMEXPR_NUM_THREADS",
    )
    environment = {
        **os.environ,
        **dict.fromkeys(pools, str(threads)),
        "ORT_DISABLE_TELEMETRY": "1",
        "NO_ALBUMENTATIONS_UPDATE": "1",
        "PYTHONUTF8": "1",
    }
    root = Path(edgetl.__file__).resolve().parents[1]
    if root.name not in (
        "site-packages",
        "dist-packages",
    ):  # run from a checkout: the worker must find the same edgetl
        environment["PYTHONPATH"] = os.pathsep.join(
            filter(None, [str(root), os.environ.get("PYTHONPATH", "")])
        )
    return environment


def _format_duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes" if seconds >= 120 else f"{seconds:.0f} seconds"


def _crash_message(job: WorkerJob, code: int, words: str) -> str:
    cause = f"ended with status {code}"
    if code < 0:
        name = (
            signal.Signals(-code).name
            if -code in {item.value for item in signal.Signals}
            else str(-code)
        )
        cause = f"was ended by {name}" + (" (often: out of memory)" if name == "SIGKILL" else "")
    said = [line for line in words.splitlines() if line.strip()][-STDERR_TAIL_LINES:]
    lines = [f"The {job.task} process of {job.runtime} {cause}.", *(said or ["It said nothing."])]
    return "\n".join(
        [
            *lines,
            "If memory is short, close other programs or take a smaller model; else please report the lines above.",
        ]
    )

"""Worker processes: start them, request work step by step, detect hangs and crashes."""

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
from typing import NoReturn, TypeVar

import edgetl
from edgetl.core.errors import BenchError, error_from_json
from edgetl.core.exit_status import describe_exit_status, is_illegal_instruction
from edgetl.core.typed_json import parse_as
from edgetl.device.bench.job import WorkerJob
from edgetl.device.hardware.procfs import PROC, read_text

T = TypeVar("T")

IDLE_TIMEOUT_S = 600.0
"""Longest time without CPU use; compilers, drivers and swapping use some within ten minutes."""
STARTUP_TIMEOUT_S = 2 * 3600.0
"""Timeout of the first inference.

On a small board TensorRT builds an engine for half an hour, and torch.compile takes minutes.
"""
TASK_TIMEOUT_S = 4 * 3600.0
"""Timeout of gates and profiles.

They open the model more than once and run up to a hundred inferences, each possibly compiled first.
"""
INFERENCE_TIMEOUT_S = 60.0
"""Timeout per inference of ONNX Runtime on a CPU, where nothing is compiled.

It stops models that loop forever.
"""
TIMEOUT_MARGIN_S = 600.0
"""Margin on top of the planned time, for swapping the process back in and writing results."""
_AUTOTUNE_RUNS = 10
_SLOWDOWN_FACTOR = 10
"""Allowed slowdown: a hot board halves its clock, and other programs may use the cores."""


def job_timeout_s(job: WorkerJob) -> float:
    """Return the timeout for a job's result once all its steps are done, in seconds."""
    if job.task == "measure":
        return TIMEOUT_MARGIN_S
    if job.task == "gate" and job.runtime == "onnxruntime" and job.source.provider == "cpu":
        inferences = len(job.files) * (1 + job.source.batch) + _AUTOTUNE_RUNS
        return TIMEOUT_MARGIN_S + INFERENCE_TIMEOUT_S * inferences
    return TASK_TIMEOUT_S + job.seconds


def step_timeout_s(job: WorkerJob, step: str, run_s: float) -> float:
    """Return the timeout for one step of a measurement, in seconds.

    Args:
        job: the measurement.
        step: the request to the worker: `warm-up S`, `slice S` or `paced S`.
        run_s: duration of the process's first inference, an upper bound for the later ones.
    """
    protocol = job.protocol
    kind = step.partition(" ")[0]
    if kind == "warm-up":
        # The worker checks the time after the first two windows, then after each.
        window_s = max(protocol.window_seconds, protocol.window_runs * run_s)
        planned_s = protocol.warmup_seconds + 3 * window_s
    elif kind == "slice":
        runs = protocol.slice_warm_runs + math.ceil(protocol.block_runs / protocol.slices)
        planned_s = max(protocol.block_seconds / protocol.slices, runs * run_s)
    else:
        planned_s = protocol.paced_seconds_at_most + idle_allowance_s(job, step) + run_s
    return TIMEOUT_MARGIN_S + _SLOWDOWN_FACTOR * planned_s


def idle_allowance_s(job: WorkerJob, step: str) -> float:
    """Return how long the worker may sleep between two paced arrivals of a step, in seconds."""
    rates = {workload.name: workload.rate for workload in job.streams}
    rate = rates.get(step.partition(" ")[2])
    return 0.0 if rate is None else 1 / rate


STDERR_TAIL_LINES = 12
_IDLE_POLL_S = 0.01
_IDLE_CPU_SHARE = 0.05
_MAX_SPIN_S = 0.2
_ACTIVITY_POLL_S = 10.0
"""Interval between two checks of a silent process, longer than a slice, so none disturbs it."""
_MIN_ACTIVITY_NS = 10_000_000
_STACK_DUMP_WAIT_S = 1.0
_KILL_WAIT_S = 10.0
_STACK_HEADER = "Stack (most recent call first):"


def run_job(job: WorkerJob, folder: Path, reply_type: type[T]) -> T:
    """Run `job` in a fresh process and return its result.

    Args:
        job: the work.
        folder: an existing folder for the files exchanged with the process.
        reply_type: type of the result, for `parse_as`.

    Raises:
        BenchError: the process crashed or hung; the message includes the end of its stderr.
        EdgetlError: the error that the worker itself raised, as the same class.
    """
    with Worker(job, folder) as worker:
        return worker.result(reply_type)


class Worker:
    """A process that runs one job step by step on request and sleeps in between."""

    def __init__(self, job: WorkerJob, folder: Path) -> None:
        self._job = job
        self._folder = Path(tempfile.mkdtemp(dir=folder))
        self._first_inference_s = 0.0
        job_file = self._folder / "job.json"
        job_file.write_text(job.encode(), encoding="utf-8")
        with self._stderr_file.open("wb") as stderr:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-P",
                    "-m",
                    job.worker_module,
                    str(job_file),
                    str(self._result_file),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=make_worker_environment(job.source.threads),
                # Ctrl-C must reach only this process, which then terminates the worker.
                start_new_session=True,
            )

    def __enter__(self) -> Worker:
        """Return the worker, which is killed at the end of the block."""
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        # A process blocked in a driver ignores signals and is left behind.
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_KILL_WAIT_S)
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):
                pipe.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def wait_until_ready(self) -> None:
        """Wait until the model is open, has run one inference, and its threads sleep.

        Raises:
            EdgetlError: see `run_job`.
        """
        reply = self._read_reply("opening the model", STARTUP_TIMEOUT_S)
        if not reply:
            self._raise_worker_error()
        self._first_inference_s = float(reply.split()[1])
        wait_until_idle(self._process.pid)

    def request(self, step: str) -> None:
        """Request one step of the job and wait until it is done.

        Raises:
            EdgetlError: see `run_job`.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{step}\n".encode())
            self._process.stdin.flush()
        except BrokenPipeError:
            self._raise_worker_error()
        if not self._read_reply(
            f"in `{step}`",
            step_timeout_s(self._job, step, self._first_inference_s),
            idle_allowance_s(self._job, step),
        ):
            self._raise_worker_error()
        wait_until_idle(self._process.pid)

    def result(self, reply_type: type[T]) -> T:
        """Finish the job and return its result, parsed as `reply_type`.

        Raises:
            EdgetlError: see `run_job`.
        """
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        while self._read_reply("before its result", job_timeout_s(self._job)):
            pass
        if self._wait_for_exit() != 0 or not self._result_file.is_file():
            self._raise_worker_error()
        content = self._read_result()
        if "error" in content:
            raise error_from_json(parse_as(dict[str, str], content["error"], "error"))
        return parse_as(reply_type, content["answer"], "the reply")

    def _read_result(self) -> dict[str, object]:
        content: dict[str, object] = json.loads(self._result_file.read_text(encoding="utf-8"))
        return content

    @property
    def _result_file(self) -> Path:
        return self._folder / "answer.json"

    @property
    def _stderr_file(self) -> Path:
        return self._folder / "stderr.txt"

    def _read_reply(self, activity: str, timeout_s: float, allowance_s: float = 0.0) -> bytes:
        """Return the process's next line, empty at its end; abort a process that hangs.

        Args:
            activity: what the process is doing, for the error message.
            timeout_s: the longest wait for a line.
            allowance_s: how long the process may sleep on top of `IDLE_TIMEOUT_S`.
        """
        stdout = self._process.stdout
        assert stdout is not None
        start = last_active = time.monotonic()
        idle_timeout_s = IDLE_TIMEOUT_S + allowance_s
        last_cpu_ns = None
        poll_s = min(_ACTIVITY_POLL_S, timeout_s, idle_timeout_s)
        while not select.select([stdout], [], [], poll_s)[0]:
            now = time.monotonic()
            cpu_ns = _read_cpu_time_ns(self._process.pid, PROC)
            if (
                cpu_ns is None
                or last_cpu_ns is None
                or abs(cpu_ns - last_cpu_ns) > _MIN_ACTIVITY_NS
            ):
                last_active = now
                last_cpu_ns = cpu_ns
            if now - start >= timeout_s:
                self._abort_hung(f"{activity}: no reply for {_format_duration(now - start)}")
            if now - last_active >= idle_timeout_s:
                duration = _format_duration(now - last_active)
                self._abort_hung(f"{activity}: no reply and no CPU use for {duration}")
        return stdout.readline()

    def _abort_hung(self, activity: str) -> NoReturn:
        self._process.send_signal(signal.SIGUSR1)
        time.sleep(_STACK_DUMP_WAIT_S)
        self._process.kill()
        _, header, stack = self._read_stderr().partition(_STACK_HEADER)
        stack_lines = (header + stack).splitlines()[:STDERR_TAIL_LINES]
        source = self._job.source
        lines = [
            f"The {self._job.task} process of {self._job.runtime} "
            f"({source.model.name}, {source.provider}) hung {activity}. It was killed.",
            *(stack_lines or ["It printed no stack."]),
            "Try another --provider or --threads, or leave this configuration out. "
            "If it happens again, please report the lines above.",
        ]
        raise BenchError("\n".join(lines))

    def _wait_for_exit(self) -> int:
        try:
            return self._process.wait(TIMEOUT_MARGIN_S)
        except subprocess.TimeoutExpired:
            self._abort_hung(f"at exit: still running after {_format_duration(TIMEOUT_MARGIN_S)}")

    def _raise_worker_error(self) -> NoReturn:
        if self._wait_for_exit() == 0 and self._result_file.is_file():
            raise error_from_json(parse_as(dict[str, str], self._read_result()["error"], "error"))
        raise BenchError(_crash_message(self._job, self._wait_for_exit(), self._read_stderr()))

    def _read_stderr(self) -> str:
        return self._stderr_file.read_text(encoding="utf-8", errors="replace")


def wait_until_idle(pid: int, proc: Path = PROC) -> None:
    """Wait until a process without work uses no CPU.

    Threads of a pool spin before they sleep: on two cores 40 ms in ONNX Runtime and 10 ms in OpenMP
    were measured, during which the next process would share a core with them. The wait has a
    fixed length where the kernel does not report the CPU time (proc_pid_schedstat).
    """
    deadline = time.monotonic() + _MAX_SPIN_S
    last_cpu_ns = _read_cpu_time_ns(pid, proc)
    while time.monotonic() < deadline:
        time.sleep(_IDLE_POLL_S)
        cpu_ns = _read_cpu_time_ns(pid, proc)
        if (
            last_cpu_ns is not None
            and cpu_ns is not None
            and cpu_ns - last_cpu_ns < _IDLE_CPU_SHARE * _IDLE_POLL_S * 1e9
        ):
            return
        last_cpu_ns = cpu_ns


def _read_cpu_time_ns(pid: int, proc: Path) -> int | None:
    """Return the CPU time of all threads of a process, None if the kernel does not report it."""
    thread_times = [
        (read_text(path) or "").partition(" ")[0]
        for path in (proc / str(pid) / "task").glob("*/schedstat")
    ]
    if thread_times and all(map(str.isdigit, thread_times)):
        return sum(map(int, thread_times))
    return None


def make_worker_environment(threads: int) -> dict[str, str]:
    """Return the environment of a worker: sizes of all thread pools set, telemetry off."""
    thread_variables = (
        "OMP_NUM_THREADS",
        "MKL_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "VECLIB_MAXIMUM_THREADS",
        "NUMEXPR_NUM_THREADS",
    )
    environment = {
        **os.environ,
        **dict.fromkeys(thread_variables, str(threads)),
        "ORT_DISABLE_TELEMETRY": "1",
        "NO_ALBUMENTATIONS_UPDATE": "1",
        "PYTHONUTF8": "1",
    }
    root = Path(edgetl.__file__).resolve().parents[1]
    # In a checkout the worker must import the same edgetl.
    if root.name not in ("site-packages", "dist-packages"):
        search_path = [str(root), os.environ.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, search_path))
    return environment


def _format_duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes" if seconds >= 120 else f"{seconds:.0f} seconds"


def _crash_message(job: WorkerJob, status: int, stderr: str) -> str:
    tail = [line for line in stderr.splitlines() if line.strip()][-STDERR_TAIL_LINES:]
    advice = (
        "If memory is short, close other programs or use a smaller model. "
        "Otherwise please report the lines above."
    )
    if is_illegal_instruction(status):
        advice = f"Use another variant, another runtime or another version of {job.runtime}."
    lines = [
        f"The {job.task} process of {job.runtime} {describe_exit_status(status)}.",
        *(tail or ["It printed nothing to stderr."]),
        advice,
    ]
    return "\n".join(lines)

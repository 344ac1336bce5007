"""Sustained measurement: minutes of inference without a pause, to show thermal throttling."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter_ns
from typing import Any

from edgetl.core.artifacts.sustained import LatencyWindow, SustainedResult
from edgetl.core.typed_json import parse_as, to_json
from edgetl.device.bench.backend import Stage
from edgetl.device.bench.job import WorkerJob, Workload
from edgetl.device.bench.protocol import BenchProtocol
from edgetl.device.bench.timing import Clock, compute_latencies, run_for
from edgetl.device.bench.worker_process import run_job
from edgetl.device.hardware.memory import resident_memory_bytes
from edgetl.device.hardware.state import read_device_state


def measure_sustained(
    stages: Sequence[Stage],
    inputs: Sequence[Any],
    seconds: float,
    protocol: BenchProtocol,
    journal: Path,
    clock: Clock = perf_counter_ns,
) -> None:
    """Measure for `seconds` without warm-up and append each window to `journal` as a JSON line."""
    begin = clock()
    parent_pid = os.getppid()
    with journal.open("w", encoding="utf-8") as stream:
        # Stop if the parent process has ended, as nothing reads the remaining windows.
        while (start := clock()) - begin < seconds * 1e9 and os.getppid() == parent_pid:
            timestamps = run_for(stages, inputs, protocol.sustained_window_seconds, 1, clock)
            state = read_device_state()
            throttles = state.thermal_throttles
            window = LatencyWindow(
                start_s=(start - begin) / 1e9,
                latencies_ns=tuple(compute_latencies(timestamps)),
                frequency_khz=state.frequency_khz,
                temperature_c=state.temperature_c,
                throttles=None if throttles is None else sum(throttles.values()),
                memory_bytes=resident_memory_bytes(),
            )
            stream.write(json.dumps(to_json(window)) + "\n")
            stream.flush()


def run_sustained_job(
    job: WorkerJob,
    row_id: str,
    scope: str,
    seconds: float,
    folder: Path,
    on_result: Callable[[SustainedResult], None],
) -> None:
    """Run `job`'s configuration for `seconds` in a fresh process.

    Args:
        job: the job of the configuration.
        row_id: the row of the configuration.
        scope: the scope to run.
        seconds: duration.
        folder: an existing folder for temporary files.
        on_result: called with the measurements, also after an interruption or an error.

    Raises:
        BenchError: the process crashed or hung.
    """
    journal = folder / "windows.jsonl"
    journal.unlink(missing_ok=True)
    try:
        sustained_job = replace(
            job, task="sustain", streams=(Workload(scope),), seconds=seconds, journal=journal
        )
        run_job(sustained_job, folder, dict[str, object])
    finally:
        windows = _read_windows(journal)
        if windows:
            on_result(SustainedResult(row_id, seconds, windows))


def _read_windows(journal: Path) -> tuple[LatencyWindow, ...]:
    """Return the windows of a journal, without an incomplete last line of a killed writer."""
    if not journal.is_file():
        return ()
    lines = journal.read_text(encoding="utf-8").split("\n")[:-1]
    return tuple(parse_as(LatencyWindow, json.loads(line), "a window") for line in lines)

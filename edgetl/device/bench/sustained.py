"""Minutes without a pause: what a device does once it is warm."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from time import perf_counter_ns
from typing import Any

from edgetl.core.artifacts.sustained import LatencyWindow, SustainedResult
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
    """Measure for `seconds`, without warm-up, and add each window to `journal` as a line of JSON when it ends."""
    begin, parent = clock(), os.getppid()
    with journal.open("w", encoding="utf-8") as stream:
        # Whoever asked for it may have been ended: then nobody waits for the rest.
        while (start := clock()) - begin < seconds * 1e9 and os.getppid() == parent:
            marks = run_for(stages, inputs, protocol.sustained_window_seconds, 1, clock)
            state = read_device_state()
            throttles = state["thermal_throttles"]
            window = LatencyWindow(
                start_s=(start - begin) / 1e9,
                latencies_ns=tuple(compute_latencies(marks)),
                frequency_khz=state["frequency_khz"],
                temperature_c=state["temperature_c"],
                throttles=None
                if throttles is None
                else sum(count for count in throttles.values() if count is not None),
                memory_bytes=resident_memory_bytes(),
            )
            stream.write(json.dumps(asdict(window)) + "\n")
            stream.flush()


def run_sustained_job(
    job: WorkerJob,
    row_id: str,
    scope: str,
    seconds: float,
    folder: Path,
    tell: Callable[[SustainedResult], None],
) -> None:
    """Run `job`'s configuration for `seconds` in a fresh process.

    Args:
        tell: given what was measured, also when an interruption or an error cuts it short.

    Raises:
        BenchError: the process died.
    """
    journal = folder / "windows.jsonl"
    journal.unlink(missing_ok=True)
    try:
        run_job(
            replace(
                job, task="sustain", streams=(Workload(scope),), seconds=seconds, journal=journal
            ),
            folder,
        )
    finally:
        windows = _read_windows(journal)
        if windows:
            tell(SustainedResult(row_id, seconds, windows))


def _read_windows(journal: Path) -> tuple[LatencyWindow, ...]:
    """The whole lines of a journal whose writer may have been killed in the middle of one."""
    if not journal.is_file():
        return ()
    lines = journal.read_text(encoding="utf-8").split("\n")[:-1]
    return tuple(
        LatencyWindow(**{**found, "latencies_ns": tuple(found["latencies_ns"])})
        for found in map(json.loads, lines)
    )

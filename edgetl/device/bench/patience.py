"""How long a worker process may keep silent before it is taken for hung: far longer than the slowest that still works."""

from __future__ import annotations

import math

from edgetl.device.bench.jobs import Job

ASLEEP_S = 600.0
"""Without using the CPU: compilers, drivers and swapping all use some of it in ten minutes, a deadlock does not."""
OPENING_S = 2 * 3600.0
"""Until the model has answered once: on a small board TensorRT builds an engine for half an hour, torch.compile compiles for minutes."""
TASK_S = 4 * 3600.0
"""Gate or profile: the model is opened more than once, and answers up to a hundred times; compilers may run before each."""
ANSWER_S = 60.0
"""For an answer of onnxruntime on a CPU, where nothing is compiled: a model that loops without end is not waited for."""
SPARE_S = 600.0
"""On top of whatever is planned: a swapped-out process has to come back, and answers have to be written."""
_SETTLING_RUNS = 10
_SLOWER = 10
"""Times as long as planned: a hot board halves its clock, and others may want the cores."""


def task_s(job: Job) -> float:
    """For a job's answer, once everything that was asked piece by piece is done; seconds."""
    if job.task == "measure":
        return SPARE_S
    if job.task == "gate" and job.runtime == "onnxruntime" and job.source.provider == "cpu":
        return SPARE_S + ANSWER_S * (len(job.files) * (1 + job.source.batch) + _SETTLING_RUNS)
    return TASK_S + job.seconds


def piece_s(job: Job, piece: str, run_s: float) -> float:
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
        planned = protocol.paced_seconds_at_most + pause_s(job, piece) + run_s
    return SPARE_S + _SLOWER * planned


def pause_s(job: Job, piece: str) -> float:
    """How long the process sleeps in a piece because it was asked to: between two paced arrivals; seconds."""
    rates = {stream.name: stream.rate for stream in job.streams}
    rate = rates.get(piece.partition(" ")[2])
    return 0.0 if rate is None else 1 / rate

"""A process of its own for each measurement: `python -m edgetl.device.bench.worker JOB.json ANSWER.json`.

At the top only what the standard library brings quickly: what a runtime needs is imported under the clock.
"""

from __future__ import annotations

import faulthandler
import io
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, TypeVar

from edgetl.core.errors import EdgetlError, error_to_json
from edgetl.core.registry import BACKENDS, load_from_registry
from edgetl.device.bench.job import WorkerJob
from edgetl.device.bench.timing import BlockTimer, TimedBlock, measure_paced
from edgetl.device.hardware.memory import keep_freed_memory

if TYPE_CHECKING:
    from edgetl.device.bench.backend import Backend, Stage

JobT = TypeVar("JobT", bound=WorkerJob)


_REPLY_STREAM: io.TextIOBase = io.StringIO()


def handle_gate(job: WorkerJob) -> dict[str, Any]:
    """Logits for the reference files and for the inputs of scope `model`, best settings, configuration."""
    from edgetl.device.hardware.info import peak_memory_bytes

    backend = open_backend(job)
    inputs = _load_model_inputs(backend, job)
    kept = keep_freed_memory()
    settings = backend.autotune(inputs[0])
    answers = []
    if job.files:
        from edgetl.device.runtime.images import load_image

        answers = [
            backend.infer(backend.preprocess_image(load_image(path)))[0].tolist()
            for path in job.files
        ]
    feed = "reference images" if job.model_inputs else "given" if job.source.given else "random"
    return {
        "settings": settings,
        "provider": backend.provider,
        "session": {
            **backend.describe(inputs[0]),
            **settings,
            "freed_memory_kept": kept,
            "feed": feed,
        },
        "input": _describe_input(inputs[0]),
        "batch": len(next(iter(inputs[0].values())) if isinstance(inputs[0], dict) else inputs[0]),
        "peak_memory_bytes": peak_memory_bytes(),
        "golden_logits": answers,
        "model_logits": [backend.infer(batch).tolist() for batch in inputs]
        if job.model_inputs
        else [],
    }


def handle_measure(job: WorkerJob) -> dict[str, Any]:
    """Cold start and one block for each stream, piece by piece as standard input asks: `warm-up S`, `slice S`, `paced S`."""
    start = perf_counter_ns()
    backend_class = load_from_registry(BACKENDS, job.runtime, "benchmark backend")
    imported = perf_counter_ns()
    backend: Backend = backend_class(job.source)
    opened = perf_counter_ns()
    scopes = {stream.scope: _prepare_scope(backend, job, stream.scope) for stream in job.streams}

    stages, inputs = scopes[job.streams[0].scope]
    before_first = perf_counter_ns()
    value = inputs[0]
    for _, step in stages:
        value = step(value)
    first = perf_counter_ns()

    # Only now: the cold figures are those of a process as it comes.
    keep_freed_memory()
    from edgetl.device.bench.timing import BlockMonitor, GpuMonitor
    from edgetl.device.hardware.energy import EnergyMeter
    from edgetl.device.hardware.info import fastest_core_frequency_khz, peak_memory_bytes

    meter = EnergyMeter()
    watches = {stream.name: BlockMonitor(meter) for stream in job.streams}
    # A GPU that isn't measured is nobody's business here, and asking it takes milliseconds.
    gpus = (
        {}
        if job.source.provider == "cpu"
        else {stream.name: GpuMonitor() for stream in job.streams}
    )
    measurements = {
        stream.name: BlockTimer(*scopes[stream.scope], job.protocol, watches[stream.name])
        for stream in job.streams
        if stream.rate is None
    }
    blocks: dict[str, TimedBlock] = {}
    clocks: dict[str, int | None] = {}
    send_reply(f"ready {(first - before_first) / 1e9}")
    for piece, _, name in (line.strip().partition(" ") for line in sys.stdin):
        if piece == "warm-up":
            measurements[name].warm_up()
        elif piece == "slice":
            measurements[name].run_slice()
        else:
            stream = next(stream for stream in job.streams if stream.name == name)
            blocks[name] = measure_paced(
                *scopes[stream.scope], job.protocol, stream.rate or 1.0, watches[name]
            )
        clocks[name] = fastest_core_frequency_khz()
        if piece != "warm-up" and name in gpus:
            gpus[name].read()
        send_reply("done")
    blocks |= {name: measurement.to_block() for name, measurement in measurements.items()}
    cold = {
        "import_ms": (imported - start) / 1e6,
        "session_ms": (opened - imported) / 1e6,
        "first_inference_ms": (first - before_first) / 1e6,
        "peak_memory_bytes": peak_memory_bytes(),
    }
    return {
        name: {
            **vars(block),
            "frequency_khz": clocks.get(name),
            "memory_growth_bytes": watches[name].memory_growth_bytes,
            "energy_j": watches[name].energy_j,
            "gpu": gpus[name].summarize() if name in gpus else {},
            "cold": cold,
        }
        for name, block in blocks.items()
    }


def handle_profile(job: WorkerJob) -> dict[str, Any]:
    """Where a run's time goes, operator by operator."""
    backend = open_backend(job)
    found: dict[str, Any] = backend.profile(
        _load_model_inputs(backend, job)[0], job.protocol.profiled_runs
    )
    return found


def handle_sustain(job: WorkerJob) -> dict[str, Any]:
    """One stream without a pause, window by window, into the job's journal."""
    from edgetl.device.bench.sustained import measure_sustained

    assert job.journal is not None
    backend = open_backend(job)
    keep_freed_memory()
    stages, inputs = _prepare_scope(backend, job, job.streams[0].scope)
    measure_sustained(stages, inputs, job.seconds, job.protocol, job.journal)
    return {}


def open_backend(job: WorkerJob) -> Backend:
    """Return the backend of the job, with its model open."""
    backend: Backend = load_from_registry(BACKENDS, job.runtime, "benchmark backend")(job.source)
    return backend


def send_reply(word: str) -> None:
    """One line to the process that waits."""
    _REPLY_STREAM.write(f"{word}\n")
    _REPLY_STREAM.flush()


def _prepare_scope(backend: Backend, job: WorkerJob, scope: str) -> tuple[list[Stage], list[Any]]:
    if scope == "model":
        return backend.stages(), _load_model_inputs(backend, job)
    from edgetl.device.runtime.images import load_image

    stages: list[Stage] = [
        ("preprocess", backend.preprocess_image),
        *backend.stages(),
        ("postprocess", lambda logits: int(logits[0].argmax())),
    ]
    if scope == "image":
        return stages, [load_image(path) for path in job.files]
    return [("read", Path.read_bytes), ("decode", load_image), *stages], list(job.files)


def _load_model_inputs(backend: Backend, job: WorkerJob) -> list[Any]:
    if job.model_inputs is None:
        return backend.make_inputs(job.protocol.random_inputs)
    import numpy as np

    images, batch = np.load(job.model_inputs, allow_pickle=False), job.source.batch
    # Batch i begins with image i: the first row of every batch is then the same image for every batch size.
    return [
        np.concatenate([images[(first + place) % len(images)] for place in range(batch)])
        for first in range(len(images))
    ]


def _describe_input(given: Any) -> str:
    arrays = given if isinstance(given, dict) else {"": given}
    return ", ".join(
        f"{name} {array.dtype} {'x'.join(map(str, array.shape))}".strip()
        for name, array in arrays.items()
    )


TASK_HANDLERS = {
    "gate": handle_gate,
    "measure": handle_measure,
    "profile": handle_profile,
    "sustain": handle_sustain,
}


def main() -> None:
    """Run the job of the benchmark that the command line names."""
    run_worker(WorkerJob, TASK_HANDLERS)


def run_worker(
    job_type: type[JobT], handlers: Mapping[str, Callable[[JobT], dict[str, Any]]]
) -> None:
    """Do the job; an error that the user can mend travels back in the answer, anything else ends the process."""
    global _REPLY_STREAM
    # Libraries may write to standard output: what they say joins the process's other words, and replies keep a pipe to themselves.
    _REPLY_STREAM = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    # Asked before it is ended for having hung, it says where.
    faulthandler.register(signal.SIGUSR1, all_threads=False)
    job = job_type.from_json(Path(sys.argv[1]).read_text(encoding="utf-8"))
    try:
        answer: dict[str, Any] = {"answer": handlers[job.task](job)}
    except EdgetlError as error:
        answer = {"error": error_to_json(error)}
    write_answer(answer)


def write_answer(answer: dict[str, Any]) -> None:
    """Write the worker's answer where the waiting process reads it."""
    Path(sys.argv[2]).write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main()

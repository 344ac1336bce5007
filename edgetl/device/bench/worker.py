"""Worker process of the benchmark: `python -m edgetl.device.bench.worker JOB.json ANSWER.json`.

Only light standard library modules are imported at the top: importing a runtime is timed.
"""

from __future__ import annotations

import faulthandler
import io
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, TypeVar

from edgetl.core.errors import EdgetlError, error_to_json
from edgetl.core.registry import BACKENDS, load_from_registry
from edgetl.core.typed_json import JsonObject, to_json
from edgetl.device.bench.job import GateReply, WorkerJob
from edgetl.device.bench.timing import BlockTimer, TimedBlock, measure_paced
from edgetl.device.hardware.memory import keep_freed_memory

if TYPE_CHECKING:
    from edgetl.core.artifacts.bench_rows import ColdStart
    from edgetl.device.bench.backend import Backend, Stage
    from edgetl.device.bench.monitors import BlockMonitor, GpuMonitor

JobT = TypeVar("JobT", bound=WorkerJob)


_REPLY_STREAM: io.TextIOBase = io.StringIO()


def handle_gate(job: WorkerJob) -> JsonObject:
    """Return the outputs for the golden images, the logits of scope `model` and the settings."""
    from edgetl.device.hardware.info import peak_memory_bytes

    backend = open_backend(job)
    inputs = _load_model_inputs(backend, job)
    keeps_freed_memory = keep_freed_memory()
    settings = backend.autotune(inputs[0])
    golden_logits: list[list[float]] = []
    golden_probabilities: list[list[float]] = []
    golden_unknown_scores: list[float] = []
    if job.files:
        from edgetl.device.runtime.images import load_image

        for path in job.files:
            image = backend.preprocess_image(load_image(path))
            golden_logits.append(backend.infer(image)[0].tolist())
            confidence = backend.infer_confidence(image)
            if confidence is not None:
                probabilities, scores = confidence
                golden_probabilities += probabilities.tolist()
                golden_unknown_scores += [] if scores is None else scores.tolist()
    session = replace(
        backend.describe(inputs[0]),
        freed_memory_kept=keeps_freed_memory,
        feed=_input_origin(job),
        memory_format=settings.get("memory_format"),
    )
    peak_bytes = peak_memory_bytes()
    model_logits = []
    if job.model_inputs:
        model_logits = [backend.infer(batch).tolist() for batch in inputs]
    first_array = next(iter(inputs[0].values())) if isinstance(inputs[0], dict) else inputs[0]
    reply = GateReply(
        settings=settings,
        provider=backend.provider,
        session=session,
        input=_describe_input(inputs[0]),
        batch=len(first_array),
        peak_memory_bytes=peak_bytes,
        golden_logits=golden_logits,
        model_logits=model_logits,
        golden_probabilities=golden_probabilities,
        golden_unknown_scores=golden_unknown_scores,
    )
    return to_json(reply)


def handle_measure(job: WorkerJob) -> JsonObject:
    """Measure the cold start, then the steps requested on standard input.

    A step is `warm-up S`, `slice S` or `paced S`, where S is the name of a workload.
    """
    start = perf_counter_ns()
    backend_class = load_from_registry(BACKENDS, job.runtime, "benchmark backend")
    import_end = perf_counter_ns()
    backend: Backend = backend_class(job.source)
    open_end = perf_counter_ns()
    scopes = {
        workload.scope: _prepare_scope(backend, job, workload.scope) for workload in job.streams
    }

    stages, inputs = scopes[job.streams[0].scope]
    first_start = perf_counter_ns()
    value = inputs[0]
    for _, run_stage in stages:
        value = run_stage(value)
    first_end = perf_counter_ns()

    # Only now, so that the cold start is measured in an unmodified process.
    keep_freed_memory()
    from edgetl.device.bench.monitors import BlockMonitor, GpuMonitor
    from edgetl.device.hardware.energy import EnergyMeter
    from edgetl.device.hardware.info import fastest_core_frequency_khz, peak_memory_bytes

    meter = EnergyMeter()
    monitors = {workload.name: BlockMonitor(meter) for workload in job.streams}
    # Querying a GPU takes milliseconds, so a CPU measurement does not.
    gpu_monitors: dict[str, GpuMonitor] = {}
    if job.source.provider != "cpu":
        gpu_monitors = {workload.name: GpuMonitor() for workload in job.streams}
    timers = {
        workload.name: BlockTimer(*scopes[workload.scope], job.protocol, monitors[workload.name])
        for workload in job.streams
        if workload.rate is None
    }
    blocks: dict[str, TimedBlock] = {}
    clocks: dict[str, int | None] = {}
    send_reply(f"ready {(first_end - first_start) / 1e9}")
    for kind, _, name in (line.strip().partition(" ") for line in sys.stdin):
        if kind == "warm-up":
            timers[name].warm_up()
        elif kind == "slice":
            timers[name].run_slice()
        else:
            workload = next(workload for workload in job.streams if workload.name == name)
            blocks[name] = measure_paced(
                *scopes[workload.scope], job.protocol, workload.rate or 1.0, monitors[name]
            )
        clocks[name] = fastest_core_frequency_khz()
        if kind != "warm-up" and name in gpu_monitors:
            gpu_monitors[name].read()
        send_reply("done")
    blocks |= {name: timer.to_block() for name, timer in timers.items()}
    peak_bytes = peak_memory_bytes()
    from edgetl.core.artifacts.bench_rows import ColdStart

    cold = ColdStart(
        import_ms=(import_end - start) / 1e6,
        session_ms=(open_end - import_end) / 1e6,
        first_inference_ms=(first_end - first_start) / 1e6,
        peak_memory_bytes=peak_bytes,
    )
    return {
        name: _encode_block(block, cold, clocks.get(name), monitors[name], gpu_monitors.get(name))
        for name, block in blocks.items()
    }


def _encode_block(
    block: TimedBlock,
    cold: ColdStart,
    frequency_khz: int | None,
    monitor: BlockMonitor,
    gpu_monitor: GpuMonitor | None,
) -> JsonObject:
    from edgetl.core.artifacts.bench_rows import BlockResult

    result = BlockResult(
        latencies_ns=tuple(block.latencies_ns),
        cold=cold,
        steady=block.steady,
        warmup_medians_ns=tuple(block.warmup_medians_ns),
        stages_ns={stage: tuple(times) for stage, times in block.stages_ns.items()},
        frequency_khz=frequency_khz,
        slices=tuple(block.slices),
        waited=block.waited,
        memory_growth_bytes=monitor.memory_growth_bytes,
        energy_j=monitor.energy_j,
        cpu_ns=monitor.cpu_ns,
        gpu=None if gpu_monitor is None else gpu_monitor.summarize(),
    )
    return to_json(result)


def handle_profile(job: WorkerJob) -> JsonObject:
    """Return the time of an inference by operator."""
    backend = open_backend(job)
    batch = _load_model_inputs(backend, job)[0]
    return to_json(backend.profile(batch, job.protocol.profiled_runs))


def handle_sustain(job: WorkerJob) -> JsonObject:
    """Run one workload without a pause and write each window to the job's journal."""
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


def send_reply(text: str) -> None:
    """Send one line to the parent process."""
    _REPLY_STREAM.write(f"{text}\n")
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

    images = np.load(job.model_inputs, allow_pickle=False)
    batch = job.source.batch
    # Batch i begins with image i, so the first row of a batch is the same for every batch size.
    batches = [
        np.concatenate([images[(start + offset) % len(images)] for offset in range(batch)])
        for start in range(len(images))
    ]
    return [backend.prepare_batch(batch) for batch in batches]


def _input_origin(job: WorkerJob) -> str:
    if job.model_inputs:
        return "reference images"
    return "given" if job.source.input_file else "random"


def _describe_input(batch: Any) -> str:
    arrays = batch if isinstance(batch, dict) else {"": batch}
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
    """Run the benchmark job named on the command line."""
    run_worker(WorkerJob, TASK_HANDLERS)


def run_worker(job_type: type[JobT], handlers: Mapping[str, Callable[[JobT], JsonObject]]) -> None:
    """Run the job from the command line and write its result.

    An `EdgetlError` is written as the result; any other exception ends the process.
    """
    global _REPLY_STREAM
    # Output of libraries goes to stderr; replies get a pipe of their own.
    _REPLY_STREAM = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    # The parent sends SIGUSR1 before it kills a hung worker; the stack shows where it hung.
    faulthandler.register(signal.SIGUSR1, all_threads=False)
    job = job_type.decode(Path(sys.argv[1]).read_text(encoding="utf-8"))
    try:
        reply: JsonObject = {"answer": handlers[job.task](job)}
    except EdgetlError as error:
        reply = {"error": error_to_json(error)}
    write_reply(reply)


def write_reply(reply: JsonObject) -> None:
    """Write the worker's result to the file that the parent process reads."""
    Path(sys.argv[2]).write_text(json.dumps(reply), encoding="utf-8")


if __name__ == "__main__":
    main()

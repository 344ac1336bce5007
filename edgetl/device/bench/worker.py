"""A process of its own for each measurement: `python -m edgetl.device.bench.worker JOB.json ANSWER.json`.

At the top only what the standard library brings quickly: what a runtime needs is imported under the clock.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

from edgetl.core.errors import EdgetlError
from edgetl.core.registry import BACKENDS, resolve
from edgetl.device.allocator import keep_freed_memory
from edgetl.device.bench.jobs import Job, error_to_json
from edgetl.device.bench.timing import Stage, measure

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgetl.device.backends import Backend


def gate(job: Job) -> dict[str, Any]:
    """Logits for the reference files and for the inputs of scope `model`, best settings, configuration."""
    backend: Backend = resolve(BACKENDS, job.runtime, "benchmark backend")(job.source)
    inputs = _model_inputs(backend, job)
    kept = keep_freed_memory()
    settings = backend.settle(inputs[0])
    answers = []
    if job.files:
        from edgetl.device.images import load_image

        answers = [backend.infer(backend.prepare(load_image(path)))[0].tolist() for path in job.files]
    return {
        "settings": settings,
        "provider": backend.provider,
        "session": {**backend.describe(inputs[0]), **settings, "freed_memory_kept": kept},
        "input": f"{inputs[0].dtype} {'x'.join(map(str, inputs[0].shape))}",
        "batch": inputs[0].shape[0],
        "golden_logits": answers,
        "model_logits": [backend.infer(batch)[0].tolist() for batch in inputs] if job.model_inputs else [],
    }


def measured(job: Job) -> dict[str, Any]:
    """Cold start and one block for each scope."""
    start = perf_counter_ns()
    backend_class = resolve(BACKENDS, job.runtime, "benchmark backend")
    imported = perf_counter_ns()
    backend: Backend = backend_class(job.source)
    opened = perf_counter_ns()
    scopes = {scope: _scope(backend, job, scope) for scope in job.scopes}

    stages, inputs = scopes[job.scopes[0]]
    before_first = perf_counter_ns()
    value = inputs[0]
    for _, step in stages:
        value = step(value)
    first = perf_counter_ns()

    # Only now: the cold figures are those of a process as it comes.
    keep_freed_memory()
    blocks, clocks = {}, {}
    from edgetl.device.facts import core_frequency, peak_memory_bytes

    for scope, (steps, given) in scopes.items():
        blocks[scope] = measure(steps, given, job.protocol)
        clocks[scope] = core_frequency()
    cold = {
        "import_ms": (imported - start) / 1e6,
        "session_ms": (opened - imported) / 1e6,
        "first_inference_ms": (first - before_first) / 1e6,
        "peak_memory_bytes": peak_memory_bytes(),
    }
    return {scope: {**vars(block), "frequency_khz": clocks[scope], "cold": cold} for scope, block in blocks.items()}


def _scope(backend: Backend, job: Job, scope: str) -> tuple[list[Stage], list[Any]]:
    if scope == "model":
        return [("infer", backend.infer)], _model_inputs(backend, job)
    from edgetl.device.images import load_image

    stages: list[Stage] = [
        ("decode", load_image),
        ("prepare", backend.prepare),
        ("infer", backend.infer),
        ("label", lambda logits: int(logits[0].argmax())),
    ]
    return stages, [path.read_bytes() for path in job.files]


def _model_inputs(backend: Backend, job: Job) -> list[NDArray[Any]]:
    if job.model_inputs is None:
        return backend.inputs(job.protocol.random_inputs)
    import numpy as np

    return list(np.load(job.model_inputs, allow_pickle=False))


TASKS = {"gate": gate, "measure": measured}


def main() -> None:
    """Do the job; an error that the user can mend travels back in the answer, anything else ends the process."""
    job = Job.from_json(Path(sys.argv[1]).read_text(encoding="utf-8"))
    try:
        answer: dict[str, Any] = {"answer": TASKS[job.task](job)}
    except EdgetlError as error:
        answer = {"error": error_to_json(error)}
    Path(sys.argv[2]).write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main()

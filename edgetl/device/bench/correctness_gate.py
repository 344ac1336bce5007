"""Correctness gate: check each runtime on the golden images before timing it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgetl.core.artifacts.bench_rows import BenchRow
from edgetl.core.artifacts.bundle import AccuracyRecord
from edgetl.core.artifacts.gate import GateResult
from edgetl.core.errors import BenchError, EdgetlError
from edgetl.core.progress import ProgressCallback
from edgetl.device.bench.inputs import BenchInputs, InputSpec
from edgetl.device.bench.job import GateReply, WorkerJob, Workload
from edgetl.device.bench.protocol import BenchProtocol
from edgetl.device.bench.target import NO_GOLDEN_REASON, BenchCase
from edgetl.device.bench.worker_process import run_job
from edgetl.device.runtime.golden import GoldenOutputs, GoldenSet, check_logits, gate_tolerance
from edgetl.device.runtime.io_binding import DEVICE_TYPES

_References = dict[InputSpec, tuple[NDArray[np.float64], float]]
"""For each input the logits [images, classes] of the first case that passed, and its tolerance."""


@dataclass(frozen=True)
class GatedCase:
    """A case with the result of its gate and the job that measures it."""

    case: BenchCase
    rows: tuple[BenchRow, ...]
    """One row per workload, without measurements."""
    job: WorkerJob
    peak_memory_bytes: int | None = None
    """Peak memory of the gate's process."""

    @property
    def passed(self) -> bool:
        """Whether the case may be timed."""
        return not any(row.has_failed_gate for row in self.rows)


def run_gates(
    cases: Sequence[BenchCase],
    inputs: BenchInputs | None,
    protocol: BenchProtocol,
    folder: Path,
    progress: ProgressCallback,
    rates: Sequence[float] = (),
) -> tuple[list[GatedCase], list[str]]:
    """Run the gate of every case in a process of its own.

    Args:
        cases: the cases to check.
        inputs: the golden images; None skips the comparison of logits.
        protocol: the protocol of the measurement that follows.
        folder: an existing folder for temporary files.
        progress: called with a description of each step.
        rates: arrival rates of the paced workloads, per second.

    Returns:
        The checked cases, and notes on the cases that could not be opened.

    Raises:
        EdgetlError: the only ONNX Runtime case cannot be opened as requested, or its process died.
        BenchError: no ONNX Runtime case could be opened.
    """
    gated_cases: list[GatedCase] = []
    notes: list[str] = []
    references: _References = {}
    has_alternatives = sum(case.runtime != "pytorch" for case in cases) > 1
    for case in cases:
        progress(f"gate: {case.name}", 0, 0)
        job = _make_gate_job(case, inputs, protocol, tuple(dict.fromkeys(rates)))
        try:
            reply = run_job(job, folder, GateReply)
        except (EdgetlError, OSError) as error:
            is_eager = case.source.settings.get("mode", "eager") == "eager"
            if is_eager and not has_alternatives:
                raise
            notes.append(f"{case.name} is not measured: {error}")
            continue
        gate = _check_reply(case, inputs, reply, references)
        row_id = _make_row(case, job.streams[0], "", reply, gate).id
        if any(gated_case.rows[0].id == row_id for gated_case in gated_cases):
            notes.append(
                f"{case.name} is not measured: "
                "the model's fixed batch makes it identical to another configuration."
            )
            continue
        photos = "" if inputs is None else inputs.description
        input_texts = {"model": reply.input, "image": photos, "file": photos}
        rows = tuple(
            _make_row(case, workload, input_texts[workload.scope], reply, gate)
            for workload in job.streams
        )
        source = replace(case.source, settings={**case.source.settings, **reply.settings})
        measure_job = replace(job, task="measure", source=source)
        gated_cases.append(GatedCase(case, rows, measure_job, reply.peak_memory_bytes))
    if not any(gated_case.case.runtime != "pytorch" for gated_case in gated_cases):
        raise BenchError("\n".join(notes))
    return gated_cases, notes


def _make_gate_job(
    case: BenchCase,
    inputs: BenchInputs | None,
    protocol: BenchProtocol,
    rates: Sequence[float],
) -> WorkerJob:
    return WorkerJob(
        task="gate",
        runtime=case.runtime,
        source=case.source,
        streams=_list_workloads(case, rates),
        protocol=protocol.for_gpu() if case.source.provider in DEVICE_TYPES else protocol,
        model_inputs=None if inputs is None else inputs.tensor_files[case.input_spec],
        files=() if inputs is None else inputs.files,
    )


def _check_reply(
    case: BenchCase, inputs: BenchInputs | None, reply: GateReply, references: _References
) -> GateResult:
    """Check a gate's outputs; add the logits of scope `model` to `references` if they pass first."""
    if inputs is None:
        return GateResult(checked=False, passed=None, reason=NO_GOLDEN_REASON)
    outputs = GoldenOutputs.from_numbers(
        reply.golden_logits, reply.golden_probabilities, reply.golden_unknown_scores
    )
    gate = _check_golden_outputs(case, inputs.golden, outputs)
    tolerance = gate.tolerance or 0.0
    logits = np.asarray(reply.model_logits, np.float64)
    reference, reference_tolerance = references.get(case.input_spec, (logits[:, 0], tolerance))
    gate = _check_model_scope(gate, reference, logits, max(tolerance, reference_tolerance))
    if gate.passed:
        references.setdefault(case.input_spec, (logits[:, 0], tolerance))
    return gate


def _check_golden_outputs(case: BenchCase, golden: GoldenSet, outputs: GoldenOutputs) -> GateResult:
    if case.record is not None:
        return golden.check(case.record, case.source.provider, outputs, case.relative_tolerance)
    tolerance = gate_tolerance(
        golden.logits, case.source.provider, golden.tolerance, relative=case.relative_tolerance
    )
    return check_logits(outputs.logits, golden.logits, tolerance)


def _list_workloads(case: BenchCase, rates: Sequence[float]) -> tuple[Workload, ...]:
    # Photos arrive one by one, so only single images are paced.
    paced_rates = tuple(dict.fromkeys(rates)) if case.source.batch == 1 else ()
    return tuple(
        Workload(scope, rate)
        for scope in dict.fromkeys(case.scopes)
        for rate in (None, *paced_rates)
    )


def _check_model_scope(
    gate: GateResult,
    reference: NDArray[np.float64],
    logits: NDArray[np.float64],
    tolerance: float,
) -> GateResult:
    """Check scope `model`, whose inputs are tensors instead of photos.

    Every case must give the logits of the first case that passed on the photos, in any batch.

    Args:
        gate: result of the check on photos.
        reference: logits [images, classes] of the first case that passed.
        logits: [batches, batch, classes]; batch i holds the images from i on.
        tolerance: allowed |logit difference|.
    """
    if reference.shape != logits[:, 0].shape:
        reason = "the logits in scope model have another shape than the first runtime's"
        return replace(gate, passed=False, reason=gate.reason or reason)
    if not np.isfinite(logits).all():
        reason = "the logits in scope model are not finite"
        return replace(gate, passed=False, reason=gate.reason or reason)
    difference = max(
        float(np.abs(logits[:, index] - np.roll(reference, -index, 0)).max())
        for index in range(logits.shape[1])
    )
    gate = replace(gate, model_scope_difference=difference)
    if difference > tolerance and gate.passed:
        reason = f"in scope model logits differ by {difference:.3g} from the first runtime's"
        return replace(gate, passed=False, reason=reason)
    return gate


def _matching_accuracy(case: BenchCase, reply: GateReply) -> AccuracyRecord | None:
    """Return the accuracy measured at export; None if another runtime or precision runs here."""
    record = case.record
    if record is None or record.runtime != case.runtime:
        return None
    precision = reply.session.precision
    if precision not in (None, record.precision):
        return None
    return record.accuracy


def _make_row(
    case: BenchCase, workload: Workload, input_text: str, reply: GateReply, gate: GateResult
) -> BenchRow:
    return BenchRow(
        runtime=case.runtime,
        variant=case.variant,
        scope=workload.scope,
        rate=workload.rate,
        provider=reply.provider,
        batch=reply.batch if workload.scope == "model" else 1,
        threads=case.source.threads,
        input=input_text,
        file_sha256=case.file_sha256,
        file_bytes=case.file_bytes,
        gate=gate,
        session=reply.session,
        accuracy=_matching_accuracy(case, reply),
    )

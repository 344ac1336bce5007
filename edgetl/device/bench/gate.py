"""The gate before the clock: reference images first, on this device, through the very runtime that is to be timed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.core.artifacts.bench_rows import BenchRow
from edgetl.core.errors import BenchError, EdgetlError
from edgetl.device.bench.inputs import BenchInputs, InputSpec
from edgetl.device.bench.job import WorkerJob, Workload
from edgetl.device.bench.protocol import BenchProtocol
from edgetl.device.bench.target import NO_GOLDEN_REASON, BenchCase
from edgetl.device.bench.worker_process import run_job
from edgetl.device.runtime.golden import check_logits, gate_tolerance
from edgetl.device.runtime.io_binding import DEVICE_TYPES


@dataclass(frozen=True)
class GatedCase:
    """A candidate with its gate's verdict and the job that measures it."""

    case: BenchCase
    rows: tuple[BenchRow, ...]
    """One a scope, not measured yet."""
    job: WorkerJob
    peak_memory_bytes: int | None = None
    """The most that its gate's process held."""

    @property
    def passed(self) -> bool:
        """Whether it may be timed."""
        return not any(row.has_failed_gate for row in self.rows)


def run_gates(
    candidates: Sequence[BenchCase],
    pictures: BenchInputs | None,
    protocol: BenchProtocol,
    folder: Path,
    progress: Callable[[str], None],
    rates: Sequence[float] = (),
) -> tuple[list[GatedCase], list[str]]:
    """Run every candidate's gate in a process of its own.

    Returns:
        The contenders, and why others of a sweep could not be opened.

    Raises:
        ProviderError, BundleError, ...: the only candidate of ONNX Runtime cannot be opened as asked.
        BenchError: its gate's process died.
    """
    contenders: list[GatedCase] = []
    left_out: list[str] = []
    references: dict[InputSpec, tuple[NDArray[np.float64], float]] = {}
    several = sum(candidate.runtime != "pytorch" for candidate in candidates) > 1
    for candidate in candidates:
        progress(f"gate: {candidate.name}")
        job = WorkerJob(
            task="gate",
            runtime=candidate.runtime,
            source=candidate.source,
            streams=_list_workloads(candidate, rates),
            protocol=protocol.for_gpu() if candidate.source.provider in DEVICE_TYPES else protocol,
            model_inputs=None if pictures is None else pictures.tensor_files[candidate.input_spec],
            files=() if pictures is None else pictures.files,
        )
        try:
            answer = run_job(job, folder)
        except (EdgetlError, OSError) as error:
            if candidate.source.settings.get("mode", "eager") == "eager" and not several:
                raise
            left_out.append(f"{candidate.name} is not measured: {error}")
            continue
        verdict: dict[str, Any] = {"checked": False, "passed": None, "reason": NO_GOLDEN_REASON}
        if pictures is not None:
            expected = pictures.logits[candidate.source.size]
            tolerance = gate_tolerance(
                expected,
                candidate.source.provider,
                pictures.tolerance,
                candidate.tolerance,
                relative=candidate.relative_tolerance,
            )
            verdict = check_logits(
                np.asarray(answer["golden_logits"], np.float64), expected, tolerance
            )
            logits = np.asarray(answer["model_logits"], np.float64)
            reference, allowed = references.get(candidate.input_spec, (logits[:, 0], tolerance))
            verdict = _check_model_scope(verdict, reference, logits, max(tolerance, allowed))
            if verdict["passed"]:
                references.setdefault(candidate.input_spec, (logits[:, 0], tolerance))
        if any(
            one.rows[0].id == _make_row(candidate, job.streams[0], "", answer, verdict).id
            for one in contenders
        ):
            left_out.append(
                f"{candidate.name} is not measured: the model's own batch makes it the same as another configuration."
            )
            continue
        photos = "" if pictures is None else pictures.description
        described = {"model": answer["input"], "image": photos, "file": photos}
        rows = tuple(
            _make_row(candidate, stream, described[stream.scope], answer, verdict)
            for stream in job.streams
        )
        source = replace(
            candidate.source, settings={**candidate.source.settings, **answer["settings"]}
        )
        contenders.append(
            GatedCase(
                candidate,
                rows,
                replace(job, task="measure", source=source),
                answer["peak_memory_bytes"],
            )
        )
    if not any(contender.case.runtime != "pytorch" for contender in contenders):
        raise BenchError("\n".join(left_out))
    return contenders, left_out


def _list_workloads(candidate: BenchCase, rates: Sequence[float]) -> tuple[Workload, ...]:
    """Photos arrive one by one: only single images are paced."""
    paced = tuple(dict.fromkeys(rates)) if candidate.source.batch == 1 else ()
    return tuple(
        Workload(scope, rate)
        for scope in dict.fromkeys(candidate.scopes)
        for rate in (None, *paced)
    )


def _check_model_scope(
    verdict: dict[str, Any],
    reference: NDArray[np.float64],
    logits: NDArray[np.float64],
    tolerance: float,
) -> dict[str, Any]:
    """Scope `model` feeds tensors, not photos: there too all must give the answers of the first that was right about photos, in any batch.

    Args:
        reference: its logits [images, classes].
        logits: [batches, batch, classes]; batch i holds the images from i on.
    """
    if reference.shape != logits[:, 0].shape:
        return {
            **verdict,
            "passed": False,
            "reason": verdict.get(
                "reason", "the runtimes' answers in scope model have different shapes"
            ),
        }
    if not np.isfinite(logits).all():
        return {
            **verdict,
            "passed": False,
            "reason": verdict.get("reason", "the answers in scope model are not finite numbers"),
        }
    difference = max(
        float(np.abs(logits[:, place] - np.roll(reference, -place, 0)).max())
        for place in range(logits.shape[1])
    )
    verdict = {**verdict, "model_scope_difference": difference}
    if difference > tolerance and verdict["passed"]:
        return {
            **verdict,
            "passed": False,
            "reason": f"in scope model logits differ by {difference:.3g} from the first runtime's",
        }
    return verdict


def _make_row(
    candidate: BenchCase,
    stream: Workload,
    described: str,
    answer: Mapping[str, Any],
    verdict: Mapping[str, Any],
) -> BenchRow:
    return BenchRow(
        runtime=candidate.runtime,
        variant=candidate.variant,
        scope=stream.scope,
        rate=stream.rate,
        provider=answer["provider"],
        batch=answer["batch"] if stream.scope == "model" else 1,
        threads=candidate.source.threads,
        input=described,
        file_sha256=candidate.file_sha256,
        file_bytes=candidate.file_bytes,
        gate=verdict,
        session=answer["session"],
    )

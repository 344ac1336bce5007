"""The gate before the clock: reference images first, on this device, through the very runtime that is to be timed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.core.rows import Row
from edgetl.device.bench.inputs import Pictures
from edgetl.device.bench.jobs import Job
from edgetl.device.bench.processes import run_job
from edgetl.device.bench.protocol import BenchProtocol
from edgetl.device.bench.target import NO_GOLDEN, Candidate


@dataclass(frozen=True)
class Contender:
    """A candidate with its gate's verdict and the job that measures it."""

    candidate: Candidate
    rows: tuple[Row, ...]
    """One a scope, not measured yet."""
    job: Job

    @property
    def passed(self) -> bool:
        """Whether it may be timed."""
        return not any(row.failed for row in self.rows)


def prove(
    candidates: Sequence[Candidate],
    scopes: tuple[str, ...],
    pictures: Pictures | None,
    protocol: BenchProtocol,
    folder: Path,
    progress: Callable[[str], None],
) -> list[Contender]:
    """Run every candidate's gate in a process of its own.

    Raises:
        ProviderError, BundleError, ...: a candidate cannot be opened as asked.
        BenchError: a gate's process died.
    """
    contenders: list[Contender] = []
    first_answers: dict[str, NDArray[np.float64]] = {}
    for candidate in candidates:
        progress(f"gate: {candidate.name}")
        job = Job(
            task="gate",
            runtime=candidate.runtime,
            source=candidate.source,
            scopes=scopes,
            protocol=protocol,
            model_inputs=None if pictures is None else pictures.tensors[candidate.source.input],
            files=() if pictures is None else pictures.files,
        )
        answer = run_job(job, folder)
        verdict: dict[str, Any] = {"checked": False, "passed": None, "reason": NO_GOLDEN}
        if pictures is not None:
            tolerance = max(pictures.tolerance, candidate.tolerance or 0.0)
            verdict = judge_answers(np.asarray(answer["golden_logits"], np.float64), pictures.logits, tolerance)
            logits = np.asarray(answer["model_logits"], np.float64)
            reference = first_answers.setdefault(answer["input"], logits)
            verdict = _same_work(verdict, reference, logits, tolerance)
        described = {"model": answer["input"], "file": "" if pictures is None else pictures.description}
        rows = tuple(_row(candidate, scope, described[scope], answer, verdict) for scope in scopes)
        source = replace(candidate.source, settings=answer["settings"])
        contenders.append(Contender(candidate, rows, replace(job, task="measure", source=source)))
    return contenders


def judge_answers(logits: NDArray[np.float64], reference: NDArray[np.float32], tolerance: float) -> dict[str, Any]:
    """The gate's verdict on logits [n, classes] against the reference's.

    Top-1 agrees where the runtime's best class is the reference's best, or within the tolerance of it: a tie is no mistake.
    """
    verdict: dict[str, Any] = {"checked": True, "passed": False, "images": len(reference), "tolerance": tolerance}
    if logits.shape != reference.shape:
        return {**verdict, "reason": f"logits of shape {logits.shape}, not {reference.shape}"}
    if not np.isfinite(logits).all():
        return {**verdict, "max_logit_difference": None, "top1_agreement": None, "reason": "the answers are not finite numbers"}
    difference = float(np.abs(logits - reference).max())
    chosen = np.take_along_axis(reference, logits.argmax(1)[:, None], 1)[:, 0]
    agreement = int((chosen >= reference.max(1) - tolerance).sum())
    found = {"max_logit_difference": difference, "top1_agreement": agreement}
    if difference > tolerance:
        return {**verdict, **found, "reason": f"logits differ by {difference:.3g}, tolerance {tolerance:g}"}
    if agreement < len(reference):
        return {**verdict, **found, "reason": f"top-1 agrees on {agreement} of {len(reference)} images"}
    return {**verdict, **found, "passed": True}


def _same_work(verdict: dict[str, Any], reference: NDArray[np.float64], logits: NDArray[np.float64], tolerance: float) -> dict[str, Any]:
    """Scope `model` feeds tensors, not photos: there too all runtimes must give the first one's answers."""
    if reference.shape != logits.shape or not np.isfinite(logits).all():
        return {**verdict, "passed": False, "reason": verdict.get("reason", "the runtimes' answers in scope model have different shapes")}
    difference = float(np.abs(logits - reference).max())
    verdict = {**verdict, "model_scope_difference": difference}
    if difference > tolerance and verdict["passed"]:
        return {**verdict, "passed": False, "reason": f"in scope model logits differ by {difference:.3g} from the first runtime's"}
    return verdict


def _row(candidate: Candidate, scope: str, described: str, answer: Mapping[str, Any], verdict: Mapping[str, Any]) -> Row:
    return Row(
        runtime=candidate.runtime,
        variant=candidate.variant,
        scope=scope,
        provider=answer["provider"],
        batch=answer["batch"] if scope == "model" else 1,
        threads=candidate.source.threads,
        input=described,
        file_sha256=candidate.file_sha256,
        file_bytes=candidate.file_bytes,
        gate=verdict,
        session=answer["session"],
    )

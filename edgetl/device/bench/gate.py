"""The gate before the clock: reference images first, on this device, through the very runtime that is to be timed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.core.artifacts.bench_rows import Row
from edgetl.core.errors import BenchError, EdgetlError
from edgetl.device.bench.inputs import Feed, Pictures
from edgetl.device.bench.job import Job, Stream
from edgetl.device.bench.protocol import BenchProtocol
from edgetl.device.bench.target import NO_GOLDEN, Candidate
from edgetl.device.bench.worker_process import run_job
from edgetl.device.runtime.golden import gate_tolerance, judge_answers
from edgetl.device.runtime.io_binding import MEMORY


@dataclass(frozen=True)
class Contender:
    """A candidate with its gate's verdict and the job that measures it."""

    candidate: Candidate
    rows: tuple[Row, ...]
    """One a scope, not measured yet."""
    job: Job
    memory_bytes: int | None = None
    """The most that its gate's process held."""

    @property
    def passed(self) -> bool:
        """Whether it may be timed."""
        return not any(row.failed for row in self.rows)


def prove(
    candidates: Sequence[Candidate],
    pictures: Pictures | None,
    protocol: BenchProtocol,
    folder: Path,
    progress: Callable[[str], None],
    rates: Sequence[float] = (),
) -> tuple[list[Contender], list[str]]:
    """Run every candidate's gate in a process of its own.

    Returns:
        The contenders, and why others of a sweep could not be opened.

    Raises:
        ProviderError, BundleError, ...: the only candidate of ONNX Runtime cannot be opened as asked.
        BenchError: its gate's process died.
    """
    contenders: list[Contender] = []
    left_out: list[str] = []
    references: dict[Feed, tuple[NDArray[np.float64], float]] = {}
    several = sum(candidate.runtime != "pytorch" for candidate in candidates) > 1
    for candidate in candidates:
        progress(f"gate: {candidate.name}")
        job = Job(
            task="gate",
            runtime=candidate.runtime,
            source=candidate.source,
            streams=_streams(candidate, rates),
            protocol=protocol.for_gpu() if candidate.source.provider in MEMORY else protocol,
            model_inputs=None if pictures is None else pictures.tensors[candidate.feed],
            files=() if pictures is None else pictures.files,
        )
        try:
            answer = run_job(job, folder)
        except (EdgetlError, OSError) as error:
            if candidate.source.settings.get("mode", "eager") == "eager" and not several:
                raise
            left_out.append(f"{candidate.name} is not measured: {error}")
            continue
        verdict: dict[str, Any] = {"checked": False, "passed": None, "reason": NO_GOLDEN}
        if pictures is not None:
            expected = pictures.logits[candidate.source.size]
            tolerance = gate_tolerance(
                expected,
                candidate.source.provider,
                pictures.tolerance,
                candidate.tolerance,
                relative=candidate.relative_tolerance,
            )
            verdict = judge_answers(
                np.asarray(answer["golden_logits"], np.float64), expected, tolerance
            )
            logits = np.asarray(answer["model_logits"], np.float64)
            reference, allowed = references.get(candidate.feed, (logits[:, 0], tolerance))
            verdict = _same_work(verdict, reference, logits, max(tolerance, allowed))
            if verdict["passed"]:
                references.setdefault(candidate.feed, (logits[:, 0], tolerance))
        if any(
            one.rows[0].id == _row(candidate, job.streams[0], "", answer, verdict).id
            for one in contenders
        ):
            left_out.append(
                f"{candidate.name} is not measured: the model's own batch makes it the same as another configuration."
            )
            continue
        photos = "" if pictures is None else pictures.description
        described = {"model": answer["input"], "image": photos, "file": photos}
        rows = tuple(
            _row(candidate, stream, described[stream.scope], answer, verdict)
            for stream in job.streams
        )
        source = replace(
            candidate.source, settings={**candidate.source.settings, **answer["settings"]}
        )
        contenders.append(
            Contender(
                candidate,
                rows,
                replace(job, task="measure", source=source),
                answer["peak_memory_bytes"],
            )
        )
    if not any(contender.candidate.runtime != "pytorch" for contender in contenders):
        raise BenchError("\n".join(left_out))
    return contenders, left_out


def _streams(candidate: Candidate, rates: Sequence[float]) -> tuple[Stream, ...]:
    """Photos arrive one by one: only single images are paced."""
    paced = tuple(dict.fromkeys(rates)) if candidate.source.batch == 1 else ()
    return tuple(
        Stream(scope, rate) for scope in dict.fromkeys(candidate.scopes) for rate in (None, *paced)
    )


def _same_work(
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


def _row(
    candidate: Candidate,
    stream: Stream,
    described: str,
    answer: Mapping[str, Any],
    verdict: Mapping[str, Any],
) -> Row:
    return Row(
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

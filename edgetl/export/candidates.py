"""Latency of architectures on this device before training: export with a new head and benchmark."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from itertools import product
from pathlib import Path

import edgetl
from edgetl.core.architectures import file_stem
from edgetl.core.artifacts.bench_json import write_result
from edgetl.core.artifacts.candidates import CandidateRow, CandidatesResult
from edgetl.core.artifacts.storage import check_output_path, store_result
from edgetl.core.config.candidates import CandidatesConfig
from edgetl.core.errors import EdgetlError, ProviderError
from edgetl.core.files import sha256_file
from edgetl.core.progress import ProgressCallback, log_progress
from edgetl.device.bench import target
from edgetl.device.bench.backend import ModelSource
from edgetl.device.bench.correctness_gate import GatedCase, run_gates
from edgetl.device.bench.protocol import BenchProtocol
from edgetl.device.bench.rounds import RoundRunner
from edgetl.device.hardware.cpu import resolve_intra_op_threads
from edgetl.device.hardware.info import collect_device_info
from edgetl.device.runtime.session import check_provider
from edgetl.export.random_init import check_names, write_untrained
from edgetl.train.model.stock_models import get_architecture

RESULTS = Path("bench")
"""Default folder for results."""
_WARM_UP_WINDOWS = 4
"""Rough number of warm-up windows before a block, to estimate the duration of a measurement."""


@dataclass(frozen=True)
class _PreparedCandidate:
    row: CandidateRow
    gated_case: GatedCase | None = None
    block_s: float = 0.0
    """Estimated seconds of one block, including its process and warm-up."""


def time_candidates(
    config: CandidatesConfig,
    progress: ProgressCallback | None = None,
    protocol: BenchProtocol | None = None,
) -> CandidatesResult:
    """Export every architecture at every image size with random weights and time them in rounds.

    The measurement is scope `model` with one image and preprocessing inside the file, as
    `edgetl bench` measures the trained bundle. A candidate that cannot be exported, does not match
    PyTorch or cannot be opened is in the result with its reason (`failed`); the others continue.

    Args:
        config: what to time, and the latency budget.
        progress: called with the next step before each export and each block; total is 0 for
            notes, such as the estimated duration.
        protocol: lengths of blocks and warm-up; None for the default protocol.

    Returns:
        The result, as written to `result.path`.

    Raises:
        ConfigError: architectures are unknown; all of them are listed before anything is exported.
        ProviderError: the execution provider is not available.
        BenchError: the result cannot be written, or a worker died. If two or more rounds are
            complete, they are written first, and the message contains the path.
        KeyboardInterrupt: the user interrupted the measurement; complete rounds are written as
            for BenchError.
    """
    protocol = protocol or BenchProtocol()
    report = progress or log_progress
    check_names(config.architectures)
    check_provider(config.provider)
    check_output_path(config.output, RESULTS)
    requested_threads = () if config.threads is None else (config.threads,)
    (threads,) = resolve_intra_op_threads(requested_threads, config.force)
    device_info = collect_device_info()
    created = datetime.now(UTC)
    with tempfile.TemporaryDirectory(prefix="edgetl-candidates-") as name:
        folder = Path(name)
        candidates = list(_prepare_all(config, threads, protocol, folder, report))
        cases = [item.gated_case for item in candidates if item.gated_case is not None]
        duration = _format_duration(config.rounds * sum(item.block_s for item in candidates))
        note = f"Timing {len(cases)} candidates in {config.rounds} rounds takes {duration}."
        if cases:
            report(note, 0, 0)
        runner = RoundRunner()
        with runner.capture_stop():
            runner.measure(cases, config.rounds, config.seed, folder, report)
    timed = [(item.gated_case, item.row.name) for item in candidates if item.gated_case is not None]
    case_names = {gated_case.case.name: name for gated_case, name in timed}
    row_names = {gated_case.rows[0].id: name for gated_case, name in timed}
    rows = tuple(_attach_rounds(item, runner) for item in candidates)
    result = CandidatesResult(
        created=created.isoformat(timespec="seconds"),
        edgetl=edgetl.__version__,
        device=runner.describe_device(device_info),
        noise=runner.evaluate_noise(row_names),
        protocol={
            **asdict(protocol),
            "rounds": config.rounds,
            "seed": config.seed,
            "scope": "model",
            "batch": 1,
        },
        order=tuple(tuple(case_names[name] for name in order) for order in runner.case_order),
        classes=config.classes,
        latency_budget_ms=config.latency_budget_ms,
        provider=config.provider,
        threads=threads,
        rows=rows,
        interrupted=runner.stop_cause is not None,
    )
    path, notes = store_result(partial(write_result, result), config.output, RESULTS, created)
    runner.raise_if_stopped(len(rows), path, notes)
    return replace(result, path=path, notes=(*result.notes, *notes))


def _attach_rounds(candidate: _PreparedCandidate, runner: RoundRunner) -> CandidateRow:
    if candidate.gated_case is None:
        return candidate.row
    failure = runner.failures.get(candidate.gated_case.case.name)
    return replace(
        candidate.row,
        rounds=tuple(runner.rounds_by_row.get(candidate.gated_case.rows[0].id, ())),
        failed=candidate.row.failed if failure is None else str(failure),
    )


def _prepare_all(
    config: CandidatesConfig,
    threads: int,
    protocol: BenchProtocol,
    folder: Path,
    report: ProgressCallback,
) -> Iterator[_PreparedCandidate]:
    sizes = tuple(dict.fromkeys(config.image_sizes)) or (None,)
    combinations = list(product(dict.fromkeys(config.architectures), sizes))
    for number, (architecture, requested_size) in enumerate(combinations):
        size = requested_size or get_architecture(architecture).image_size
        report(f"exporting {architecture} at {size} px", number, len(combinations))
        row = CandidateRow(architecture, size)
        try:
            yield _prepare(row, config, threads, protocol, folder)
        except ProviderError:
            raise  # all other candidates would fail the same way
        except EdgetlError as cause:
            yield _PreparedCandidate(replace(row, failed=str(cause)))
        # PyTorch, onnx and the file system raise any exception. A failure is part of the result,
        # and the other candidates continue.
        except Exception as cause:
            yield _PreparedCandidate(replace(row, failed=f"{type(cause).__name__}: {cause}"))


def _prepare(
    row: CandidateRow, config: CandidatesConfig, threads: int, protocol: BenchProtocol, folder: Path
) -> _PreparedCandidate:
    untrained = write_untrained(
        row.architecture,
        row.image_size,
        config.classes,
        config.seed,
        threads,
        folder / f"{file_stem(row.name)}.onnx",
    )
    sha256 = sha256_file(untrained.file)
    size_bytes = untrained.file.stat().st_size
    source = ModelSource(untrained.file, threads, config.provider, "image", untrained.preprocessing)
    # The logits were already compared with PyTorch. The gate opens the file as it will be measured,
    # checks the provider and describes the session.
    start = time.monotonic()
    case = target.BenchCase("onnxruntime", row.name, source, sha256, size_bytes, ("model",))
    ((gated_case,), _) = run_gates([case], None, protocol, folder, log_progress)
    open_s = time.monotonic() - start
    gated_row = gated_case.rows[0]
    return _PreparedCandidate(
        replace(
            row,
            parameters=untrained.parameters,
            imagenet_top1=untrained.imagenet_top1,
            file_bytes=size_bytes,
            file_sha256=sha256,
            parity=untrained.parity,
            session=replace(gated_row.session, input=gated_row.input),
        ),
        gated_case,
        open_s + _block_s(protocol, untrained.inference_s),
    )


def _block_s(protocol: BenchProtocol, inference_s: float) -> float:
    window_s = max(protocol.window_seconds, protocol.window_runs * inference_s)
    warmup_s = min(_WARM_UP_WINDOWS * window_s, protocol.warmup_seconds)
    return warmup_s + max(protocol.block_seconds, protocol.block_runs * inference_s)


def _format_duration(seconds: float) -> str:
    if seconds >= 90:
        return f"about {seconds / 60:.0f} minutes"
    return f"about {max(seconds, 1):.0f} seconds"

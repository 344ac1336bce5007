"""Architectures timed on this device before any of them is trained: each is exported with a new head and measured as a bundle is."""

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
from edgetl.core.artifacts.bench_json import write_result
from edgetl.core.artifacts.candidates import CandidateRow, CandidatesResult
from edgetl.core.artifacts.storage import check_output_path, store_result
from edgetl.core.config.candidates import CandidatesConfig
from edgetl.core.errors import EdgetlError, ProviderError
from edgetl.core.files import sha256_file
from edgetl.device.bench import target
from edgetl.device.bench.backend import ModelSource
from edgetl.device.bench.gate import GatedCase, run_gates
from edgetl.device.bench.protocol import BenchProtocol
from edgetl.device.bench.rounds import BenchProgress, BenchRunner, RoundRunner
from edgetl.device.hardware.cpu import resolve_intra_op_threads
from edgetl.device.hardware.info import collect_device_info
from edgetl.device.runtime.session import check_provider
from edgetl.export.random_init import check_names, write_untrained
from edgetl.train.model.torchvision_models import get_architecture

RESULTS = Path("bench")
"""Where results go that no --output names."""
_WARM_UP_WINDOWS = 4
"""Before a block, roughly: for saying how long a measurement will take."""


@dataclass(frozen=True)
class _PreparedCandidate:
    row: CandidateRow
    gated_case: GatedCase | None = None
    block_s: float = 0.0
    """Seconds of one block, its process and its warm-up included, roughly."""


def time_candidates(
    config: CandidatesConfig,
    progress: BenchProgress | None = None,
    protocol: BenchProtocol | None = None,
) -> CandidatesResult:
    """Export every architecture at every image size with random weights, time them in turns, and keep the result, returned with its path.

    Measured is scope `model`, one image, preprocessing inside: what `edgetl bench` measures of the trained network's bundle.
    A candidate that cannot be exported, does not answer as PyTorch does, or cannot be opened is in the result with its reason (`failed`);
    the others go on.

    Args:
        config: what to time, and the budget.
        progress: called before each export and each block with (done, all, what comes next); what is not counted (all 0) is a note that
            says how long the measurement will take.
        protocol: how long; None takes the protocol's own figures.

    Raises:
        ConfigError: unknown architectures, all of them at once, before anything is exported.
        ProviderError: the provider is not there.
        BenchError: the result cannot be written, or a worker died; two or more whole rounds are kept, and the message says where.
        KeyboardInterrupt: as with a worker that died.
    """
    protocol, report = protocol or BenchProtocol(), progress or (lambda done, total, text: None)
    check_names(config.architectures)
    check_provider(config.provider)
    check_output_path(config.output, RESULTS)
    (threads,) = resolve_intra_op_threads(
        () if config.threads is None else (config.threads,), config.force
    )
    facts, created = collect_device_info(), datetime.now(UTC)
    with tempfile.TemporaryDirectory(prefix="edgetl-candidates-") as name:
        folder = Path(name)
        prepared = list(_prepare_all(config, threads, protocol, folder, report))
        able = [one.gated_case for one in prepared if one.gated_case is not None]
        seconds = config.rounds * sum(one.block_s for one in prepared)
        if able:
            report(
                0,
                0,
                f"Timing {len(able)} candidates in {config.rounds} rounds takes {_format_duration(seconds)}.",
            )
        campaign = BenchRunner()
        with campaign.capture_stop():
            campaign.measure(able, config.rounds, config.seed, folder, report)
    names = {
        one.gated_case.case.name: one.row.name for one in prepared if one.gated_case is not None
    }
    rows = tuple(_attach_rounds(one, campaign.round_runner) for one in prepared)
    found = {row.name: row.rounds for row in rows}
    result = CandidatesResult(
        created=created.isoformat(timespec="seconds"),
        edgetl=edgetl.__version__,
        device={**facts, **campaign.device_states},
        noise=campaign.evaluate_noise(found),
        protocol={
            **asdict(protocol),
            "rounds": config.rounds,
            "seed": config.seed,
            "scope": "model",
            "batch": 1,
        },
        order=tuple(
            tuple(names[name] for name in order) for order in campaign.round_runner.case_order
        ),
        classes=config.classes,
        latency_budget_ms=config.latency_budget_ms,
        provider=config.provider,
        threads=threads,
        rows=rows,
        interrupted=campaign.stop_cause is not None,
    )
    path, notes = store_result(partial(write_result, result), config.output, RESULTS, created)
    campaign.raise_if_stopped(found, path, notes)
    return replace(result, path=path, notes=(*result.notes, *notes))


def _attach_rounds(one: _PreparedCandidate, rounds: RoundRunner) -> CandidateRow:
    if one.gated_case is None:
        return one.row
    died = rounds.failures.get(one.gated_case.case.name)
    return replace(
        one.row,
        rounds=tuple(rounds.rounds_by_row.get(one.gated_case.rows[0].id, ())),
        failed=one.row.failed if died is None else str(died),
    )


def _prepare_all(
    config: CandidatesConfig,
    threads: int,
    protocol: BenchProtocol,
    folder: Path,
    report: BenchProgress,
) -> Iterator[_PreparedCandidate]:
    sizes = tuple(dict.fromkeys(config.image_sizes)) or (None,)
    wanted = list(product(dict.fromkeys(config.architectures), sizes))
    for number, (architecture, asked) in enumerate(wanted):
        size = asked or get_architecture(architecture).image_size
        report(number, len(wanted), f"exporting {architecture} at {size} px")
        row = CandidateRow(architecture, size)
        try:
            yield _prepare(row, config, threads, protocol, folder)
        except ProviderError:
            raise  # it would be the same for all of them
        except EdgetlError as cause:
            yield _PreparedCandidate(replace(row, failed=str(cause)))
        except (
            Exception
        ) as cause:  # PyTorch, onnx and the disk: one that fails is a finding, and the others go on
            yield _PreparedCandidate(replace(row, failed=f"{type(cause).__name__}: {cause}"))


def _prepare(
    row: CandidateRow, config: CandidatesConfig, threads: int, protocol: BenchProtocol, folder: Path
) -> _PreparedCandidate:
    written = write_untrained(
        row.architecture,
        row.image_size,
        config.classes,
        config.seed,
        threads,
        folder / f"{row.name}.onnx",
    )
    sha256, size = sha256_file(written.file), written.file.stat().st_size
    source = ModelSource(written.file, threads, config.provider, "image", written.preprocessing)
    # Checked above, against PyTorch itself: this opens it as it will be measured, proves the provider, and describes the session.
    started = time.monotonic()
    candidate = target.BenchCase("onnxruntime", row.name, source, sha256, size, ("model",))
    ((contender,), _) = run_gates([candidate], None, protocol, folder, lambda text: None)
    opened_s = time.monotonic() - started
    opened = contender.rows[0]
    return _PreparedCandidate(
        replace(
            row,
            parameters=written.parameters,
            imagenet_top1=written.imagenet_top1,
            file_bytes=size,
            file_sha256=sha256,
            parity=written.check,
            session={**opened.session, "input": opened.input},
        ),
        contender,
        opened_s + _block_s(protocol, written.inference_s),
    )


def _block_s(protocol: BenchProtocol, run_s: float) -> float:
    warm_up = _WARM_UP_WINDOWS * max(protocol.window_seconds, protocol.window_runs * run_s)
    return min(warm_up, protocol.warmup_seconds) + max(
        protocol.block_seconds, protocol.block_runs * run_s
    )


def _format_duration(seconds: float) -> str:
    return (
        f"about {seconds / 60:.0f} minutes"
        if seconds >= 90
        else f"about {max(seconds, 1):.0f} seconds"
    )

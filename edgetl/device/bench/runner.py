"""`edgetl.bench`: from a path to a result, by the protocol."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import edgetl
from edgetl.core.artifacts.bench import EAGER_VARIANT, BenchResult, Noise
from edgetl.core.artifacts.bench_json import write_result
from edgetl.core.artifacts.bench_rows import BenchRow
from edgetl.core.artifacts.recommendation import recommend
from edgetl.core.artifacts.storage import check_output_path, store_result
from edgetl.core.artifacts.sustained import SustainedResult
from edgetl.core.config.bench import BenchConfig
from edgetl.device.bench.baseline import match_rows, read_baseline
from edgetl.device.bench.gate import GatedCase, run_gates
from edgetl.device.bench.inputs import prepare_bench_inputs
from edgetl.device.bench.protocol import BenchProtocol
from edgetl.device.bench.rounds import BenchProgress, BenchRunner, RoundRunner
from edgetl.device.bench.sustained import run_sustained_job
from edgetl.device.bench.target import find_target, torch_device
from edgetl.device.bench.worker_process import run_job
from edgetl.device.hardware.cpu import resolve_intra_op_threads
from edgetl.device.hardware.energy import EnergyMeter
from edgetl.device.hardware.info import collect_device_info
from edgetl.device.runtime.session import check_provider


class _FullBenchRunner(BenchRunner):
    """What there is so far, whatever ends the run."""

    def __init__(self) -> None:
        super().__init__()
        self.sustained: SustainedResult | None = None
        self.profiles: dict[str, Any] = {}


def bench(
    config: BenchConfig,
    progress: BenchProgress | None = None,
    protocol: BenchProtocol | None = None,
) -> BenchResult:
    """Measure what lies at `config.target` and keep the result, which is also returned with its path.

    Rows whose golden gate failed are in the result (`failed`) but were not timed.

    Args:
        config: what to measure.
        progress: called before each block.
        protocol: how long; None takes the protocol's own figures.

    Raises:
        BundleError, ProviderError, BenchError: nothing was measured; the message says why.
        KeyboardInterrupt: interrupted; what was measured is kept, and the message says where.
    """
    protocol, report = protocol or BenchProtocol(), progress or (lambda done, total, text: None)
    threads = resolve_intra_op_threads(config.threads, config.force)
    for provider in config.providers:
        check_provider(provider)
    target = find_target(config, threads)
    check_output_path(config.output, target.results_folder)
    earlier = None if config.baseline is None else read_baseline(config.baseline, config.scopes)
    facts, meter, created = collect_device_info(), EnergyMeter(), datetime.now(UTC)
    measured = _FullBenchRunner()

    with tempfile.TemporaryDirectory(prefix="edgetl-bench-") as name:
        folder = Path(name)
        pictures = None
        if target.bundle is not None:
            pictures = prepare_bench_inputs(
                target.bundle, {candidate.input_spec for candidate in target.cases}, folder
            )
        contenders, left_out = run_gates(
            target.cases,
            pictures,
            protocol,
            folder,
            lambda text: report(0, 0, text),
            tuple(dict.fromkeys(config.rates)),
        )
        rows = [row for contender in contenders for row in contender.rows]
        matched = (
            []
            if earlier is None
            else match_rows(earlier, rows, target.model, facts, config.any_model)
        )
        # A baseline alone answers no question: where every ONNX variant failed nothing is timed.
        able = [contender for contender in contenders if contender.passed]
        able = able if any(contender.case.runtime != "pytorch" for contender in able) else []

        with measured.capture_stop():
            measured.measure(able, config.rounds, config.seed, folder, report)
            _profile_and_sustain(able, config, measured, folder, report)
    rows = _attach_rounds(rows, measured.round_runner)
    found = {row.id: row.rounds for row in rows}
    result = BenchResult(
        created=created.isoformat(timespec="seconds"),
        edgetl=edgetl.__version__,
        target=str(config.target),
        model=target.model,
        device={
            **facts,
            "energy": {
                "sources": list(meter.source_names),
                "denied": list(meter.denied_source_names),
            },
            **measured.device_states,
        },
        noise=_mark_emulated(measured.evaluate_noise(found))
        if facts["emulated"]
        else measured.evaluate_noise(found),
        protocol={**asdict(protocol), "rounds": config.rounds, "seed": config.seed},
        order=tuple(measured.round_runner.case_order),
        rows=tuple(rows),
        pairs=tuple(_pair_rows(rows)),
        earlier_pairs=tuple(matched),
        notes=(
            *target.notes,
            *left_out,
            *(
                f"{name} was given up: {error}"
                for name, error in measured.round_runner.failures.items()
            ),
        ),
        sustained=measured.sustained,
        profiles=measured.profiles,
        limits=config.limits,
        interrupted=measured.stop_cause is not None,
    )
    path, notes = store_result(
        partial(write_result, result), config.output, target.results_folder, created
    )
    measured.raise_if_stopped(found, path, notes)
    return replace(result, path=path, notes=(*result.notes, *notes))


def _mark_emulated(noise: Noise) -> Noise:
    """As `noise`, and said first that the instructions are another processor's."""
    return replace(
        noise, reasons=("the processor is emulated: no time here is a device's", *noise.reasons)
    )


def _profile_and_sustain(
    able: Sequence[GatedCase],
    config: BenchConfig,
    measured: _FullBenchRunner,
    folder: Path,
    report: BenchProgress,
) -> None:
    alive = [
        contender for contender in able if contender.case.name not in measured.round_runner.failures
    ]
    own = [contender for contender in alive if contender.case.runtime != "pytorch"]
    if config.profile:
        for contender in alive:
            report(0, 0, f"profile: {contender.case.name}")
            job = replace(contender.job, task="profile")
            profile = run_job(job, folder)
            measured.profiles[contender.rows[0].id] = profile
    if config.sustained_s and own:
        chosen = recommend(
            _attach_rounds(
                [row for contender in own for row in contender.rows], measured.round_runner
            )
        )
        assert chosen is not None
        row_id = chosen.latency.row
        contender, row = next(
            (contender, row) for contender in own for row in contender.rows if row.id == row_id
        )
        report(0, 0, f"sustained, {config.sustained_s:.0f} s: {contender.case.name}")
        run_sustained_job(
            contender.job,
            row_id,
            row.scope,
            config.sustained_s,
            folder,
            lambda found: setattr(measured, "sustained", found),
        )


def _attach_rounds(rows: Sequence[BenchRow], rounds: RoundRunner) -> list[BenchRow]:
    return [replace(row, rounds=tuple(rounds.rounds_by_row.get(row.id, ()))) for row in rows]


def _pair_rows(rows: Sequence[BenchRow]) -> Iterator[tuple[str, str]]:
    """(baseline, candidate): every ONNX row against the PyTorch rows of its cell, or where there are none against the cell's first."""
    for row in rows:
        cell = [other for other in rows if other.comparison_key == row.comparison_key]
        torch_rows = [
            other
            for other in cell
            if other.runtime == "pytorch" and other.provider == torch_device(row.provider)
        ]
        baselines = torch_rows or cell[:1]
        if row.runtime == "pytorch":
            baselines = [other for other in torch_rows if other.variant == EAGER_VARIANT]
        yield from ((other.id, row.id) for other in baselines if other is not row)

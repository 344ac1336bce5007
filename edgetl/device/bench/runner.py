"""`edgetl.bench`: benchmark a run, a bundle or an ONNX file."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import edgetl
from edgetl.core.artifacts.bench import EAGER_VARIANT, BenchedModel, BenchResult
from edgetl.core.artifacts.bench_json import write_result
from edgetl.core.artifacts.bench_rows import BenchRow
from edgetl.core.artifacts.comparison import EarlierPair, Pair
from edgetl.core.artifacts.device import DeviceInfo, EnergyCounters
from edgetl.core.artifacts.noise import NoiseReport
from edgetl.core.artifacts.recommendation import recommend
from edgetl.core.artifacts.session import OperatorProfile
from edgetl.core.artifacts.storage import check_output_path, store_result
from edgetl.core.artifacts.sustained import SustainedResult
from edgetl.core.artifacts.variant_agreement import describe_disagreements
from edgetl.core.config.bench import BenchConfig
from edgetl.core.progress import ProgressCallback, log_progress
from edgetl.core.runtimes import ONNXRUNTIME
from edgetl.device.bench.baseline import match_rows, read_baseline
from edgetl.device.bench.correctness_gate import GatedCase, run_gates
from edgetl.device.bench.inputs import prepare_bench_inputs
from edgetl.device.bench.protocol import BenchProtocol
from edgetl.device.bench.recommendation import check_bundle_writable, save_recommendation
from edgetl.device.bench.rounds import RoundRunner
from edgetl.device.bench.sustained import run_sustained_job
from edgetl.device.bench.target import BenchTarget, find_target, torch_device
from edgetl.device.bench.worker_process import run_job
from edgetl.device.hardware.cpu import resolve_intra_op_threads
from edgetl.device.hardware.energy import EnergyMeter
from edgetl.device.hardware.info import collect_device_info
from edgetl.device.runtime.bundle import Bundle
from edgetl.device.runtime.session import check_provider


@dataclass
class _ExtraMeasurements:
    """Measurements after the rounds; those completed before an interruption are valid."""

    sustained: SustainedResult | None = None
    profiles: dict[str, OperatorProfile] = field(default_factory=dict)


def bench(
    config: BenchConfig,
    progress: ProgressCallback | None = None,
    protocol: BenchProtocol | None = None,
) -> BenchResult:
    """Benchmark the target of `config`, write the result and return it with its path.

    Rows that failed the gate are in the result (`failed`) but were not timed.

    Args:
        config: the target and the options.
        progress: called with the next step before each block.
        protocol: durations and counts; None means the default protocol.

    Raises:
        BundleError, ProviderError, BenchError: nothing was measured, or the measurement stopped
            early and its completed rounds were written.
        KeyboardInterrupt: interrupted; the message says where the completed rounds were written.
    """
    protocol = protocol or BenchProtocol()
    report = progress or log_progress
    threads = resolve_intra_op_threads(config.threads, config.force)
    target = find_target(config, threads)
    if any(case.runtime == ONNXRUNTIME for case in target.cases):
        for provider in config.providers:
            check_provider(provider)
    _check_outputs(config, target)
    baseline = None if config.baseline is None else read_baseline(config.baseline, config.scopes)
    device_info = collect_device_info()
    meter = EnergyMeter()
    created = datetime.now(UTC)
    runner = RoundRunner()
    extras = _ExtraMeasurements()

    with tempfile.TemporaryDirectory(prefix="edgetl-bench-") as name:
        folder = Path(name)
        inputs = None
        if target.bundle is not None:
            inputs = prepare_bench_inputs(target.bundle, target.input_specs, folder)
        gated_cases, gate_notes = run_gates(
            target.cases, inputs, protocol, folder, report, config.rates
        )
        rows = [row for gated_case in gated_cases for row in gated_case.rows]
        baseline_pairs: list[EarlierPair] = []
        if baseline is not None:
            baseline_pairs = match_rows(baseline, rows, target.model, device_info, config.any_model)
        passed_cases = [gated_case for gated_case in gated_cases if gated_case.passed]
        # Nothing is timed if every ONNX variant failed: PyTorch rows alone compare nothing.
        if not any(gated_case.case.runtime != "pytorch" for gated_case in passed_cases):
            passed_cases = []
        with runner.capture_stop():
            measured = runner.measure(passed_cases, config.rounds, config.seed, folder, report)
            _profile_and_sustain(measured, config, target.model, extras, folder, report)
    rows = [runner.attach_rounds(row) for row in rows]
    energy = EnergyCounters(tuple(meter.source_names), tuple(meter.denied_source_names))
    result = BenchResult(
        created=created.isoformat(timespec="seconds"),
        edgetl=edgetl.__version__,
        target=str(config.target),
        model=target.model,
        device=runner.describe_device(replace(device_info, energy=energy)),
        noise=_add_emulation_reason(runner.evaluate_noise(), device_info),
        protocol={**asdict(protocol), "rounds": config.rounds, "seed": config.seed},
        order=tuple(runner.case_order),
        rows=tuple(rows),
        pairs=tuple(_pair_rows(rows)),
        earlier_pairs=tuple(baseline_pairs),
        notes=(*target.notes, *gate_notes, *runner.failure_notes),
        sustained=extras.sustained,
        profiles=extras.profiles,
        limits=config.limits,
        interrupted=runner.stop_cause is not None,
    )
    result = _add_disagreements(result, target.bundle)
    path, notes = store_result(
        partial(write_result, result), config.output, target.results_folder, created
    )
    runner.raise_if_stopped(len(rows), path, notes)
    notes = (*notes, *_save_recommendation(result, config, target))
    return replace(result, path=path, notes=(*result.notes, *notes))


def _save_recommendation(
    result: BenchResult, config: BenchConfig, target: BenchTarget
) -> list[str]:
    if not config.save_recommendation or target.bundle is None:
        return []
    return [save_recommendation(result, target.bundle.directory)]


def _check_outputs(config: BenchConfig, target: BenchTarget) -> None:
    check_output_path(config.output, target.results_folder)
    if config.save_recommendation and target.bundle is not None:
        check_bundle_writable(target.bundle.directory)


def _add_disagreements(result: BenchResult, bundle: Bundle | None) -> BenchResult:
    if bundle is None:
        return result
    disagreements = describe_disagreements(bundle.manifest, result)
    return replace(result, notes=(*result.notes, *disagreements))


def _add_emulation_reason(noise: NoiseReport, device: DeviceInfo) -> NoiseReport:
    if not device.emulated:
        return noise
    reason = "the processor is emulated: times do not apply to real devices"
    return replace(noise, reasons=(reason, *noise.reasons))


def _profile_and_sustain(
    measured_cases: Sequence[GatedCase],
    config: BenchConfig,
    model: BenchedModel,
    extras: _ExtraMeasurements,
    folder: Path,
    report: ProgressCallback,
) -> None:
    if config.profile:
        for gated_case in measured_cases:
            report(f"profile: {gated_case.case.name}", 0, 0)
            profile = run_job(replace(gated_case.job, task="profile"), folder, OperatorProfile)
            extras.profiles[gated_case.rows[0].id] = profile
    onnx_cases = [item for item in measured_cases if item.case.runtime != "pytorch"]
    if config.sustained_s and onnx_cases:
        rows = [row for case in onnx_cases for row in case.rows]
        recommendation = recommend(rows, model.max_accuracy_drop)
        assert recommendation is not None
        row_id = recommendation.latency.row
        gated_case, row = next(
            (gated_case, row)
            for gated_case in onnx_cases
            for row in gated_case.rows
            if row.id == row_id
        )
        report(f"sustained, {config.sustained_s:.0f} s: {gated_case.case.name}", 0, 0)
        run_sustained_job(
            gated_case.job,
            row_id,
            row.scope,
            config.sustained_s,
            folder,
            lambda sustained: setattr(extras, "sustained", sustained),
        )


def _pair_rows(rows: Sequence[BenchRow]) -> Iterator[Pair]:
    """Yield the comparisons within a result.

    An ONNX row is compared with the PyTorch rows of its comparison key, or with the key's first row
    if there are none. A PyTorch row is compared with eager PyTorch.
    """
    for row in rows:
        comparable = [item for item in rows if item.comparison_key == row.comparison_key]
        torch_rows = [
            item
            for item in comparable
            if item.runtime == "pytorch" and item.provider == torch_device(row.provider)
        ]
        baselines = torch_rows or comparable[:1]
        if row.runtime == "pytorch":
            baselines = [item for item in torch_rows if item.variant == EAGER_VARIANT]
        yield from (Pair(baseline.id, row.id) for baseline in baselines if baseline is not row)

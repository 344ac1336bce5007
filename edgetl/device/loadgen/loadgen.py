"""`edgetl.loadgen`: run MLPerf LoadGen on a bundle, after the gate of `edgetl bench`."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from statistics import median

import edgetl
from edgetl.core.artifacts.bench_json import write_result
from edgetl.core.artifacts.bench_rows import relative_spread
from edgetl.core.artifacts.bundle import VariantRecord
from edgetl.core.artifacts.loadgen import (
    MLPERF_ACCURACY_SHARE,
    LoadgenAccuracy,
    LoadgenConfiguration,
    LoadgenPerformance,
    LoadgenResult,
    SampleSetRecord,
)
from edgetl.core.artifacts.loadgen_logs import read_predictions, read_summary
from edgetl.core.artifacts.storage import check_output_path, store_result
from edgetl.core.config.bench import BenchConfig
from edgetl.core.config.loadgen import LoadgenConfig
from edgetl.core.errors import BenchError
from edgetl.core.progress import ProgressCallback, log_progress
from edgetl.core.registry import convert_import_error
from edgetl.device.bench.correctness_gate import GatedCase, run_gates
from edgetl.device.bench.inputs import prepare_bench_inputs
from edgetl.device.bench.job import WorkerJob
from edgetl.device.bench.protocol import BenchProtocol
from edgetl.device.bench.rounds import read_process_cpu_s
from edgetl.device.bench.target import BenchTarget, find_target
from edgetl.device.bench.worker_process import run_job
from edgetl.device.hardware.cpu import resolve_intra_op_threads
from edgetl.device.hardware.info import collect_device_info, installed_version
from edgetl.device.hardware.noise import assess_noise
from edgetl.device.hardware.state import read_device_state
from edgetl.device.loadgen.job import LoadgenJob, LoadgenPlan, LoadgenReply
from edgetl.device.loadgen.samples import (
    SampleSet,
    count_resident_samples,
    load_golden_samples,
    load_labeled_samples,
)
from edgetl.device.runtime.bundle import Bundle, open_bundle
from edgetl.device.runtime.session import check_provider

LOADGEN_PACKAGE = "mlcommons-loadgen"
LOADGEN_MODULE = "mlperf_loadgen"
_MAX_LOOP_S = 5.0


def loadgen(
    config: LoadgenConfig,
    progress: ProgressCallback | None = None,
    protocol: BenchProtocol | None = None,
) -> LoadgenResult:
    """Run LoadGen on the bundle at `config.target`, write the result and return it with its path.

    Args:
        config: the target and the options.
        progress: called with a description of each step.
        protocol: minimum durations of edgetl's own loop; None means the default protocol.

    Raises:
        MissingPackageError: LoadGen is not installed.
        BundleError, ProviderError, DataError: the bundle, provider or data cannot be used.
        BenchError: the gate failed, or LoadGen's process crashed.
        KeyboardInterrupt: interrupted; no result is written.
    """
    protocol = protocol or BenchProtocol()
    report = progress or log_progress
    version = installed_version(LOADGEN_PACKAGE)
    if version is None:
        raise convert_import_error(ModuleNotFoundError(name=LOADGEN_MODULE))
    requested_threads = [] if config.threads is None else [config.threads]
    threads = resolve_intra_op_threads(requested_threads, config.force)
    check_provider(config.provider)
    bundle, variant = _open_variant(config)
    samples = _load_samples(config, bundle, variant)
    target = find_target(_make_bench_config(config, variant, threads), threads)
    check_output_path(config.output, target.results_folder)
    device_info = collect_device_info()
    created = datetime.now(UTC)
    with tempfile.TemporaryDirectory(prefix="edgetl-loadgen-") as name:
        folder = Path(name)
        gated_case = _run_gate(bundle, target, protocol, folder, report)
        resident = count_resident_samples(
            samples.files, config.scope, variant.input, bundle.preprocessing
        )
        state_before = read_device_state()
        cpu_s_before = read_process_cpu_s()
        accuracy = None
        if "accuracy" in config.modes:
            report(f"LoadGen {config.scenario}, accuracy: {len(samples.files)} samples", 0, 0)
            accuracy = _run_accuracy(
                config, gated_case.job, samples, bundle, variant, resident, folder
            )
        performance = None
        if "performance" in config.modes:
            duration = f"{config.min_duration_s:g} s or more"
            report(f"LoadGen {config.scenario}, performance: {duration}", 0, 0)
            performance = _run_performance(
                config, gated_case.job, samples, resident, folder, protocol
            )
        state_after = read_device_state()
        process_cpu_s = read_process_cpu_s() - cpu_s_before
        result = LoadgenResult(
            created=created.isoformat(timespec="seconds"),
            edgetl=edgetl.__version__,
            loadgen=version,
            target=str(config.target),
            model=target.model,
            scenario=config.scenario,
            configuration=LoadgenConfiguration.from_row(gated_case.rows[0]),
            samples=SampleSetRecord(
                samples.reference_kind, len(samples.files), resident, samples.description
            ),
            min_duration_s=config.min_duration_s,
            device=replace(device_info, before=state_before, after=state_after),
            noise=assess_noise(state_before, state_after, process_cpu_s, _loop_spread(performance)),
            accuracy=accuracy,
            performance=performance,
        )
        path, notes = store_result(
            partial(_write_with_logs, result, folder / "logs"),
            config.output,
            target.results_folder,
            created,
        )
    logs = None if path is None else _logs_folder(path).name
    return replace(result, path=path, logs=logs, notes=notes)


def _open_variant(config: LoadgenConfig) -> tuple[Bundle, VariantRecord]:
    """Open the bundle and select the variant.

    Raises:
        BundleError: the bundle or the variant is not found.
        BenchError: LoadGen cannot be used with the target.
    """
    if Path(config.target).suffix == ".onnx":
        raise BenchError(
            "LoadGen needs a bundle: a lone ONNX file has no images. Pass a run or a bundle."
        )
    bundle = open_bundle(config.target)
    variant = bundle.select_variant(config.variant)
    if variant.size is not None:
        raise BenchError(
            f"{variant.name} takes images of one size only, but LoadGen's samples differ in size. "
            "Choose another --variant."
        )
    return bundle, variant


def _load_samples(config: LoadgenConfig, bundle: Bundle, variant: VariantRecord) -> SampleSet:
    if config.data is None:
        return load_golden_samples(bundle, variant)
    return load_labeled_samples(config.data, bundle.labels)


def _make_bench_config(
    config: LoadgenConfig, variant: VariantRecord, threads: tuple[int, ...]
) -> BenchConfig:
    return BenchConfig(
        config.target,
        (config.scope,),
        (config.call_batch,),
        threads,
        (config.provider,),
        (variant.name,),
        torch_modes=(),
        force=config.force,
    )


def _run_gate(
    bundle: Bundle,
    target: BenchTarget,
    protocol: BenchProtocol,
    folder: Path,
    report: ProgressCallback,
) -> GatedCase:
    """Return the only case of the target after its gate.

    Raises:
        BenchError: the gate failed.
    """
    inputs = prepare_bench_inputs(bundle, target.input_specs, folder)
    (gated_case,), _ = run_gates(target.cases, inputs, protocol, folder, report)
    if not gated_case.passed:
        row = gated_case.rows[0]
        raise BenchError(
            "The golden images did not pass, so LoadGen was not started. "
            f"{row.name}: {row.gate.reason}. "
            "Export the bundle again, or try another --provider."
        )
    return gated_case


def _run_accuracy(
    config: LoadgenConfig,
    job: WorkerJob,
    samples: SampleSet,
    bundle: Bundle,
    variant: VariantRecord,
    resident: int,
    folder: Path,
) -> LoadgenAccuracy:
    logs = folder / "logs/accuracy"
    _run_mode(config, "accuracy", job, samples, resident, logs, folder)
    mistakes = samples.find_mistakes(read_predictions(logs), bundle.labels)
    min_accuracy = config.min_accuracy
    if min_accuracy is None:
        if samples.reference_kind == "reference":
            min_accuracy = 1.0
        elif variant.accuracy is not None:
            min_accuracy = MLPERF_ACCURACY_SHARE * variant.accuracy.top1
    return LoadgenAccuracy(
        samples.reference_kind, len(samples.files), mistakes, min_accuracy, read_summary(logs)
    )


def _run_performance(
    config: LoadgenConfig,
    job: WorkerJob,
    samples: SampleSet,
    resident: int,
    folder: Path,
    protocol: BenchProtocol,
) -> LoadgenPerformance:
    logs = folder / "logs/performance"
    loop_s = max(protocol.block_seconds, min(_MAX_LOOP_S, config.min_duration_s / 4))
    reply = _run_mode(config, "performance", job, samples, resident, logs, folder, loop_s)
    return LoadgenPerformance(
        config.scenario,
        read_summary(logs),
        before_ns=reply.before_ns,
        after_ns=reply.after_ns,
        inside_ns=reply.inside_ns,
        model_ns=reply.model_ns,
        loop_images=config.query_samples,
        issued=reply.issued,
        steady=reply.steady,
    )


def _run_mode(
    config: LoadgenConfig,
    mode: str,
    job: WorkerJob,
    samples: SampleSet,
    resident: int,
    logs: Path,
    folder: Path,
    loop_s: float = 0.0,
) -> LoadgenReply:
    logs.mkdir(parents=True)
    plan = LoadgenPlan(
        config.scenario, mode, logs, config.min_duration_s, config.query_samples, resident, loop_s
    )
    # `seconds` extends the timeout of a task.
    job = replace(job, task="loadgen", files=samples.files, seconds=2 * config.min_duration_s)
    return run_job(LoadgenJob(**vars(job), plan=plan), folder, LoadgenReply)


def _loop_spread(performance: LoadgenPerformance | None) -> dict[str, float]:
    if performance is None:
        return {}
    return {
        "edgetl's loop": relative_spread(
            [median(performance.before_ns), median(performance.after_ns)]
        )
    }


def _logs_folder(path: Path) -> Path:
    """Return the folder beside the result for LoadGen's log files."""
    return path.with_name(f"{path.stem}-loadgen")


def _write_with_logs(result: LoadgenResult, logs: Path, path: Path) -> None:
    folder = _logs_folder(path)
    try:
        shutil.copytree(logs, folder)
    except FileExistsError as cause:
        raise BenchError(
            f"{folder} already exists, and results are never overwritten. Choose another --output."
        ) from cause
    except (OSError, shutil.Error) as cause:
        shutil.rmtree(folder, ignore_errors=True)
        raise BenchError(
            f"Cannot write LoadGen's files to {folder} ({cause}). Choose another --output."
        ) from cause
    try:
        write_result(replace(result, logs=folder.name), path)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise

"""`edgetl.loadgen`: MLPerf LoadGen's test of a bundle, after the gate of `edgetl bench`, with LoadGen's own files kept."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import edgetl
from edgetl.core.artifacts.bench_json import write_result
from edgetl.core.artifacts.bench_rows import relative_spread
from edgetl.core.artifacts.loadgen import (
    MLPERF_ACCURACY_SHARE,
    LoadgenAccuracy,
    LoadgenPerformance,
    LoadgenResult,
)
from edgetl.core.artifacts.loadgen_logs import read_predictions, read_summary
from edgetl.core.artifacts.storage import check_output_path, store_result
from edgetl.core.config.bench import BenchConfig
from edgetl.core.config.loadgen import LoadgenConfig
from edgetl.core.errors import BenchError
from edgetl.core.registry import convert_import_error
from edgetl.device.bench.gate import GatedCase, run_gates
from edgetl.device.bench.inputs import prepare_bench_inputs
from edgetl.device.bench.job import WorkerJob
from edgetl.device.bench.protocol import BenchProtocol
from edgetl.device.bench.rounds import BenchProgress, read_process_cpu_s
from edgetl.device.bench.target import BenchTarget, find_target
from edgetl.device.bench.worker_process import run_job
from edgetl.device.hardware.cpu import resolve_intra_op_threads
from edgetl.device.hardware.info import collect_device_info, installed_version
from edgetl.device.hardware.noise import assess_noise
from edgetl.device.hardware.state import read_device_state
from edgetl.device.loadgen.job import LoadgenJob, LoadgenPlan
from edgetl.device.loadgen.samples import (
    SampleSet,
    count_resident_samples,
    load_golden_samples,
    load_labeled_samples,
)
from edgetl.device.runtime.bundle import Bundle, Variant, open_bundle
from edgetl.device.runtime.session import check_provider

LOADGEN_PACKAGE, LOADGEN_MODULE = "mlcommons-loadgen", "mlperf_loadgen"
_MAX_LOOP_S = 5.0


def loadgen(
    config: LoadgenConfig,
    progress: BenchProgress | None = None,
    protocol: BenchProtocol | None = None,
) -> LoadgenResult:
    """Let LoadGen drive the bundle at `config.target` and keep the result, which is also returned with its path.

    Args:
        config: what to do.
        progress: called with what begins.
        protocol: how long edgetl's own loop measures at least; None takes the bench's own figures.

    Raises:
        MissingPackageError: LoadGen is not installed.
        BundleError, ProviderError, DataError: nothing to drive or to ask for.
        BenchError: the gate is closed, or LoadGen's process died.
        KeyboardInterrupt: interrupted; nothing is kept.
    """
    protocol, report = protocol or BenchProtocol(), progress or (lambda done, total, text: None)
    version = installed_version(LOADGEN_PACKAGE)
    if version is None:
        raise convert_import_error(ModuleNotFoundError(name=LOADGEN_MODULE))
    threads = resolve_intra_op_threads(
        [] if config.threads is None else [config.threads], config.force
    )
    check_provider(config.provider)
    if config.target.suffix == ".onnx":
        raise BenchError(
            "--loadgen drives a bundle: a lone ONNX file brings no images to ask for. Give a run or a bundle."
        )
    bundle = open_bundle(config.target)
    variant = bundle.select_variant(config.variant)
    if variant.size is not None:
        raise BenchError(
            f"{variant.name} takes images of one size only, and LoadGen's samples have their own. Choose another --variant."
        )
    samples = (
        load_golden_samples(bundle, variant)
        if config.data is None
        else load_labeled_samples(config.data, bundle.labels)
    )
    asked = BenchConfig(
        config.target,
        (config.scope,),
        (config.call_batch,),
        threads,
        (config.provider,),
        (variant.name,),
        torch_modes=(),
        force=config.force,
    )
    target = find_target(asked, threads)
    check_output_path(config.output, target.results_folder)
    facts, created = collect_device_info(), datetime.now(UTC)
    with tempfile.TemporaryDirectory(prefix="edgetl-loadgen-") as name:
        folder = Path(name)
        contender = _run_gate(bundle, target, protocol, folder, lambda text: report(0, 0, text))
        resident = count_resident_samples(
            samples.files, config.scope, variant.input, bundle.preprocessing
        )
        before, cpu_before = read_device_state(), read_process_cpu_s()
        found: dict[str, Any] = {}
        if "accuracy" in config.modes:
            report(0, 0, f"LoadGen {config.scenario}, accuracy: {len(samples.files)} samples")
            found["accuracy"] = _run_accuracy(
                config, contender.job, samples, bundle, variant, resident, folder
            )
        if "performance" in config.modes:
            report(
                0, 0, f"LoadGen {config.scenario}, performance: {config.min_duration_s:g} s or more"
            )
            found["performance"] = _run_performance(
                config, contender.job, samples, resident, folder, protocol
            )
        after, own_cpu_s = read_device_state(), read_process_cpu_s() - cpu_before
        row = contender.rows[0]
        names = (
            "id",
            "variant",
            "scope",
            "provider",
            "batch",
            "threads",
            "input",
            "file_sha256",
            "gate",
            "session",
        )
        result = LoadgenResult(
            created=created.isoformat(timespec="seconds"),
            edgetl=edgetl.__version__,
            loadgen=version,
            target=str(config.target),
            model=target.model,
            scenario=config.scenario,
            configuration={name: getattr(row, name) for name in names},
            samples={
                "kind": samples.reference_kind,
                "images": len(samples.files),
                "resident": resident,
                "description": samples.description,
            },
            min_duration_s=config.min_duration_s,
            device={**facts, "before": before, "after": after},
            noise=assess_noise(before, after, own_cpu_s, _loop_spread(found.get("performance"))),
            **found,
        )
        path, notes = store_result(
            partial(_write_with_logs, result, folder / "logs"),
            config.output,
            target.results_folder,
            created,
        )
    return replace(
        result, path=path, logs=None if path is None else _logs_folder(path).name, notes=notes
    )


def _run_gate(
    bundle: Bundle,
    target: BenchTarget,
    protocol: BenchProtocol,
    folder: Path,
    report: Callable[[str], None],
) -> GatedCase:
    """The one candidate, once it has answered the reference images as `edgetl bench` asks."""
    pictures = prepare_bench_inputs(
        bundle, {candidate.input_spec for candidate in target.cases}, folder
    )
    (contender,), _ = run_gates(target.cases, pictures, protocol, folder, report)
    if not contender.passed:
        row = contender.rows[0]
        raise BenchError(
            f"The reference images did not pass, so LoadGen was not started. {row.runtime} {row.variant}: {row.gate['reason']}. "
            "On this device the bundle does not answer as it was proven to: export it again, or try another --provider."
        )
    return contender


def _run_accuracy(
    config: LoadgenConfig,
    job: WorkerJob,
    samples: SampleSet,
    bundle: Bundle,
    variant: Variant,
    resident: int,
    folder: Path,
) -> LoadgenAccuracy:
    logs = folder / "logs/accuracy"
    _run_mode(config, "accuracy", job, samples, resident, logs, folder)
    wrong = samples.find_mistakes(read_predictions(logs), bundle.labels)
    least = config.min_accuracy
    if least is None:
        known = variant.accuracy.get("top1")
        least = (
            1.0
            if samples.reference_kind == "reference"
            else None
            if known is None
            else MLPERF_ACCURACY_SHARE * known
        )
    return LoadgenAccuracy(
        samples.reference_kind, len(samples.files), wrong, least, read_summary(logs)
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
    answer = _run_mode(config, "performance", job, samples, resident, logs, folder, loop_s)
    times = {
        name: tuple(answer[name]) for name in ("before_ns", "after_ns", "inside_ns", "model_ns")
    }
    return LoadgenPerformance(
        config.scenario,
        read_summary(logs),
        **times,
        loop_images=config.query_samples,
        issued=answer["issued"],
        steady=answer["steady"],
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
) -> dict[str, Any]:
    logs.mkdir(parents=True)
    plan = LoadgenPlan(
        config.scenario, mode, logs, config.min_duration_s, config.query_samples, resident, loop_s
    )
    # `seconds` is what the process may be silent for beside what a task may take anyway.
    job = replace(job, task="loadgen", files=samples.files, seconds=2 * config.min_duration_s)
    return run_job(LoadgenJob(**vars(job), plan=plan), folder)


def _loop_spread(performance: LoadgenPerformance | None) -> dict[str, float]:
    if performance is None:
        return {}
    return {
        "edgetl's loop": relative_spread(
            [median(performance.before_ns), median(performance.after_ns)]
        )
    }


def _logs_folder(path: Path) -> Path:
    """Where LoadGen's files are kept beside the result."""
    return path.with_name(f"{path.stem}-loadgen")


def _write_with_logs(result: LoadgenResult, logs: Path, path: Path) -> None:
    folder = _logs_folder(path)
    try:
        shutil.copytree(logs, folder)
    except FileExistsError as cause:
        raise BenchError(
            f"{folder} exists already and results are never overwritten. Choose another --output."
        ) from cause
    except (OSError, shutil.Error) as cause:
        shutil.rmtree(folder, ignore_errors=True)
        raise BenchError(
            f"LoadGen's files cannot be written to {folder} ({cause}). Choose another --output."
        ) from cause
    try:
        write_result(replace(result, logs=folder.name), path)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise

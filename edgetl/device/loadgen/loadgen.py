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
from edgetl.core.artifacts.bench import write_result
from edgetl.core.artifacts.bench_rows import relative_spread
from edgetl.core.artifacts.loadgen import (
    MLPERF_SHARE,
    Accuracy,
    LoadgenConfig,
    LoadgenResult,
    Performance,
)
from edgetl.core.artifacts.loadgen_logs import read_answers, read_summary
from edgetl.core.artifacts.storage import check_output, keep
from edgetl.core.config.bench import BenchConfig
from edgetl.core.errors import BenchError
from edgetl.core.registry import missing_package
from edgetl.device.bench.gate import Contender, prove
from edgetl.device.bench.inputs import prepare_pictures
from edgetl.device.bench.job import Job, LoadgenPlan
from edgetl.device.bench.protocol import BenchProtocol
from edgetl.device.bench.rounds import Progress, own_cpu_s_so_far
from edgetl.device.bench.target import Target, find_target
from edgetl.device.bench.worker_process import run_job
from edgetl.device.hardware.cpu import intra_op_threads
from edgetl.device.hardware.info import device_facts, installed_version
from edgetl.device.hardware.noise import judge
from edgetl.device.hardware.state import device_state
from edgetl.device.loadgen.samples import (
    SampleSet,
    labelled_samples,
    reference_samples,
    resident_count,
)
from edgetl.device.runtime.bundle import Bundle, Variant, open_bundle
from edgetl.device.runtime.session import check_provider

PACKAGE, MODULE = "mlcommons-loadgen", "mlperf_loadgen"
_LONGEST_LOOP_S = 5.0


def loadgen(
    config: LoadgenConfig, progress: Progress | None = None, protocol: BenchProtocol | None = None
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
    version = installed_version(PACKAGE)
    if version is None:
        raise missing_package(ModuleNotFoundError(name=MODULE))
    threads = intra_op_threads([] if config.threads is None else [config.threads], config.force)
    check_provider(config.provider)
    if config.target.suffix == ".onnx":
        raise BenchError(
            "--loadgen drives a bundle: a lone ONNX file brings no images to ask for. Give a run or a bundle."
        )
    bundle = open_bundle(config.target)
    variant = bundle.variant(config.variant)
    if variant.size is not None:
        raise BenchError(
            f"{variant.name} takes images of one size only, and LoadGen's samples have their own. Choose another --variant."
        )
    samples = (
        reference_samples(bundle, variant)
        if config.data is None
        else labelled_samples(config.data, bundle.labels)
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
    check_output(config.output, target.results)
    facts, created = device_facts(), datetime.now(UTC)
    with tempfile.TemporaryDirectory(prefix="edgetl-loadgen-") as name:
        folder = Path(name)
        contender = _proven(bundle, target, protocol, folder, lambda text: report(0, 0, text))
        resident = resident_count(samples.files, config.scope, variant.input, bundle.preprocessing)
        before, cpu_before = device_state(), own_cpu_s_so_far()
        found: dict[str, Any] = {}
        if "accuracy" in config.modes:
            report(0, 0, f"LoadGen {config.scenario}, accuracy: {len(samples.files)} samples")
            found["accuracy"] = _accuracy(
                config, contender.job, samples, bundle, variant, resident, folder
            )
        if "performance" in config.modes:
            report(
                0, 0, f"LoadGen {config.scenario}, performance: {config.min_duration_s:g} s or more"
            )
            found["performance"] = _performance(
                config, contender.job, samples, resident, folder, protocol
            )
        after, own_cpu_s = device_state(), own_cpu_s_so_far() - cpu_before
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
                "kind": samples.against,
                "images": len(samples.files),
                "resident": resident,
                "description": samples.description,
            },
            min_duration_s=config.min_duration_s,
            device={**facts, "before": before, "after": after},
            noise=judge(before, after, own_cpu_s, _spread(found.get("performance"))),
            **found,
        )
        path, notes = keep(
            partial(_write, result, folder / "logs"), config.output, target.results, created
        )
    return replace(result, path=path, logs=None if path is None else _logs(path).name, notes=notes)


def _proven(
    bundle: Bundle,
    target: Target,
    protocol: BenchProtocol,
    folder: Path,
    report: Callable[[str], None],
) -> Contender:
    """The one candidate, once it has answered the reference images as `edgetl bench` asks."""
    pictures = prepare_pictures(bundle, {candidate.feed for candidate in target.candidates}, folder)
    (contender,), _ = prove(target.candidates, pictures, protocol, folder, report)
    if not contender.passed:
        row = contender.rows[0]
        raise BenchError(
            f"The reference images did not pass, so LoadGen was not started. {row.runtime} {row.variant}: {row.gate['reason']}. "
            "On this device the bundle does not answer as it was proven to: export it again, or try another --provider."
        )
    return contender


def _accuracy(
    config: LoadgenConfig,
    job: Job,
    samples: SampleSet,
    bundle: Bundle,
    variant: Variant,
    resident: int,
    folder: Path,
) -> Accuracy:
    logs = folder / "logs/accuracy"
    _run(config, "accuracy", job, samples, resident, logs, folder)
    wrong = samples.mistakes(read_answers(logs), bundle.labels)
    least = config.min_accuracy
    if least is None:
        known = variant.accuracy.get("top1")
        least = (
            1.0
            if samples.against == "reference"
            else None
            if known is None
            else MLPERF_SHARE * known
        )
    return Accuracy(samples.against, len(samples.files), wrong, least, read_summary(logs))


def _performance(
    config: LoadgenConfig,
    job: Job,
    samples: SampleSet,
    resident: int,
    folder: Path,
    protocol: BenchProtocol,
) -> Performance:
    logs = folder / "logs/performance"
    loop_s = max(protocol.block_seconds, min(_LONGEST_LOOP_S, config.min_duration_s / 4))
    answer = _run(config, "performance", job, samples, resident, logs, folder, loop_s)
    times = {
        name: tuple(answer[name]) for name in ("before_ns", "after_ns", "inside_ns", "model_ns")
    }
    return Performance(
        config.scenario,
        read_summary(logs),
        **times,
        loop_images=config.query_samples,
        issued=answer["issued"],
        steady=answer["steady"],
    )


def _run(
    config: LoadgenConfig,
    mode: str,
    job: Job,
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
    return run_job(
        replace(
            job,
            task="loadgen",
            files=samples.files,
            loadgen=plan,
            seconds=2 * config.min_duration_s,
        ),
        folder,
    )


def _spread(performance: Performance | None) -> dict[str, float]:
    if performance is None:
        return {}
    return {
        "edgetl's loop": relative_spread(
            [median(performance.before_ns), median(performance.after_ns)]
        )
    }


def _logs(path: Path) -> Path:
    """Where LoadGen's files are kept beside the result."""
    return path.with_name(f"{path.stem}-loadgen")


def _write(result: LoadgenResult, logs: Path, path: Path) -> None:
    folder = _logs(path)
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

"""Training strategies compared on one data set: the implementation of `edgetl compare`."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import edgetl
from edgetl.core.artifacts.experiment import (
    DeployedModel,
    Experiment,
    ExperimentConfig,
    ExperimentData,
    read_experiment,
)
from edgetl.core.artifacts.experiment_runs import StrategyRun
from edgetl.core.artifacts.run_config import DatasetInfo
from edgetl.core.config.bench import BenchConfig
from edgetl.core.config.compare import CompareConfig
from edgetl.core.config.finetune import FinetuneConfig
from edgetl.core.errors import DataError, EdgetlError, RunError
from edgetl.core.files import write_text
from edgetl.core.locks import exclusive_lock
from edgetl.core.paths import BundleDirectory, ExperimentDirectory, RunDirectory
from edgetl.device.bench.runner import bench
from edgetl.device.hardware.info import collect_device_info
from edgetl.experiment.matrix import PlannedRun
from edgetl.experiment.messages import WorkerTask
from edgetl.experiment.plan import (
    ExperimentPlan,
    is_finished,
    make_plan,
    read_strategy_run,
    start_strategy_run,
    to_screened_networks,
    write_plan,
)
from edgetl.experiment.progress import ExperimentProgress
from edgetl.experiment.task_process import run_task
from edgetl.report.compare.page import render_compare_report
from edgetl.report.compare.tables import render_compare_markdown
from edgetl.report.html.blocks import write_page

BENCH_ROUNDS = 4
"""Rounds when timing an exported file: enough to compare networks; `edgetl bench` uses more."""


def plan_experiment(
    config: CompareConfig, recipe: FinetuneConfig, progress: ExperimentProgress | None = None
) -> ExperimentPlan:
    """Return the plan of `compare` with the estimated times, without training anything.

    Raises:
        EdgetlError: see `make_plan`.
    """
    with tempfile.TemporaryDirectory(prefix="edgetl-compare-") as scratch:
        return make_plan(config, recipe, progress or ExperimentProgress(), Path(scratch))


def compare(
    config: CompareConfig, recipe: FinetuneConfig, progress: ExperimentProgress | None = None
) -> Experiment:
    """Train the unfinished runs of an experiment, export and time the best of each network.

    Each run is trained in its own process with a new cache, so no run benefits from the work of
    another. A failed run is recorded with its reason, and the other runs continue.

    Args:
        config: the runs to train.
        recipe: data, weights and training options shared by all runs.
        progress: callbacks for notes, the plan and the runs.

    Returns:
        The experiment, as also written to the output folder with its report.

    Raises:
        ConfigError, ArchitectureError, DataError, WeightsError, BenchError: before training; see
            `make_plan`.
        DataError: the images changed between the runs.
        RunError: another process is using the output folder.
        KeyboardInterrupt: finished runs are kept, and the same call continues.
    """
    progress = progress or ExperimentProgress()
    folder = ExperimentDirectory(Path(config.output))
    plan = plan_experiment(config, recipe, progress)
    folder.runs.mkdir(parents=True, exist_ok=True)
    in_use = RunError(
        f"{folder.path} is in use by another process. Wait for it, or choose another -o."
    )
    with exclusive_lock(folder.path / ".lock", in_use):
        for leftover_cache in folder.path.glob(".cache-*"):
            shutil.rmtree(leftover_cache, ignore_errors=True)
        write_plan(folder, plan, config, recipe)
        progress.on_plan(plan.runs, plan.finished_runs, plan.estimated_seconds)
        failed: dict[str, StrategyRun] = {}
        build = partial(
            _build_experiment, folder, config, recipe, plan, _read_deployed_models(folder)
        )
        for run in plan.runs:
            if run.name not in plan.finished_runs:
                failure = _train(run, plan.runs, folder, progress)
                if failure is not None:
                    failed[run.name] = replace(start_strategy_run(run), failed=failure)
                experiment = build(failed)
                result = next(result for result in experiment.runs if result.name == run.name)
                progress.on_run_end(run, result)
                _write(experiment, folder)
        experiment = build(failed)
        for network in experiment.networks if config.bench else ():
            experiment = _add_deployed_model(experiment, network, folder, progress)
            experiment.write(folder.result)
        _write(experiment, folder)
    return experiment


def _write(experiment: Experiment, folder: ExperimentDirectory) -> None:
    experiment.write(folder.result)
    write_text(folder.table, render_compare_markdown(experiment))
    write_page(folder.report, partial(render_compare_report, experiment))


def _train(
    run: PlannedRun,
    runs: Sequence[PlannedRun],
    folder: ExperimentDirectory,
    progress: ExperimentProgress,
) -> str | None:
    """Train one run in its own process; return the reason if it fails, otherwise None."""
    config = run.config
    if run.budget_run is not None:
        reference = next(planned for planned in runs if planned.name == run.budget_run)
        if not is_finished(reference):
            return f"Its time budget is the time of {run.budget_run}, which failed."
        config = replace(config, budget_s=read_strategy_run(reference)[0].seconds)
    progress.on_run_start(run)
    try:
        run_task(
            WorkerTask(train=config),
            folder.logs / f"{run.name}.log",
            partial(progress.on_run_message, run),
            folder.path,
        )
    except EdgetlError as error:
        return str(error)
    return None


def _build_experiment(
    folder: ExperimentDirectory,
    config: CompareConfig,
    recipe: FinetuneConfig,
    plan: ExperimentPlan,
    deployed_models: Sequence[DeployedModel],
    failed: dict[str, StrategyRun],
) -> Experiment:
    """Build the experiment from the finished run directories and the failed runs."""
    results: list[StrategyRun] = []
    data: DatasetInfo | None = None
    classes: tuple[str, ...] = ()
    for run in plan.runs:
        if run.name in failed:
            results.append(failed[run.name])
        elif is_finished(run):
            result, configuration = read_strategy_run(run)
            if data is not None and configuration.data.fingerprint != data.fingerprint:
                raise DataError(
                    f"The images changed: those of {run.name} do not match those of {results[0].name}. "
                    f"Restore the images and remove {folder.runs / run.name} to train it again, "
                    "or choose another -o."
                )
            data, classes = configuration.data, configuration.classes
            results.append(result)
    names = {result.name for result in results}
    return Experiment(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        edgetl=edgetl.__version__,
        device=collect_device_info(),
        config=ExperimentConfig(config, recipe),
        classes=classes,
        data=ExperimentData.of(Path(recipe.data).name, data),
        planned=tuple(run.name for run in plan.runs),
        runs=tuple(results),
        deployed_models=tuple(model for model in deployed_models if model.run in names),
        screened_networks=() if plan.candidates is None else to_screened_networks(plan.candidates),
        folder=folder.path,
    )


def _read_deployed_models(folder: ExperimentDirectory) -> tuple[DeployedModel, ...]:
    try:
        models = read_experiment(folder.result).deployed_models
    except RunError:  # Missing or broken; it is written again at the end.
        return ()
    return tuple(model for model in models if model.failed is None)


def _add_deployed_model(
    experiment: Experiment, network: str, folder: ExperimentDirectory, progress: ExperimentProgress
) -> Experiment:
    """Export and time the recommended run of the network, unless that was done before."""
    row = experiment.recommend_strategy(network)
    if row is None:
        return experiment
    run = row.best_run
    if any(
        (model.network, model.run) == (network, run.name) for model in experiment.deployed_models
    ):
        return experiment
    others = [model for model in experiment.deployed_models if model.network != network]
    deployed = _deploy(network, run, folder, progress)
    return replace(experiment, deployed_models=(*others, deployed))


def _deploy(
    network: str, run: StrategyRun, folder: ExperimentDirectory, progress: ExperimentProgress
) -> DeployedModel:
    directory = RunDirectory(folder.path / run.folder)
    failed = DeployedModel(network, run.name, 0, None, None, noisy=False, threads=0)
    try:
        if not BundleDirectory.exists_at(directory.bundle):
            progress.note(f"Exporting {run.name}.")
            run_task(
                WorkerTask(export=directory.path),
                folder.logs / f"{run.name}-export.log",
                lambda message: None,
                folder.path,
            )
        progress.note(f"Benchmarking {run.name}.")
        result = bench(
            BenchConfig(
                directory.path,
                scopes=("model",),
                variants=("fp32",),
                torch_modes=(),
                rounds=BENCH_ROUNDS,
            ),
            progress.on_bench_progress,
        )
    except EdgetlError as error:
        return replace(failed, failed=str(error))
    row = result.rows[0]
    file_bytes = BundleDirectory(directory.bundle).variant("fp32").stat().st_size
    if row.has_failed_gate or not row.rounds:
        reason = "The outputs of the exported file do not match PyTorch on this device."
        return replace(failed, file_bytes=file_bytes, failed=reason)
    return DeployedModel(
        network,
        run.name,
        file_bytes,
        row.percentile_ms(50),
        row.p50_interval_ms,
        result.noise.is_noisy,
        row.threads,
    )

"""`edgetl compare`: the transfer-learning experiment on the user's own images."""

from __future__ import annotations

import fcntl
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import edgetl
from edgetl.core.artifacts.experiment import DeployedModel, Experiment, read_experiment
from edgetl.core.artifacts.experiment_runs import StrategyRun
from edgetl.core.config.bench import BenchConfig
from edgetl.core.config.compare import CompareConfig
from edgetl.core.config.finetune import FinetuneConfig
from edgetl.core.errors import DataError, EdgetlError, RunError
from edgetl.core.files import write_text
from edgetl.core.paths import BundleDirectory, ExperimentDirectory, RunDirectory
from edgetl.device.bench.runner import bench
from edgetl.device.hardware.info import collect_device_info
from edgetl.experiment.matrix import PlannedRun
from edgetl.experiment.plan import (
    ExperimentPlan,
    is_finished,
    make_plan,
    read_strategy_run,
    request_json,
    run_identity,
    to_screened_networks,
    write_plan,
)
from edgetl.experiment.progress import ExperimentProgress, NullExperimentProgress
from edgetl.experiment.task_process import run_task
from edgetl.report.compare.page import render_compare_report
from edgetl.report.compare.tables import render_compare_markdown
from edgetl.report.html.blocks import write_page

BENCH_ROUNDS = 4
"""Of the exported file's benchmark: enough for a figure to choose by; `edgetl bench` gives one to promise."""


def plan_experiment(
    config: CompareConfig, recipe: FinetuneConfig, watcher: ExperimentProgress | None = None
) -> ExperimentPlan:
    """What `compare` would do, with the time it is expected to take; nothing is trained.

    Raises:
        EdgetlError: as `compare`.
    """
    with tempfile.TemporaryDirectory(prefix="edgetl-compare-") as scratch:
        return make_plan(config, recipe, watcher or NullExperimentProgress(), Path(scratch))


def compare(
    config: CompareConfig, recipe: FinetuneConfig, watcher: ExperimentProgress | None = None
) -> Experiment:
    """Train every run of the plan that has not ended yet, export and time the best of each network, and write what they show.

    Every run is trained in a process of its own, with a new cache: what one computed does not shorten another. One that fails is in the
    result with its reason; the others go on.

    Args:
        config: which runs.
        recipe: what they share.
        watcher: is told how far it has come.

    Raises:
        ConfigError, ArchitectureError, DataError, WeightsError, BenchError: before anything is trained; see `make_plan`.
        DataError: the images changed between the runs.
        RunError: another process works on the folder.
        KeyboardInterrupt: as it came; what has ended is kept, and the same call goes on.
    """
    watcher = watcher or NullExperimentProgress()
    folder = ExperimentDirectory(config.output)
    plan = plan_experiment(config, recipe, watcher)
    folder.runs.mkdir(parents=True, exist_ok=True)
    with _lock_folder(folder):
        write_plan(folder, plan, config, recipe)
        watcher.on_plan(plan.runs, plan.finished_runs, plan.estimated_seconds)
        results: dict[str, StrategyRun] = {}
        gathered = partial(
            _build_experiment, folder, config, recipe, plan, _read_deployed_models(folder)
        )
        for run in plan.runs:
            if run.name not in plan.finished_runs:
                failure = _train(run, plan.runs, folder, watcher)
                if failure is not None:
                    results[run.name] = StrategyRun(**run_identity(run), failed=failure)
                found = gathered(results)
                watcher.on_run_end(run, next(one for one in found.runs if one.name == run.name))
                _write(found, folder)
        found = gathered(results)
        for network in found.networks if config.bench else ():
            found = _add_deployed_model(found, network, folder, watcher)
            found.write(folder.result)
        _write(found, folder)
    return found


@contextmanager
def _lock_folder(folder: ExperimentDirectory) -> Iterator[None]:
    """This process alone trains in the folder; what a killed one left is removed."""
    with (folder.path / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as cause:
            raise RunError(
                f"Another process works on {folder.path}. Wait for it, or choose another -o."
            ) from cause
        for left in folder.path.glob(".cache-*"):
            shutil.rmtree(left, ignore_errors=True)
        yield


def _write(found: Experiment, folder: ExperimentDirectory) -> None:
    found.write(folder.result)
    write_text(folder.table, render_compare_markdown(found))
    write_page(folder.report, partial(render_compare_report, found))


def _train(
    run: PlannedRun,
    runs: Sequence[PlannedRun],
    folder: ExperimentDirectory,
    watcher: ExperimentProgress,
) -> str | None:
    """Why the run failed; None where it ended well."""
    config = run.config
    if run.budget_run is not None:
        reference = next(other for other in runs if other.name == run.budget_run)
        if not is_finished(reference):
            return f"It takes the time of {run.budget_run}, which failed."
        config = replace(config, budget_s=read_strategy_run(reference)[0].seconds)
    watcher.on_run_start(run)
    try:
        run_task(
            {"task": "train", "config": config.to_json()},
            folder.logs / f"{run.name}.log",
            partial(watcher.on_run_message, run),
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
    deployed: Sequence[DeployedModel],
    failed: dict[str, StrategyRun],
) -> Experiment:
    found: list[StrategyRun] = []
    data: dict[str, Any] = {}
    classes: tuple[str, ...] = ()
    for run in plan.runs:
        if run.name in failed:
            found.append(failed[run.name])
        elif is_finished(run):
            figures, content = read_strategy_run(run)
            if data and content["data"]["fingerprint"] != data["fingerprint"]:
                raise DataError(
                    f"The images changed: {run.name} was trained on others than {found[0].name}. Put them back and remove "
                    f"{folder.runs / run.name}, which is then trained again; or begin anew with another -o."
                )
            data, classes = content["data"], tuple(content["classes"])
            found.append(figures)
    return Experiment(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        edgetl=edgetl.__version__,
        device=collect_device_info(),
        config=request_json(config, recipe),
        classes=classes,
        data={**data, "folder": recipe.data.name},
        planned=tuple(run.name for run in plan.runs),
        runs=tuple(found),
        deployed_models=tuple(one for one in deployed if one.run in {run.name for run in found}),
        screened_networks=() if plan.candidates is None else to_screened_networks(plan.candidates),
        folder=folder.path,
    )


def _read_deployed_models(folder: ExperimentDirectory) -> tuple[DeployedModel, ...]:
    try:
        return tuple(
            one for one in read_experiment(folder.result).deployed_models if one.failed is None
        )
    except RunError:  # there is none, or it is broken: it is written anew
        return ()


def _add_deployed_model(
    found: Experiment, network: str, folder: ExperimentDirectory, watcher: ExperimentProgress
) -> Experiment:
    row = found.recommend_strategy(network)
    if row is None or any(
        (one.network, one.run) == (network, row.best_run.name) for one in found.deployed_models
    ):
        return found
    others = tuple(one for one in found.deployed_models if one.network != network)
    return replace(
        found, deployed_models=(*others, _deploy(network, row.best_run, folder, watcher))
    )


def _deploy(
    network: str, run: StrategyRun, folder: ExperimentDirectory, watcher: ExperimentProgress
) -> DeployedModel:
    directory = RunDirectory(folder.path / run.folder)
    nothing = DeployedModel(network, run.name, 0, None, None, noisy=False, threads=0)
    silent: Callable[[object], None] = lambda message: None  # noqa: E731
    try:
        if not BundleDirectory.exists_at(directory.bundle):
            watcher.note(f"Exporting {run.name}.")
            run_task(
                {"task": "export", "run": str(directory.path)},
                folder.logs / f"{run.name}-export.log",
                silent,
                folder.path,
            )
        watcher.note(f"Timing the exported file of {run.name}.")
        result = bench(
            BenchConfig(
                directory.path,
                scopes=("model",),
                variants=("fp32",),
                torch_modes=(),
                rounds=BENCH_ROUNDS,
            ),
            watcher.on_bench_progress,
        )
    except EdgetlError as error:
        return replace(nothing, failed=str(error))
    row = result.rows[0]
    size = BundleDirectory(directory.bundle).variant("fp32").stat().st_size
    if row.has_failed_gate or not row.rounds:
        return replace(
            nothing, file_bytes=size, failed="It does not answer on this device as PyTorch does."
        )
    return DeployedModel(
        network,
        run.name,
        size,
        row.percentile_ms(50),
        row.p50_interval_ms,
        result.noise.is_noisy,
        row.threads,
    )

"""Planning of an experiment: screening of networks, the runs and their estimated time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import product
from pathlib import Path
from typing import Any

from edgetl.core.artifacts.candidates import CandidatesResult, read_candidates
from edgetl.core.artifacts.experiment import ExperimentConfig, ScreenedNetwork
from edgetl.core.artifacts.experiment_runs import StrategyRun
from edgetl.core.artifacts.run import read_run_record
from edgetl.core.artifacts.run_config import RunConfiguration
from edgetl.core.config.candidates import CandidatesConfig
from edgetl.core.config.compare import CompareConfig
from edgetl.core.config.finetune import FinetuneConfig
from edgetl.core.errors import ArchitectureError, BenchError, ConfigError, DataError, RunError
from edgetl.core.files import read_json, write_json
from edgetl.core.paths import ExperimentDirectory, RunDirectory
from edgetl.core.typed_json import FieldError, parse_as
from edgetl.device.hardware.info import collect_device_info
from edgetl.experiment.matrix import NetworkSpec, PlannedRun, plan_runs
from edgetl.experiment.messages import WorkerMessage, WorkerTask
from edgetl.experiment.progress import ExperimentProgress
from edgetl.experiment.task_process import run_task
from edgetl.export.candidates import time_candidates
from edgetl.train.data.folders import find_files
from edgetl.train.model.stock_models import get_architecture

_RECIPE_DEFAULTS = {field.name: field.default for field in fields(FinetuneConfig)}


@dataclass(frozen=True)
class ExperimentPlan:
    """The runs of an experiment with their estimated times."""

    runs: list[PlannedRun]
    estimated_seconds: dict[str, float]
    """Estimated time by run name, measured on this device and these images."""
    finished_runs: list[str]
    """Names of runs finished earlier."""
    candidates: CandidatesResult | None = None
    """Latencies of the networks; None without a latency budget."""

    @property
    def remaining_seconds(self) -> float:
        """Estimated time of the unfinished runs."""
        return sum(
            self.estimated_seconds[run.name]
            for run in self.runs
            if run.name not in self.finished_runs
        )


def make_plan(
    config: CompareConfig, recipe: FinetuneConfig, progress: ExperimentProgress, scratch: Path
) -> ExperimentPlan:
    """Validate the request, select the networks and estimate the time of each run.

    Nothing is written except the latencies measured for a latency budget.

    Args:
        config: the runs to plan.
        recipe: data and training options shared by all runs.
        progress: receives notes and the progress of measurements.
        scratch: a directory for temporary files.

    Raises:
        ConfigError: invalid options, or the output folder holds something else or another plan.
        ArchitectureError: unknown architecture, or no network could be timed.
        DataError: unusable images.
        WeightsError: the weights cannot be loaded.
        BenchError: no network is within the latency budget.
    """
    folder = ExperimentDirectory(Path(config.output))
    _check_output_folder(folder, recipe)
    if recipe.val_split == 0:
        raise ConfigError(
            "{val_split} must be > 0: strategies are compared on validation images. Use 0.2.",
            FinetuneConfig,
        )
    labels = find_files(Path(recipe.data).expanduser().absolute()).labels
    networks = _list_networks(config)
    candidates = None
    if config.latency_budget_ms is not None:
        candidates = _time_networks(config, networks, len(labels), folder, progress)
        networks = _select_within_budget(candidates, networks, progress)
    runs = plan_runs(config, recipe, networks, folder.runs)
    finished = [run.name for run in runs if is_finished(run)]
    _check_plan_unchanged(folder, runs, finished)
    estimates = {}
    if len(finished) < len(runs):
        estimates = _estimate_run_seconds(runs, progress, scratch)
    return ExperimentPlan(runs, estimates, finished, candidates)


def _list_networks(config: CompareConfig) -> list[NetworkSpec]:
    """Return every requested architecture at every image size, or at its default size."""
    image_sizes = dict.fromkeys(config.image_sizes) or (None,)
    networks = []
    for name, image_size in product(dict.fromkeys(config.models), image_sizes):
        architecture = get_architecture(name, image_size)
        networks.append(
            NetworkSpec(name, image_size or architecture.image_size, architecture.blocks)
        )
    return networks


def write_plan(
    folder: ExperimentDirectory, plan: ExperimentPlan, config: CompareConfig, recipe: FinetuneConfig
) -> None:
    """Write plan.json, which identifies an experiment and guards resuming it with other options."""
    runs = {**_read_planned_runs(folder), **{run.name: _run_settings(run) for run in plan.runs}}
    request = ExperimentConfig(config, recipe)
    write_json(folder.plan, {"kind": "plan", **request.to_json(), "runs": runs})


def to_screened_networks(candidates: CandidatesResult) -> tuple[ScreenedNetwork, ...]:
    """Convert the measured latencies to entries of the experiment's result, fastest first."""
    rows = sorted(candidates.rows, key=lambda row: math.inf if row.p50_ms is None else row.p50_ms)
    return tuple(
        ScreenedNetwork(
            row.name,
            row.p50_ms,
            row.ci95_ms,
            None if row.failed else candidates.fits_budget(row),
            row.failed,
        )
        for row in rows
    )


def is_finished(planned: PlannedRun) -> bool:
    """Return whether the run directory holds a finished run."""
    output = planned.config.output
    return output is not None and RunDirectory(output).metrics.is_file()


def read_strategy_run(planned: PlannedRun) -> tuple[StrategyRun, RunConfiguration]:
    """Return the results and the configuration of a finished run.

    Raises:
        RunError: a file is missing or broken.
        DataError: the run had no validation images.
    """
    assert planned.config.output is not None
    path = planned.config.output
    try:
        record = read_run_record(path)
        if record.metrics is not None and record.metrics.val is None:
            raise DataError(
                "No validation images found: strategies are compared on them. "
                "Add images, or a val/ folder."
            )
        return start_strategy_run(planned).with_results(record), record.configuration
    except (RunError, ValueError) as cause:
        reason = str(cause) if isinstance(cause, RunError) else f"It is broken: {cause}."
        raise RunError(f"{reason} Remove {path}, and `edgetl compare` trains it again.") from cause


def start_strategy_run(planned: PlannedRun) -> StrategyRun:
    """Return the entry of a run that has no results yet."""
    return StrategyRun(
        name=planned.name,
        row=planned.row,
        architecture=planned.network.architecture,
        image_size=planned.network.image_size,
        strategy=planned.strategy,
        seed=planned.seed,
        folder=f"runs/{planned.name}",
    )


def _check_output_folder(folder: ExperimentDirectory, recipe: FinetuneConfig) -> None:
    path, data = folder.path.expanduser().resolve(), Path(recipe.data).expanduser().resolve()
    if path == data or data in path.parents or path in data.parents:
        raise ConfigError(
            f"The output folder {folder.path} and the data folder {recipe.data} must not contain "
            "each other. Choose another -o."
        )
    if not folder.path.exists() or folder.exists_at(folder.path):
        return
    entries = {entry.name for entry in folder.path.iterdir()} if folder.path.is_dir() else None
    # The latencies measured for a latency budget are written before the plan.
    if entries in (set(), {folder.candidates.name}):
        return
    raise ConfigError(
        f"{folder.path} already exists and is not an experiment of edgetl. Choose another -o."
    )


def _check_plan_unchanged(
    folder: ExperimentDirectory, runs: Sequence[PlannedRun], finished: Sequence[str]
) -> None:
    planned = _read_planned_runs(folder)
    for run in runs:
        if run.name not in finished:
            continue
        old, new = planned.get(run.name), _run_settings(run)
        if old is None:
            raise ConfigError(
                f"{folder.path} contains {run.name}, which is not in its plan. "
                "Move it away, or choose another -o."
            )
        # A setting that an earlier edgetl did not have counts as its default.
        changes = [
            f"{name} was {old.get(name)!r}, is {value!r}"
            for name, value in new.items()
            if old.get(name, _RECIPE_DEFAULTS.get(name)) != value
        ]
        if changes:
            raise ConfigError(
                f"{folder.path} contains runs of another plan: {run.name} ({', '.join(changes)}). "
                "Use the same options to continue, or choose another -o."
            )


def _read_planned_runs(folder: ExperimentDirectory) -> dict[str, dict[str, Any]]:
    if not folder.exists_at(folder.path):
        return {}
    content = read_json(folder.plan, RunError, "The experiment's plan")
    try:
        return parse_as(dict[str, dict[str, Any]], content.get("runs", {}), "runs")
    except FieldError as cause:
        raise RunError(
            f"{folder.plan} is broken: {cause}. Restore it, or choose another folder with -o."
        ) from cause


def _run_settings(run: PlannedRun) -> dict[str, Any]:
    settings = run.config.to_json()
    del settings["output"]
    return {**settings, "timed_by": run.budget_run}


def _estimate_run_seconds(
    runs: Sequence[PlannedRun], progress: ExperimentProgress, scratch: Path
) -> dict[str, float]:
    """Return the estimated time by run name; finished rows may be missing."""
    # Runs that differ only in their seed take equally long, and a run with the budget of another
    # run takes as long as that run.
    row_by_name = {run.name: run.row for run in runs}
    timed_row = {
        run.name: row_by_name[run.budget_run] if run.budget_run else run.row for run in runs
    }
    unfinished_rows = {timed_row[run.name] for run in runs if not is_finished(run)}
    representatives = {run.row: run for run in reversed(runs) if run.row in unfinished_rows}
    if all(run.config.budget_s for run in representatives.values()):
        # A time budget is an upper bound on the time of a run.
        return {
            run.name: run.config.budget_s or 0.0
            for run in runs
            if timed_row[run.name] in representatives
        }
    progress.note(f"Timing training steps of {len(representatives)} kinds of runs.")
    estimates: list[float] = []

    def receive(message: WorkerMessage) -> None:
        if message.seconds is not None:
            estimates.append(message.seconds)

    output = scratch / "unused"
    configs = tuple(replace(run.config, output=output) for run in representatives.values())
    run_task(WorkerTask(estimate=configs), scratch / "estimate.log", receive, scratch)
    row_seconds = dict(zip(representatives, estimates, strict=True))
    return {name: row_seconds[row] for name, row in timed_row.items() if row in row_seconds}


def _time_networks(
    config: CompareConfig,
    networks: Sequence[NetworkSpec],
    classes: int,
    folder: ExperimentDirectory,
    progress: ExperimentProgress,
) -> CandidatesResult:
    """Return the latencies of the networks, reusing an earlier complete measurement."""
    request = CandidatesConfig(
        architectures=tuple(dict.fromkeys(network.architecture for network in networks)),
        classes=classes,
        image_sizes=config.image_sizes,
        latency_budget_ms=config.latency_budget_ms,
        output=folder.candidates,
    )
    if folder.candidates.exists():
        cached = read_candidates(folder.candidates)
        names = {network.name for network in networks}
        rows = tuple(row for row in cached.rows if row.name in names)
        is_complete = (
            {row.name for row in rows} == names
            and not cached.interrupted
            and not any(row.failed for row in rows)
        )
        if (
            is_complete
            and cached.classes == classes
            and cached.device.description == collect_device_info().description
        ):
            return replace(cached, latency_budget_ms=config.latency_budget_ms, rows=rows)
        folder.candidates.unlink()
    return time_candidates(request, progress.on_bench_progress)


def _select_within_budget(
    candidates: CandidatesResult, networks: Sequence[NetworkSpec], progress: ExperimentProgress
) -> list[NetworkSpec]:
    rows = {row.name: row for row in candidates.rows}
    timed = [network for network in networks if rows[network.name].failed is None]
    fits = {network.name: candidates.fits_budget(rows[network.name]) for network in timed}
    selected = [network for network in timed if fits[network.name] is not False]
    budget = f"{candidates.latency_budget_ms:g} ms"
    if not selected:
        failures = [row.failed for row in rows.values() if row.failed]
        if failures and len(failures) == len(rows):
            raise ArchitectureError(f"No network could be timed. {failures[0]}")
        fastest = candidates.timed_rows[0]
        raise BenchError(
            f"No network is within {{latency_budget_ms}} {budget}: "
            f"the fastest, {fastest.name}, has {fastest.p50_ms:.2f} ms. "
            "Use smaller images ({image_sizes}), other {models}, or a larger budget.",
            CompareConfig,
        )
    dropped = [
        f"{network.name} ({rows[network.name].p50_ms:.2f} ms)"
        for network in timed
        if network not in selected
    ]
    if dropped:
        progress.note(f"Dropped, above the latency budget of {budget}: {', '.join(dropped)}.")
    for network in networks:
        if network not in timed:
            progress.note(
                f"Dropped {network.name}, could not be timed: {rows[network.name].failed}"
            )
    undecided = [name for name, fit in fits.items() if fit is None]
    if undecided:
        names = ", ".join(undecided)
        progress.note(f"Kept, undecided (the interval contains the budget): {names}.")
    return selected

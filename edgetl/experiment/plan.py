"""Before anything is trained: which networks are fast enough, which runs there will be, how long they will take."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import product
from pathlib import Path
from typing import Any

from edgetl.core.artifacts.candidates import CandidatesResult, read_candidates
from edgetl.core.artifacts.experiment import ScreenedNetwork
from edgetl.core.artifacts.experiment_runs import StrategyRun
from edgetl.core.config.candidates import CandidatesConfig
from edgetl.core.config.compare import CompareConfig
from edgetl.core.config.finetune import FinetuneConfig
from edgetl.core.errors import ArchitectureError, BenchError, ConfigError, DataError, RunError
from edgetl.core.files import (
    MAX_JSON_BYTES,
    parse_json,
    read_csv,
    read_json,
    read_regular_file,
    write_json,
)
from edgetl.core.formatting import describe_device
from edgetl.core.paths import ExperimentDirectory, RunDirectory
from edgetl.core.typed_json import FieldError, parse_as
from edgetl.device.hardware.info import collect_device_info
from edgetl.experiment.matrix import NetworkSpec, PlannedRun, plan_runs
from edgetl.experiment.progress import ExperimentProgress
from edgetl.experiment.task_process import run_task
from edgetl.export.candidates import time_candidates
from edgetl.train.data.folders import find_files
from edgetl.train.model.torchvision_models import get_architecture


def is_finished(planned: PlannedRun) -> bool:
    """Whether its run directory holds a run that ended."""
    return (
        planned.config.output is not None and RunDirectory(planned.config.output).metrics.is_file()
    )


def read_strategy_run(planned: PlannedRun) -> tuple[StrategyRun, dict[str, Any]]:
    """The run's figures, and its config.json.

    Raises:
        RunError: a file is missing or broken.
        DataError: the run had no validation images.
    """
    assert planned.config.output is not None
    run = RunDirectory(planned.config.output)
    metrics, config = (
        read_json(run.metrics, RunError, "The run's metrics"),
        read_json(run.config, RunError, "The run's configuration"),
    )
    if metrics.get("val") is None:
        raise DataError(
            "The data has no validation images, and strategies are compared on those. Add images, or a val/ folder."
        )
    try:
        epochs = [
            parse_json(line) for line in read_regular_file(run.history, MAX_JSON_BYTES).splitlines()
        ]
        answers = [(row["label"], row["predicted"]) for row in read_csv(run.predictions)]
        if not answers or not epochs:
            raise ValueError("no epochs, or no predictions")
        number = {label: index for index, label in enumerate(metrics["classes"])}
        confusion = [[0] * len(number) for _ in number]
        for label, predicted in answers:
            confusion[number[label]][number[predicted]] += 1
        figures = {
            **run_identity(planned),
            "seconds": metrics["seconds"]["total"],
            "train_images": metrics["train"]["images"],
            "train_accuracy": metrics["train"]["accuracy"],
            "macro_f1": metrics["val"]["macro_f1"],
            "best_epoch": metrics["best_epoch"],
            "trainable": metrics["parameters"]["trainable"],
            "parameters": metrics["parameters"]["total"],
            "peak_memory_bytes": metrics["peak_memory_bytes"],
            "peak_gpu_memory_bytes": metrics["peak_gpu_memory_bytes"],
            "device": metrics["device"],
            "precision": metrics["precision"],
            "weights": metrics["weights"]["source"],
            "epochs": [
                {
                    name: epoch[name]
                    for name in ("phase", "elapsed", "train_accuracy", "val_accuracy")
                }
                for epoch in epochs
            ],
            "correct": "".join("1" if label == predicted else "0" for label, predicted in answers),
            "confusion": confusion,
        }
        return parse_as(StrategyRun, figures, "its figures"), config
    except (OSError, KeyError, IndexError, TypeError, ValueError) as cause:
        raise RunError(
            f"The run {run.path} is broken: {cause!r}. Remove it, and `edgetl compare` trains it again."
        ) from cause


def run_identity(planned: PlannedRun) -> dict[str, Any]:
    """What a run is called and what it is, before anything is known of its end."""
    return {
        "name": planned.name,
        "row": planned.row,
        "architecture": planned.network.architecture,
        "image_size": planned.network.image_size,
        "strategy": planned.strategy,
        "seed": planned.seed,
        "folder": f"runs/{planned.name}",
    }


_PER_RUN_FIELDS = ("seed", "output")
_RECIPE_DEFAULTS = {field.name: field.default for field in fields(FinetuneConfig)}


@dataclass(frozen=True)
class ExperimentPlan:
    """The runs of an experiment, with what they are expected to take."""

    runs: list[PlannedRun]
    estimated_seconds: dict[str, float]
    """For each run's name; measured here, on these images."""
    finished_runs: list[str]
    """Names of runs that ended before."""
    candidates: CandidatesResult | None = None
    """The networks timed before the plan was made, where there is a latency budget."""

    @property
    def remaining_seconds(self) -> float:
        """Of the runs that have not ended."""
        return sum(
            self.estimated_seconds[run.name]
            for run in self.runs
            if run.name not in self.finished_runs
        )


def make_plan(
    config: CompareConfig, recipe: FinetuneConfig, watcher: ExperimentProgress, scratch: Path
) -> ExperimentPlan:
    """Find out all that can be wrong, and what is to be done; nothing is written but what a latency budget had measured.

    Args:
        scratch: a folder for what is needed in between.

    Raises:
        ConfigError: the options, or a folder that holds something else.
        ArchitectureError, DataError, WeightsError: as `edgetl finetune`, found before anything is trained.
        BenchError: no network is within the latency budget.
    """
    folder = ExperimentDirectory(config.output)
    _check_output_folder(folder, recipe)
    if recipe.val_split == 0:
        raise ConfigError(
            "--val-split 0 leaves no validation images, and strategies are compared on those. Take 0.2."
        )
    labels = find_files(recipe.data.expanduser().absolute()).labels
    networks = [
        NetworkSpec(name, size or get_architecture(name).image_size, get_architecture(name).blocks)
        for name, size in product(
            dict.fromkeys(config.models), dict.fromkeys(config.image_sizes) or (None,)
        )
    ]
    candidates = None
    if config.latency_budget_ms is not None:
        candidates = _time_networks(config, networks, len(labels), folder, watcher)
        networks = _select_within_budget(candidates, networks, watcher)
    runs = plan_runs(config, recipe, networks, folder.runs)
    finished = [run.name for run in runs if is_finished(run)]
    _check_plan_unchanged(folder, runs, finished)
    return ExperimentPlan(
        runs,
        _estimate_run_seconds(runs, watcher, scratch) if len(finished) < len(runs) else {},
        finished,
        candidates,
    )


def write_plan(
    folder: ExperimentDirectory, plan: ExperimentPlan, config: CompareConfig, recipe: FinetuneConfig
) -> None:
    """Write plan.json: by it an experiment is known, and gone on with only as it began."""
    runs = {**_read_planned_runs(folder), **{run.name: _settings(run) for run in plan.runs}}
    write_json(folder.plan, {"kind": "plan", **request_json(config, recipe), "runs": runs})


def to_screened_networks(timed: CandidatesResult) -> tuple[ScreenedNetwork, ...]:
    """The networks timed before any was trained, fastest first, for the experiment's result."""
    rows = sorted(timed.rows, key=lambda row: math.inf if row.p50_ms is None else row.p50_ms)
    return tuple(
        ScreenedNetwork(
            row.name,
            row.p50_ms,
            row.ci95_ms,
            None if row.failed else timed.fits_budget(row),
            row.failed,
        )
        for row in rows
    )


def request_json(config: CompareConfig, recipe: FinetuneConfig) -> dict[str, Any]:
    """What was asked for, as JSON."""
    compare = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in vars(config).items()
        if name != "output"
    }
    return {
        "compare": compare,
        "recipe": {
            name: value for name, value in recipe.to_json().items() if name not in _PER_RUN_FIELDS
        },
    }


def _check_output_folder(folder: ExperimentDirectory, recipe: FinetuneConfig) -> None:
    path, data = folder.path.expanduser().resolve(), recipe.data.expanduser().resolve()
    if path == data or data in path.parents or path in data.parents:
        raise ConfigError(
            f"The experiment's folder {folder.path} and the data folder {recipe.data} lie in each other. Choose another -o."
        )
    if (
        folder.path.exists()
        and not folder.exists_at(folder.path)
        and (not folder.path.is_dir() or any(folder.path.iterdir()))
    ):
        # What a latency budget measured lies there before the plan does.
        if folder.path.is_dir() and {entry.name for entry in folder.path.iterdir()} == {
            folder.candidates.name
        }:
            return
        raise ConfigError(
            f"{folder.path} exists and is no experiment of edgetl. Choose another folder with -o."
        )


def _check_plan_unchanged(
    folder: ExperimentDirectory, runs: Sequence[PlannedRun], finished: Sequence[str]
) -> None:
    before = _read_planned_runs(folder)
    for run in runs:
        then, now = before.get(run.name), _settings(run)
        if run.name in finished and then is None:
            raise ConfigError(
                f"{folder.path} holds {run.name}, which its plan does not know. Move it away, or choose another -o."
            )
        # What an earlier edgetl did not ask is as it was there: the default.
        changed = (
            []
            if then is None
            else [name for name in now if then.get(name, _RECIPE_DEFAULTS.get(name)) != now[name]]
        )
        if run.name in finished and then is not None and changed:
            told = ", ".join(f"{name} was {then.get(name)!r}, is {now[name]!r}" for name in changed)
            raise ConfigError(
                f"{folder.path} holds runs of another plan: {run.name} ({told}). Give the same options to go on, or another -o."
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


def _settings(run: PlannedRun) -> dict[str, Any]:
    content = run.config.to_json()
    return {
        **{name: value for name, value in content.items() if name != "output"},
        "timed_by": run.budget_run,
    }


def _estimate_run_seconds(
    runs: Sequence[PlannedRun], watcher: ExperimentProgress, scratch: Path
) -> dict[str, float]:
    # Runs that differ in their seed alone take as long; one timed by another takes as long as that.
    rows = {run.name: run.row for run in runs}
    row_of = {run.name: rows[run.budget_run] if run.budget_run else run.row for run in runs}
    open_ = {row_of[run.name] for run in runs if not is_finished(run)}
    kinds = {run.row: run for run in reversed(runs) if run.row in open_}
    if all(run.config.budget_s for run in kinds.values()):
        # Nothing to be timed: that is what a run takes at most.
        return {run.name: run.config.budget_s or 0.0 for run in runs if row_of[run.name] in kinds}
    watcher.note(f"Timing steps of {len(kinds)} kinds of runs before anything is trained.")
    found: list[float] = []
    task = {
        "task": "estimate",
        "configs": [
            replace(run.config, output=scratch / "unused").to_json() for run in kinds.values()
        ],
    }
    run_task(
        task, scratch / "estimate.log", lambda message: found.append(message["seconds"]), scratch
    )
    seconds = dict(zip(kinds, found, strict=True))
    return {run.name: seconds[row_of[run.name]] for run in runs if row_of[run.name] in seconds}


def _time_networks(
    config: CompareConfig,
    networks: Sequence[NetworkSpec],
    classes: int,
    folder: ExperimentDirectory,
    watcher: ExperimentProgress,
) -> CandidatesResult:
    wanted = CandidatesConfig(
        architectures=tuple(dict.fromkeys(network.architecture for network in networks)),
        classes=classes,
        image_sizes=config.image_sizes,
        latency_budget_ms=config.latency_budget_ms,
        output=folder.candidates,
    )
    if folder.candidates.exists():
        before = read_candidates(folder.candidates)
        names = {network.name for network in networks}
        rows = tuple(row for row in before.rows if row.name in names)
        whole = (
            {row.name for row in rows} == names
            and not before.interrupted
            and not any(row.failed for row in rows)
        )
        if (
            whole
            and before.classes == classes
            and describe_device(before.device) == describe_device(collect_device_info())
        ):
            return replace(before, latency_budget_ms=config.latency_budget_ms, rows=rows)
        folder.candidates.unlink()
    return time_candidates(wanted, watcher.on_bench_progress)


def _select_within_budget(
    candidates: CandidatesResult, networks: Sequence[NetworkSpec], watcher: ExperimentProgress
) -> list[NetworkSpec]:
    rows = {row.name: row for row in candidates.rows}
    able = [network for network in networks if rows[network.name].failed is None]
    kept = [network for network in able if candidates.fits_budget(rows[network.name]) is not False]
    dropped = [
        f"{network.name} ({rows[network.name].p50_ms:.2f} ms)"
        for network in able
        if network not in kept
    ]
    budget = f"--latency-budget {candidates.latency_budget_ms:g} ms"
    if not kept:
        failed = next((row.failed for row in rows.values() if row.failed), None)
        if failed is not None and all(row.failed for row in rows.values()):
            raise ArchitectureError(f"No network could be timed. {failed}")
        fastest = candidates.timed_rows[0]
        raise BenchError(
            f"No network is within {budget}: the fastest, {fastest.name}, has {fastest.p50_ms:.2f} ms. "
            "Take smaller images (--image-size), other --models, or a larger budget."
        )
    if dropped:
        watcher.note(f"Dropped, above {budget}: {', '.join(dropped)}.")
    for network in networks:
        if network not in able:
            watcher.note(
                f"Dropped, it could not be timed: {network.name}: {rows[network.name].failed}"
            )
    open_ = [network.name for network in kept if candidates.fits_budget(rows[network.name]) is None]
    if open_:
        watcher.note(f"Kept though not decided, the interval holds the budget: {', '.join(open_)}.")
    return kept

"""`edgetl compare`: the transfer-learning experiment on the user's own images."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import edgetl
from edgetl.core.benching import BenchConfig
from edgetl.core.comparing import CompareConfig, PlannedRun
from edgetl.core.errors import DataError, EdgetlError
from edgetl.core.experiment import Deployed, Experiment, read_experiment
from edgetl.core.files import write_text
from edgetl.core.finetuning import FinetuneConfig
from edgetl.core.layout import BundleDirectory, ExperimentDirectory, RunDirectory
from edgetl.core.runs import Run
from edgetl.device.bench.run import bench
from edgetl.device.facts import device_facts
from edgetl.experiment.preparing import Plan, asked, make_plan, write_plan
from edgetl.experiment.processes import run_task
from edgetl.experiment.reading import identity, is_finished, read_run
from edgetl.experiment.watching import Silent, Watcher
from edgetl.report.compare_markdown import compare_markdown
from edgetl.report.compare_page import compare_report
from edgetl.report.page import write_page

ROUNDS = 4
"""Of the exported file's benchmark: enough for a figure to choose by; `edgetl bench` gives one to promise."""


def plan_only(config: CompareConfig, recipe: FinetuneConfig, watcher: Watcher | None = None) -> Plan:
    """What `compare` would do, with the time it is expected to take; nothing is trained.

    Raises:
        EdgetlError: as `compare`.
    """
    with tempfile.TemporaryDirectory(prefix="edgetl-compare-") as scratch:
        return make_plan(config, recipe, watcher or Silent(), Path(scratch))


def compare(config: CompareConfig, recipe: FinetuneConfig, watcher: Watcher | None = None) -> Experiment:
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
        KeyboardInterrupt: as it came; what has ended is kept, and the same call goes on.
    """
    watcher = watcher or Silent()
    plan = plan_only(config, recipe, watcher)
    folder = ExperimentDirectory(config.output)
    folder.runs.mkdir(parents=True, exist_ok=True)
    write_plan(folder, plan, config, recipe)
    watcher.planned(plan.runs, plan.finished, plan.seconds)
    results: dict[str, Run] = {}
    gathered = partial(_gather, folder, config, recipe, plan.runs)
    for run in plan.runs:
        if run.name not in plan.finished:
            failure = _train(run, plan.runs, folder, watcher)
            if failure is not None:
                results[run.name] = Run(**identity(run), failed=failure)
            watcher.ended(run, results.get(run.name) or read_run(run)[0])
            gathered(results).write(folder.result)
    found = gathered(results)
    if config.bench and found.rows:
        found = replace(found, deployed=_deployed(found, folder, watcher))
    found.write(folder.result)
    write_text(folder.table, compare_markdown(found))
    write_page(folder.page, partial(compare_report, found))
    return found


def _train(run: PlannedRun, runs: Sequence[PlannedRun], folder: ExperimentDirectory, watcher: Watcher) -> str | None:
    """Why the run failed; None where it ended well."""
    config = run.config
    if run.timed_by is not None:
        reference = next(other for other in runs if other.name == run.timed_by)
        if not is_finished(reference):
            return f"It takes the time of {run.timed_by}, which failed."
        config = replace(config, budget_s=read_run(reference)[0].seconds)
    watcher.started(run)
    try:
        run_task({"task": "train", "config": config.to_json()}, folder.logs / f"{run.name}.log", partial(watcher.told, run), folder.path)
    except EdgetlError as error:
        return str(error)
    return None


def _gather(
    folder: ExperimentDirectory, config: CompareConfig, recipe: FinetuneConfig, runs: Sequence[PlannedRun], failed: dict[str, Run]
) -> Experiment:
    found: list[Run] = []
    data: dict[str, Any] = {}
    classes: tuple[str, ...] = ()
    for run in runs:
        if run.name in failed:
            found.append(failed[run.name])
        elif is_finished(run):
            figures, content = read_run(run)
            if data and content["data"]["fingerprint"] != data["fingerprint"]:
                raise DataError(
                    f"The images changed while the experiment ran: {run.name} was trained on others than {found[0].name}. "
                    "Put them back, or begin anew with another -o."
                )
            data, classes = content["data"], tuple(content["classes"])
            found.append(figures)
    return Experiment(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        edgetl=edgetl.__version__,
        device=device_facts(),
        config=asked(config, recipe),
        classes=classes,
        data={**data, "folder": recipe.data.name},
        planned=tuple(run.name for run in runs),
        runs=tuple(found),
        folder=folder.path,
    )


def _deployed(found: Experiment, folder: ExperimentDirectory, watcher: Watcher) -> tuple[Deployed, ...]:
    before = read_experiment(folder.result).deployed if folder.result.is_file() else ()
    known = {(one.network, one.run): one for one in before if one.failed is None}
    made = []
    for network in found.networks:
        row = found.recommended(network)
        assert row is not None
        run = row.best
        made.append(known.get((network, run.name)) or _deploy(network, run, folder, watcher))
    return tuple(made)


def _deploy(network: str, run: Run, folder: ExperimentDirectory, watcher: Watcher) -> Deployed:
    directory = RunDirectory(folder.path / run.folder)
    nothing = Deployed(network, run.name, 0, None, None, noisy=False, threads=0)
    silent: Callable[[object], None] = lambda message: None  # noqa: E731
    try:
        if not BundleDirectory.is_one(directory.bundle):
            watcher.note(f"Exporting {run.name}.")
            run_task({"task": "export", "run": str(directory.path)}, folder.logs / f"{run.name}-export.log", silent, folder.path)
        watcher.note(f"Timing the exported file of {run.name}.")
        result = bench(BenchConfig(directory.path, scopes=("model",), variants=("fp32",), torch_modes=(), rounds=ROUNDS), watcher.measuring)
    except EdgetlError as error:
        return replace(nothing, failed=str(error))
    row = result.rows[0]
    size = BundleDirectory(directory.bundle).variant("fp32").stat().st_size
    if row.failed or not row.rounds:
        return replace(nothing, file_bytes=size, failed="It does not answer on this device as PyTorch does.")
    return Deployed(network, run.name, size, row.percentile_ms(50), row.p50_interval_ms, result.noise.noisy, row.threads)

"""`edgetl compare`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgetl.cli.config_options import config_options
from edgetl.cli.console import err, heavy_imports, out, plain_table, print_json
from edgetl.cli.exit_codes import ExitCode
from edgetl.cli.interruption import interrupted_exit_status
from edgetl.core.config.compare import CompareConfig
from edgetl.core.config.finetune import FinetuneConfig
from edgetl.core.files import SCHEMA

if TYPE_CHECKING:
    from edgetl.core.artifacts.experiment import Experiment
    from edgetl.experiment.matrix import PlannedRun
    from edgetl.experiment.plan import ExperimentPlan
    from edgetl.report.text_table import TextTable

_RECIPE_OPTIONS = ("weights", "preset", "val_split", "test_split", "allow_leaks", "device")
"""Fields of FinetuneConfig that are options of `edgetl compare` as well."""


@config_options(CompareConfig)
@config_options(FinetuneConfig, _RECIPE_OPTIONS, parameter="recipe_options")
def compare(
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA",
            help="Folder with train/, val/ and test/ folders of classes, or one folder of classes.",
            show_default=False,
        ),
    ],
    options: dict[str, Any],
    recipe_options: dict[str, Any],
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            metavar="FILE",
            help="TOML file of options for `edgetl finetune`; options that a strategy sets are "
            "overridden.",
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Print the plan with time estimates from steps timed on this machine, and exit.",
        ),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as one JSON object.")
    ] = False,
) -> None:
    """Compare training from scratch with fine-tuning on your images.

    Trains every strategy and reports accuracy gains and training times. Each run is an ordinary
    run directory, next to compare.json, compare.md and report.html. Repeat the same command to
    resume after an interruption.
    """
    from edgetl.core.config.presets import resolve_config

    output = options.pop("output", Path("experiments") / data.expanduser().absolute().name)
    settings = CompareConfig(output.expanduser(), **options)
    preset = recipe_options.pop("preset", None)
    recipe = resolve_config(data.expanduser().absolute(), preset, config, recipe_options)
    with heavy_imports():
        from edgetl.experiment import compare as experiment_runner
    from edgetl.cli.compare_progress import open_experiment_progress

    try:
        with open_experiment_progress() as progress:
            if dry_run:
                plan = experiment_runner.plan_experiment(settings, recipe, progress)
            else:
                experiment = experiment_runner.compare(settings, recipe, progress)
    except KeyboardInterrupt:
        message = "Interrupted."
        if not dry_run:
            message += (
                f" Finished runs are kept in {settings.output}. Repeat the same command to resume."
            )
        err.print(message, style="yellow", markup=False, soft_wrap=True)
        raise typer.Exit(interrupted_exit_status()) from None
    if dry_run:
        _show_plan(plan, as_json)
    else:
        _print_result(experiment, as_json)


def _print_result(experiment: Experiment, as_json: bool) -> None:
    from edgetl.core.paths import ExperimentDirectory

    if as_json:
        print_json({"schema": SCHEMA, **experiment.to_json()})
    else:
        show_experiment(experiment)
        folder = ExperimentDirectory(experiment.folder)
        err.print(
            f"\nPage     {folder.report}\nTable    {folder.table}\nResult   {folder.result}",
            markup=False,
            soft_wrap=True,
        )
    if experiment.failed_runs:
        raise typer.Exit(ExitCode.USER_ERROR)


def show_experiment(experiment: Experiment) -> None:
    """Print the tables and conclusions of an experiment."""
    from edgetl.report.compare.tables import all_tables, conclusion_sentences

    for table in all_tables(experiment):
        print_table(table)
    for sentence in conclusion_sentences(experiment):
        out.print(sentence, markup=False, soft_wrap=True)


def print_table(text_table: TextTable) -> None:
    """Print a table of formatted cells with its title and note."""
    from rich.markup import escape

    out.print(f"[bold]{escape(text_table.title)}[/]")
    table = plain_table()
    for heading in text_table.columns:
        table.add_column(
            escape(heading), justify="left" if text_table.is_text_column(heading) else "right"
        )
    for row in text_table.rows:
        table.add_row(*map(escape, row), style="bold" if row[0].endswith(" *") else None)
    out.print(table)
    if text_table.note:
        out.print(text_table.note, style="dim", markup=False)
    out.print()


def _show_plan(plan: ExperimentPlan, as_json: bool) -> None:
    from edgetl.core.formatting import format_duration
    from edgetl.experiment.plan import to_screened_networks
    from edgetl.report.compare.tables import candidates_table
    from edgetl.report.text_table import TextTable

    if as_json:
        runs = [
            {
                "name": run.name,
                "seconds": plan.estimated_seconds.get(run.name),
                "finished": run.name in plan.finished_runs,
            }
            for run in plan.runs
        ]
        print_json(
            {"schema": SCHEMA, "kind": "plan", "runs": runs, "seconds_left": plan.remaining_seconds}
        )
        return
    if plan.candidates is not None:
        networks = to_screened_networks(plan.candidates)
        print_table(candidates_table(networks, plan.candidates.latency_budget_ms))
    rows = tuple(_plan_row(run, plan) for run in plan.runs)
    note = "Estimated from steps timed on this machine with these images. Nothing was trained."
    if all(run.config.budget_s is not None for run in plan.runs):
        note = "Each run ends within --budget, so no steps were timed. Nothing was trained."
    columns = ("run", "weights", "epochs", "expected time")
    print_table(TextTable("Plan", columns, rows, note, ("weights", "epochs")))
    remaining_count = len(plan.runs) - len(plan.finished_runs)
    out.print(
        f"{remaining_count} of {len(plan.runs)} runs left, about "
        f"{format_duration(plan.remaining_seconds)} of training in total."
    )


def _plan_row(run: PlannedRun, plan: ExperimentPlan) -> tuple[str, str, str, str]:
    from edgetl.core.formatting import format_duration

    weights = run.config.weights if run.config.weights == "none" else "pretrained"
    epochs = str(run.config.epochs + (run.config.finetune_epochs or 0))
    if run.budget_run:
        epochs = "as long as " + run.budget_run
    if run.name in plan.finished_runs:
        return run.name, weights, epochs, "finished"
    return run.name, weights, epochs, format_duration(plan.estimated_seconds[run.name])

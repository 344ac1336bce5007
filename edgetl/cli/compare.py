"""`edgetl compare`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgetl.cli.console import err, out, print_json
from edgetl.cli.interruption import interrupted_exit_status
from edgetl.core.files import SCHEMA

if TYPE_CHECKING:
    from edgetl.core.artifacts.experiment import Experiment
    from edgetl.experiment.plan import ExperimentPlan
    from edgetl.report.compare.tables import TextTable


def compare(
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA", help="As in `edgetl finetune`: folders of classes.", show_default=False
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="The experiment's folder; a part of the same one is gone on with.",
            show_default="experiments/<data>",
        ),
    ] = None,
    models: Annotated[
        list[str] | None,
        typer.Option(
            help="Architectures, separated by commas; `edgetl models` lists them.",
            show_default="mobilenet_v2,resnet50",
        ),
    ] = None,
    strategies: Annotated[
        list[str] | None,
        typer.Option(
            help="scratch: random weights. head: frozen backbone. finetune: the head, then the last blocks. full: the head, then "
            "everything. freeze-sweep: fine-tuning with 0, 1/4, 1/2, 3/4 and all blocks frozen.",
            show_default="scratch,head,finetune",
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Runs of each strategy, all on one split.")] = 3,
    weights: Annotated[
        str | None, typer.Option(help="As in `edgetl finetune`.", show_default="imagenet")
    ] = None,
    image_size: Annotated[
        str,
        typer.Option(
            metavar="160,224",
            help="Sides of the input, pixels.",
            show_default="the architecture's own",
        ),
    ] = "",
    epochs: Annotated[int, typer.Option(help="Of every run, over both phases.")] = 16,
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="30m",
            help="The time that each run may take at most, instead of --epochs.",
            show_default="no limit",
        ),
    ] = None,
    target_accuracy: Annotated[
        float, typer.Option(help="Validation accuracy whose time is told.")
    ] = 0.8,
    latency_budget: Annotated[
        str | None,
        typer.Option(
            metavar="5ms",
            help="Time each network on this device first, and do not train those above it.",
            show_default="no limit",
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Recipe that all runs share.", show_default="default"),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", metavar="FILE", help="As in `edgetl finetune`; strategies decide theirs."
        ),
    ] = None,
    val_split: Annotated[
        float | None,
        typer.Option(
            help="Share held back for validation where DATA has no val/ of its own.",
            show_default="0.2",
        ),
    ] = None,
    allow_leaks: Annotated[
        bool,
        typer.Option(
            "--allow-leaks",
            help="Train though images are in both train/ and val/; accuracy is then flattered.",
        ),
    ] = False,
    device: Annotated[
        str | None, typer.Option(help="Where to train: auto, cpu, cuda.", show_default="auto")
    ] = None,
    bench: Annotated[
        bool,
        typer.Option(
            "--bench/--no-bench", help="Export and time the recommended run of each network."
        ),
    ] = True,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Print the plan and how long it would take, from steps timed here."
        ),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as one JSON object, and nothing else.")
    ] = False,
) -> None:
    """Train on your images from nothing and from pretrained weights, and tell what each gains and costs.

    Every run is an ordinary run directory; beside them lie compare.json, compare.md and report.html.
    The same command goes on where it was ended.
    """
    from edgetl.cli.candidates import parse_image_sizes
    from edgetl.core.config.compare import CompareConfig
    from edgetl.core.config.options import parse_duration, parse_milliseconds, split_list
    from edgetl.core.config.presets import resolve_config
    from edgetl.core.paths import ExperimentDirectory

    settings = CompareConfig(
        output=(output or Path("experiments") / data.expanduser().absolute().name).expanduser(),
        **{
            name: split_list(value)
            for name, value in (("models", models), ("strategies", strategies))
            if value is not None
        },
        seeds=seeds,
        image_sizes=parse_image_sizes(image_size),
        epochs=epochs,
        budget_s=None if budget is None else parse_duration(budget),
        target_accuracy=target_accuracy,
        latency_budget_ms=None if latency_budget is None else parse_milliseconds(latency_budget),
        bench=bench,
    )
    given: dict[str, Any] = {
        "weights": weights,
        "val_split": val_split,
        "allow_leaks": allow_leaks or None,
        "device": device,
    }
    recipe = resolve_config(
        data.expanduser().absolute(),
        preset,
        config,
        {name: value for name, value in given.items() if value is not None},
    )
    from edgetl.cli.console import heavy_imports

    with heavy_imports():
        from edgetl.experiment import compare as comparing
    from edgetl.cli.compare_progress import open_experiment_progress

    try:
        with open_experiment_progress() as watcher:
            if dry_run:
                plan = comparing.plan_experiment(settings, recipe, watcher)
            else:
                found = comparing.compare(settings, recipe, watcher)
    except KeyboardInterrupt:
        again = (
            ""
            if dry_run
            else f" What has ended is kept in {settings.output}; the same command goes on."
        )
        err.print(f"Interrupted.{again}", style="yellow", markup=False, soft_wrap=True)
        raise typer.Exit(interrupted_exit_status()) from None
    if dry_run:
        _show_plan(plan, as_json)
        return
    if as_json:
        print_json({"schema": SCHEMA, **found.to_json()})
    else:
        show_experiment(found)
        folder = ExperimentDirectory(found.folder)
        err.print(
            f"\nPage     {folder.report}\nTable    {folder.table}\nResult   {folder.result}",
            markup=False,
            soft_wrap=True,
        )
    if found.failed_runs:
        raise typer.Exit(1)


def show_experiment(found: Experiment) -> None:
    """Print an experiment for people."""
    from edgetl.report.compare.tables import all_tables, conclusion_sentences

    for table in all_tables(found):
        print_table(table)
    for sentence in conclusion_sentences(found):
        out.print(sentence, markup=False, soft_wrap=True)


def print_table(shown: TextTable) -> None:
    """Print a table of ready cells."""
    from rich.markup import escape

    from edgetl.cli.bench_tables import plain_table

    out.print(f"[bold]{escape(shown.title)}[/]")
    table = plain_table()
    for heading in shown.columns:
        table.add_column(
            escape(heading), justify="left" if shown.is_text_column(heading) else "right"
        )
    for row in shown.rows:
        table.add_row(*map(escape, row), style="bold" if row[0].endswith(" *") else None)
    out.print(table)
    if shown.note:
        out.print(shown.note, style="dim", markup=False)
    out.print()


def _show_plan(plan: ExperimentPlan, as_json: bool) -> None:
    from edgetl.core.formatting import format_duration
    from edgetl.experiment.plan import to_screened_networks
    from edgetl.report.compare.tables import TextTable, candidates_table

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
    rows = tuple(
        (
            run.name,
            run.config.weights if run.config.weights == "none" else "pretrained",
            "as long as " + run.budget_run
            if run.budget_run
            else str(run.config.epochs + (run.config.finetune_epochs or 0)),
            "ended"
            if run.name in plan.finished_runs
            else format_duration(plan.estimated_seconds[run.name]),
        )
        for run in plan.runs
    )
    budgets = {run.config.budget_s for run in plan.runs}
    note = "Expected from steps timed here on these images; nothing was trained."
    if None not in budgets:
        note = "Each run ends within --budget, so nothing was timed; nothing was trained."
    if plan.candidates is not None:
        print_table(
            candidates_table(
                to_screened_networks(plan.candidates), plan.candidates.latency_budget_ms
            )
        )
    print_table(
        TextTable(
            "Plan", ("run", "weights", "epochs", "expected time"), rows, note, ("weights", "epochs")
        )
    )
    left = len(plan.runs) - len(plan.finished_runs)
    out.print(
        f"{left} of {len(plan.runs)} runs to do, about {format_duration(plan.remaining_seconds)} of training in all."
    )

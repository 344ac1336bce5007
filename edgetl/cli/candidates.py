"""`edgetl candidates`."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgetl.cli.config_options import config_options
from edgetl.cli.console import out, plain_table
from edgetl.cli.progress import measure_and_show
from edgetl.core.config.candidates import CandidatesConfig
from edgetl.core.formatting import MISSING_VALUE, format_milliseconds, pluralize

if TYPE_CHECKING:
    from edgetl.core.artifacts.candidates import CandidateRow, CandidatesResult

_FITS_MARKUP = {
    True: "[bold green]yes[/]",
    False: "[bold red]no[/]",
    None: "[yellow]undecided[/]",
}


@config_options(CandidatesConfig)
def candidates(
    architectures: Annotated[
        list[str],
        typer.Argument(
            metavar="ARCHITECTURE...",
            help="torchvision architectures; `edgetl models` lists them.",
            show_default=False,
        ),
    ],
    options: dict[str, Any],
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as one JSON object.")
    ] = False,
) -> None:
    """Time architectures on this device, before training.

    Each is exported with random weights and timed with one image, preprocessing included. With a
    latency budget, the result shows which fit and which of them are the most capable.
    """
    from edgetl.core.config.parsers import split_list
    from edgetl.core.errors import BenchError

    config = CandidatesConfig(split_list(architectures), **options)
    from edgetl.export.candidates import time_candidates

    result = measure_and_show(partial(time_candidates, config), show_candidates, as_json)
    if not result.timed_rows:
        reasons = "; ".join(
            f"{row.architecture} at {row.image_size} px: {row.failed}" for row in result.rows
        )
        raise BenchError(f"No candidate could be timed: {reasons}")


def show_candidates(result: CandidatesResult) -> None:
    """Print the candidates, fastest first, with the ones that fit and the next step."""
    budget = "" if result.latency_budget_ms is None else f", budget {result.latency_budget_ms:g} ms"
    out.print(
        f"[bold]Candidates[/] with {result.classes} classes on {result.device.description}, "
        f"{pluralize(result.threads, 'thread')}{budget}",
        highlight=False,
    )
    table = plain_table()
    table.add_column("architecture")
    for heading in (
        "size",
        "parameters",
        "MB",
        "p50 ms [95%]".replace("[", "\\["),
        "p90 ms",
        "images/s",
        "ImageNet %",
    ):
        table.add_column(heading, justify="right")
    if result.latency_budget_ms is not None:
        table.add_column("fits")
    failed_rows = [row for row in result.rows if row.failed]
    for row in (*result.timed_rows, *failed_rows):
        fits = "[bold red]failed[/]" if row.failed else _FITS_MARKUP[result.fits_budget(row)]
        table.add_row(*_candidate_cells(row), *([] if result.latency_budget_ms is None else [fits]))
    out.print(table)
    out.print()
    for row in failed_rows:
        out.print(
            f"Failed   {row.architecture} at {row.image_size} px: {row.failed}",
            markup=False,
            soft_wrap=True,
        )
    for row in result.timed_rows:
        if not row.steady:
            out.print(
                f"[yellow]Not steady:[/] {row.name}: warm-up did not reach a steady state (2%) in "
                "every round."
            )
    for note in result.notes:
        out.print(f"Note     {note}", markup=False, soft_wrap=True)
    if result.timed_rows:
        noise = "[green]quiet[/]"
        if result.noise.is_noisy:
            noise = "[yellow]noisy[/]: " + "; ".join(result.noise.reasons)
        out.print(f"Noise    {noise}", soft_wrap=True)
    if result.path is not None:
        out.print(f"Result   {result.path}", markup=False, soft_wrap=True)
    out.print(summarize_candidates(result), markup=False, soft_wrap=True)


def summarize_candidates(result: CandidatesResult) -> str:
    """Summarize which candidates fit, the most capable of them, and the next step."""
    if not result.timed_rows:
        return "Nothing was timed."
    fastest = _describe_candidate(result.timed_rows[0])
    budget = f"{result.latency_budget_ms:g} ms" if result.latency_budget_ms is not None else ""
    sentences = []
    if not budget:
        sentences.append(
            f"The fastest is {fastest}. Use --latency-budget 5ms to see which candidates fit."
        )
    elif result.fitting_rows:
        fitting = ", ".join(map(_describe_candidate, result.fitting_rows))
        sentences.append(f"Within {budget}: {fitting}.")
    else:
        sentences.append(f"No candidate is certainly within {budget}; the closest is {fastest}.")
    if result.undecided_rows:
        undecided = ", ".join(map(_describe_candidate, result.undecided_rows))
        widened = ""
        if result.noise.is_noisy:
            widened = " (widened by the spread of the rounds, as the device is noisy)"
        sentences.append(
            f"Undecided: {undecided}; the confidence interval{widened} includes the budget. "
            "Increase --rounds or use a quieter device."
        )
    if not result.fitting_rows:
        sentences.append(
            "Try smaller images (--image-size 128,160), smaller architectures (`edgetl models`), "
            "or a larger budget."
        )
        return " ".join(sentences)
    best = result.pareto_front
    if len(best) == 1:
        sentences.append(
            "The most capable, by ImageNet accuracy and image size, is "
            f"{best[0].architecture} at {best[0].image_size} px."
        )
    else:
        names = " and ".join(f"{row.architecture} at {row.image_size} px" for row in best)
        sentences.append(
            f"The most capable are {names}: they trade ImageNet accuracy against image size, so "
            "train each to compare."
        )
    steps = [
        f"  edgetl finetune DATA --model {row.architecture} --image-size {row.image_size}"
        for row in best
    ]
    return "\n".join([" ".join([*sentences, "Next:"]), *steps])


def _describe_candidate(row: CandidateRow) -> str:
    return f"{row.architecture} at {row.image_size} px ({format_milliseconds(row.p50_ms)} ms)"


def _candidate_cells(row: CandidateRow) -> list[str]:
    interval = ""
    if row.ci95_ms is not None:
        low, high = map(format_milliseconds, row.ci95_ms)
        interval = f" \\[{low}, {high}]"
    return [
        row.architecture,
        str(row.image_size),
        MISSING_VALUE if row.parameters is None else f"{row.parameters / 1e6:.2f} M",
        MISSING_VALUE if row.file_bytes is None else f"{row.file_bytes / 1e6:.1f}",
        format_milliseconds(row.p50_ms) + interval,
        format_milliseconds(row.p90_ms),
        MISSING_VALUE if row.images_per_second is None else f"{row.images_per_second:.1f}",
        MISSING_VALUE if row.imagenet_top1 is None else f"{row.imagenet_top1:.1f}",
    ]

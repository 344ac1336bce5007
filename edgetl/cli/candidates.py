"""`edgetl bench --candidates`: which architectures are fast enough here, before any is trained."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from edgetl.cli.console import out
from edgetl.cli.progress import measure_and_show
from edgetl.core.formatting import MISSING_VALUE, describe_device, format_milliseconds, pluralize

if TYPE_CHECKING:
    from edgetl.core.artifacts.candidates import CandidateRow, CandidatesResult

_FITS_MARKUP = {
    True: "[bold green]yes[/]",
    False: "[bold red]no[/]",
    None: "[yellow]not decided[/]",
}


def run_candidates(
    names: Sequence[str],
    classes: int = 10,
    image_sizes: str = "",
    latency_budget: str | None = None,
    threads: int | None = None,
    rounds: int = 8,
    provider: str = "cpu",
    output: Path | None = None,
    as_json: bool = False,
    force: bool = False,
) -> None:
    """Time architectures and print what fits.

    Args:
        names: torchvision's names; one may hold several, separated by commas.
        classes: width of the new head.
        image_sizes: pixels, separated by commas (`160,224`); empty takes each architecture's own.
        latency_budget: `5ms`, `800us`; None only measures.
        threads: intra-op threads; None takes the cores available.
        rounds: rounds of the protocol.
        provider: execution provider.
        output: the result file; None chooses a new one in ./bench.
        as_json: print the result as one JSON object, and nothing else.
        force: measure with more threads than there are cores.

    Raises:
        ConfigError: values that contradict themselves, or unknown architectures.
        BenchError: not one candidate could be timed; the table with the reasons has been printed.
    """
    from edgetl.core.config.candidates import CandidatesConfig
    from edgetl.core.config.options import parse_milliseconds, split_list
    from edgetl.core.errors import BenchError

    config = CandidatesConfig(
        architectures=split_list(names),
        classes=classes,
        image_sizes=parse_image_sizes(image_sizes),
        latency_budget_ms=None if latency_budget is None else parse_milliseconds(latency_budget),
        threads=threads,
        provider=provider,
        rounds=rounds,
        output=output,
        force=force,
    )
    from edgetl.export.candidates import time_candidates

    result = measure_and_show(partial(time_candidates, config), show_candidates, as_json)
    if not result.timed_rows:
        reasons = "; ".join(
            f"{row.architecture} at {row.image_size} px: {row.failed}" for row in result.rows
        )
        raise BenchError(f"Not one candidate could be timed. {reasons}")


def parse_image_sizes(text: str) -> tuple[int, ...]:
    """Pixels of `160,224`; nothing for an empty text.

    Raises:
        ConfigError: something in it is no whole number.
    """
    from edgetl.core.errors import ConfigError

    parts = [part.strip() for part in text.split(",") if part.strip()]
    wrong = [part for part in parts if not (part.isascii() and part.isdigit())]
    if wrong:
        raise ConfigError(
            f"--image-size takes pixels, separated by commas (160,224), not {', '.join(map(repr, wrong))}."
        )
    return tuple(map(int, parts))


def show_candidates(result: CandidatesResult) -> None:
    """Print a result for people: the table, fastest first, what fits, and what to do next."""
    from edgetl.cli.bench_tables import plain_table

    budget = "" if result.latency_budget_ms is None else f", budget {result.latency_budget_ms:g} ms"
    out.print(
        f"[bold]Candidates[/] with {result.classes} classes on {describe_device(result.device)}, {pluralize(result.threads, 'thread')}{budget}",
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
    failed = [row for row in result.rows if row.failed]
    for row in (*result.timed_rows, *failed):
        fits = "[bold red]failed[/]" if row.failed else _FITS_MARKUP[result.fits_budget(row)]
        table.add_row(*_candidate_cells(row), *([] if result.latency_budget_ms is None else [fits]))
    out.print(table)
    out.print()
    for row in failed:
        out.print(
            f"Failed   {row.architecture} at {row.image_size} px: {row.failed}",
            markup=False,
            soft_wrap=True,
        )
    for row in result.timed_rows:
        if not row.steady:
            out.print(
                f"[yellow]Not steady:[/] {row.name}: warm-up did not settle within 2% in every round."
            )
    for note in result.notes:
        out.print(f"Note     {note}", markup=False, soft_wrap=True)
    if result.timed_rows:
        quiet = (
            "[green]quiet[/]"
            if not result.noise.is_noisy
            else "[yellow]noisy[/]: " + "; ".join(result.noise.reasons)
        )
        out.print(f"Noise    {quiet}", soft_wrap=True)
    if result.path is not None:
        out.print(f"Result   {result.path}", markup=False, soft_wrap=True)
    out.print(summarize_candidates(result), markup=False, soft_wrap=True)


def summarize_candidates(result: CandidatesResult) -> str:
    """What the figures say, in words: what fits, the most capable of it, and the next step; or what came closest."""
    if not result.timed_rows:
        return "Nothing was timed."
    said = []
    if result.latency_budget_ms is None:
        said.append(
            f"Fastest is {_describe_candidate(result.timed_rows[0])}; --latency-budget 5ms says what fits."
        )
    elif result.fitting_rows:
        said.append(
            f"Within {result.latency_budget_ms:g} ms: {', '.join(map(_describe_candidate, result.fitting_rows))}."
        )
    else:
        said.append(
            f"Nothing is surely within {result.latency_budget_ms:g} ms; {_describe_candidate(result.timed_rows[0])} came closest."
        )
    if result.undecided_rows:
        names = ", ".join(map(_describe_candidate, result.undecided_rows))
        widened = (
            ", widened by how far the rounds differ on this noisy device,"
            if result.noise.is_noisy
            else ""
        )
        said.append(
            f"Not decided: {names}, whose interval{widened} holds the budget; more --rounds or a quieter device decide."
        )
    if not result.fitting_rows:
        said.append(
            "Take smaller images (--image-size 128,160), smaller architectures (`edgetl models`), or a larger budget."
        )
        return " ".join(said)
    best = result.pareto_front
    if len(best) == 1:
        said.append(
            f"The most capable, by ImageNet accuracy and image size, is {best[0].architecture} at {best[0].image_size} px."
        )
    else:
        named = " and ".join(f"{row.architecture} at {row.image_size} px" for row in best)
        said.append(
            f"The most capable are {named}: better on ImageNet against more pixels, which only training decides."
        )
    steps = [
        f"  edgetl finetune DATA --model {row.architecture} --image-size {row.image_size}"
        for row in best
    ]
    return "\n".join([" ".join([*said, "Next:"]), *steps])


def _describe_candidate(row: CandidateRow) -> str:
    return f"{row.architecture} at {row.image_size} px ({format_milliseconds(row.p50_ms)} ms)"


def _candidate_cells(row: CandidateRow) -> list[str]:
    interval = (
        ""
        if row.ci95_ms is None
        else f" \\[{format_milliseconds(row.ci95_ms[0])}, {format_milliseconds(row.ci95_ms[1])}]"
    )
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

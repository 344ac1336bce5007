"""`edgetl check`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgetl.cli.console import err, out, print_json
from edgetl.core.files import SCHEMA

if TYPE_CHECKING:
    from edgetl.train.check.dataset_check import DatasetReport

EXIT_ERRORS, EXIT_WARNINGS = 5, 4
_SEVERITY_STYLES = {"error": "bold red", "warning": "yellow", "note": "dim"}
_MAX_LISTED = 3
"""Groups of a finding that are named."""


def check(
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA", help="As in `edgetl finetune`: folders of classes.", show_default=False
        ),
    ],
    sheet: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.png", help="Draw the files to look at first.", show_default=False
        ),
    ] = None,
    quarantine: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Copy the files of errors and warnings there, with a list.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as one JSON object, and nothing else.")
    ] = False,
) -> None:
    """Look through a data set before training: every image is decoded, nothing is changed.

    Finds files that cannot be read, decompression bombs, exact and near duplicates inside and across the splits, contradictory labels,
    imbalance, empty classes and stray files.

    Exit status: 0, nothing worse than notes; 4, warnings; 5, errors, which make figures wrong or training impossible.
    """
    from edgetl.cli.progress import open_step_progress
    from edgetl.train.check.dataset_check import check as examine

    with open_step_progress() as progress:
        found = examine(data, lambda done, total: progress("Decoding images", done, total))
    if sheet is not None:
        from edgetl.train.check.review import draw_worst_files

        draw_worst_files(found, sheet)
    copied = None
    if quarantine is not None:
        from edgetl.train.check.review import quarantine as copy_out

        copied = copy_out(found, quarantine)
    if as_json:
        print_json({"schema": SCHEMA, **found.to_json()})
    else:
        show_dataset_report(found)
        if sheet is not None:
            err.print(f"Sheet  {sheet}", markup=False, soft_wrap=True)
        if copied is not None:
            err.print(
                f"{copied} files copied to {quarantine}; list.csv says why each.",
                markup=False,
                soft_wrap=True,
            )
    if found.worst_severity in ("error", "warning"):
        raise typer.Exit(EXIT_ERRORS if found.worst_severity == "error" else EXIT_WARNINGS)


def show_dataset_report(found: DatasetReport) -> None:
    """Print it for people."""
    from rich.markup import escape

    from edgetl.cli.bench_tables import plain_table

    table = plain_table()
    table.add_column("class")
    for part in found.counts:
        table.add_column(part, justify="right")
    for label in found.labels:
        table.add_row(
            escape(label), *(f"{classes.get(label, 0):,}" for classes in found.counts.values())
        )
    table.add_row(
        "[bold]all[/]",
        *(f"[bold]{sum(classes.values()):,}[/]" for classes in found.counts.values()),
    )
    out.print(table)
    if found.shorter_sides is not None:
        least, middle, largest = found.shorter_sides
        formats = ", ".join(f"{count:,} {name}" for name, count in found.formats.items())
        out.print(
            f"Shorter side {least} to {largest} pixels, median {middle:g}; {formats}.",
            markup=False,
            soft_wrap=True,
        )
    for finding in found.findings:
        out.print(f"{finding.severity:<8}", style=_SEVERITY_STYLES[finding.severity], end="")
        out.print(finding.message, markup=False, soft_wrap=True)
        for group in finding.groups[:_MAX_LISTED]:
            named = "  =  ".join(
                repr(found.display_path(path))[1:-1] for path in group[:_MAX_LISTED]
            )
            out.print(
                f"          {named}{'  ...' if len(group) > _MAX_LISTED else ''}",
                style="dim",
                markup=False,
                soft_wrap=True,
            )
        if len(finding.groups) > _MAX_LISTED:
            out.print(
                f"          and {len(finding.groups) - _MAX_LISTED:,} more",
                style="dim",
                markup=False,
            )
    if not found.findings:
        out.print("Nothing is wrong with any of them.", style="green")

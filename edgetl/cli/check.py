"""`edgetl check`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgetl.cli.console import err, out, plain_table, print_json
from edgetl.cli.exit_codes import ExitCode
from edgetl.core.files import SCHEMA

if TYPE_CHECKING:
    from edgetl.train.check.dataset_check import DatasetReport

_EXIT_CODES = {"error": ExitCode.FAILED_CHECK, "warning": ExitCode.UNDECIDED}
_SEVERITY_STYLES = {"error": "bold red", "warning": "yellow", "note": "dim"}
_MAX_LISTED = 3
"""Number of groups listed per finding, and of files listed per group."""


def check(
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA",
            help="Folder with train/, val/ and test/ folders of classes, or one folder of classes.",
            show_default=False,
        ),
    ],
    sheet: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.png",
            help="Write a contact sheet of the worst files.",
            show_default=False,
        ),
    ] = None,
    quarantine: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Copy files with errors or warnings to this folder, with a list.csv of reasons.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as one JSON object.")
    ] = False,
) -> None:
    """Check a data set before training. Decodes every image and changes nothing.

    Finds unreadable files, decompression bombs, exact and near duplicates within and across
    splits, contradictory labels, imbalance, empty classes and stray files.

    Exit code: 0, at most notes; 4, errors, which invalidate metrics or prevent training; 5, only
    warnings.
    """
    from edgetl.cli.progress import open_step_progress
    from edgetl.train.check.dataset_check import check as check_dataset

    with open_step_progress() as progress:
        report = check_dataset(data, progress, sheet, quarantine)
    if as_json:
        print_json({"schema": SCHEMA, **report.to_json()})
    else:
        show_dataset_report(report)
        if sheet is not None:
            err.print(f"Sheet  {sheet}", markup=False, soft_wrap=True)
        if quarantine is not None:
            err.print(
                f"{report.quarantined_files} files copied to {quarantine}; list.csv gives the reason for each.",
                markup=False,
                soft_wrap=True,
            )
    if report.worst_severity in _EXIT_CODES:
        raise typer.Exit(_EXIT_CODES[report.worst_severity])


def show_dataset_report(report: DatasetReport) -> None:
    """Print image counts, sizes, formats and findings."""
    from rich.markup import escape

    table = plain_table()
    table.add_column("class")
    for split in report.counts:
        table.add_column(split, justify="right")
    for label in report.labels:
        table.add_row(
            escape(label), *(f"{classes.get(label, 0):,}" for classes in report.counts.values())
        )
    table.add_row(
        "[bold]all[/]",
        *(f"[bold]{sum(classes.values()):,}[/]" for classes in report.counts.values()),
    )
    out.print(table)
    if report.shorter_sides is not None:
        smallest, median, largest = report.shorter_sides
        formats = ", ".join(f"{count:,} {name}" for name, count in report.formats.items())
        out.print(
            f"Shorter side {smallest} to {largest} pixels, median {median:g}; {formats}.",
            markup=False,
            soft_wrap=True,
        )
    for finding in report.findings:
        out.print(f"{finding.severity:<8}", style=_SEVERITY_STYLES[finding.severity], end="")
        out.print(finding.message, markup=False, soft_wrap=True)
        for group in finding.groups[:_MAX_LISTED]:
            paths = "  =  ".join(
                repr(report.display_path(path))[1:-1] for path in group[:_MAX_LISTED]
            )
            out.print(
                f"          {paths}{'  ...' if len(group) > _MAX_LISTED else ''}",
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
    if not report.findings:
        out.print("No problems found.", style="green")

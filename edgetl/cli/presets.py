"""`edgetl presets`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from edgetl.cli.console import out
from edgetl.core.config.presets import (
    PRESET_DESCRIPTIONS,
    RECIPE_FIELDS,
    format_preset_toml,
    get_presets,
)
from edgetl.core.files import SCHEMA


def presets(
    name: Annotated[
        str | None,
        typer.Argument(
            help="Print this preset as a TOML file for `finetune --config`.",
            show_default="list all",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as one JSON object.")
    ] = False,
) -> None:
    """List the available presets, or print one as TOML to edit."""
    text = format_preset_toml(name) if name is not None else ""
    selected = {key: values for key, values in get_presets().items() if name in (None, key)}
    if as_json:
        rows = {
            key: {"note": PRESET_DESCRIPTIONS[key], "values": values}
            for key, values in selected.items()
        }
        typer.echo(json.dumps({"schema": SCHEMA, "kind": "presets", "presets": rows}, indent=2))
        return
    if text:
        typer.echo(text, nl=False)
        return
    from rich.table import Table

    for key in selected:
        out.print(f"[bold]{key}[/]  {PRESET_DESCRIPTIONS[key]}", soft_wrap=True)
    table = Table(caption="`edgetl presets NAME` prints all values.", caption_justify="left")
    table.add_column("Differences", no_wrap=True)
    for key in selected:
        table.add_column(key, no_wrap=True)
    for field in RECIPE_FIELDS:
        values = [
            "auto" if values[field] is None else str(values[field]) for values in selected.values()
        ]
        if len(set(values)) > 1:
            table.add_row(field.replace("_", "-"), *values)
    out.print(table)

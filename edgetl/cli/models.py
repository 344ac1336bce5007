"""`edgetl models`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from edgetl.cli.console import err, out

_CAPTION = """Unfreeze: blocks that phase 2 trains by default. Builtin: weights ship with edgetl, for --weights builtin.
Head: the layer that is replaced."""


def models(
    pattern: Annotated[
        str, typer.Argument(help="Only names that contain this.", show_default="all")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the architectures that `finetune --model` takes, with parameters, input size, head, and which ship with weights."""
    from edgetl.core.architectures import load_architectures
    from edgetl.core.builtin_weights import find_builtin_folders
    from edgetl.core.files import SCHEMA

    chosen = [row for row in load_architectures().values() if pattern.lower() in row.name]
    shipped = find_builtin_folders()
    if as_json:
        listed = [{**row.to_json(), "builtin": row.name in shipped} for row in chosen]
        typer.echo(json.dumps({"schema": SCHEMA, "kind": "models", "models": listed}, indent=2))
        return
    if not chosen:
        err.print(
            f"No architecture's name contains {pattern!r}. `edgetl models` lists all.", markup=False
        )
        raise typer.Exit(1)
    from rich.table import Table

    table = Table(caption=_CAPTION, caption_justify="left")
    table.add_column("Model", no_wrap=True)
    for title in ("Parameters", "Size", "Blocks", "Unfreeze"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("Builtin", no_wrap=True)
    table.add_column("Head", no_wrap=True)
    for row in chosen:
        figures = (
            f"{row.parameters / 1e6:.1f} M",
            f"{row.image_size}",
            f"{row.blocks}",
            f"{row.unfreeze}",
        )
        table.add_row(
            row.name,
            *figures,
            "yes" if row.name in shipped else "",
            row.head + (" (conv)" if row.head_kind == "conv" else ""),
        )
    out.print(table)

"""`edgetl models`."""

from __future__ import annotations

import json
from typing import Annotated, Literal

import typer

from edgetl.cli.console import err, out
from edgetl.cli.exit_codes import ExitCode

_CAPTION = (
    "Unfreeze: blocks that phase 2 trains by default. "
    "Weights: where they come from without a download at run time, either edgetl (--weights\n"
    "builtin) or its extra of this name (--weights imagenet).\n"
    "Head: the layer that is replaced."
)


def models(
    pattern: Annotated[
        str, typer.Argument(help="Show only names that contain this text.", show_default="all")
    ] = "",
    source: Annotated[
        Literal["timm"] | None,
        typer.Option(help="List the tested architectures of timm, which needs the extra `timm`."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as one JSON object.")
    ] = False,
) -> None:
    """List the available architectures.

    Shows parameters, input size, blocks, weights at hand and the head that is replaced.
    """
    from edgetl.core.architectures import load_architectures, load_timm_architectures, source_of
    from edgetl.core.builtin_weights import find_builtin_folders
    from edgetl.core.files import SCHEMA
    from edgetl.core.registry import WEIGHTS_EXTRAS
    from edgetl.core.typed_json import to_json

    rows = load_timm_architectures() if source else load_architectures()
    matches = [row for row in rows.values() if pattern.lower() in row.name]
    builtin_folders = find_builtin_folders()
    if as_json:
        objects = [{**to_json(row), "builtin": row.name in builtin_folders} for row in matches]
        typer.echo(json.dumps({"schema": SCHEMA, "kind": "models", "models": objects}, indent=2))
        return
    if not matches:
        err.print(
            f"No architecture matches {pattern!r}. `edgetl models` lists all, "
            "`edgetl models --source timm` those of timm that were tested.",
            markup=False,
        )
        raise typer.Exit(ExitCode.USER_ERROR)
    from rich.table import Table

    table = Table(caption=_CAPTION, caption_justify="left")
    table.add_column("Model", no_wrap=True)
    for heading in ("Parameters", "Size", "Blocks", "Unfreeze"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("Weights", no_wrap=True)
    table.add_column("Head", no_wrap=True)
    for row in matches:
        weights = WEIGHTS_EXTRAS.get(source_of(row.name), "")
        table.add_row(
            row.name,
            f"{row.parameters / 1e6:.1f} M",
            f"{row.image_size}",
            f"{row.blocks}",
            f"{row.unfreeze}",
            "builtin" if row.name in builtin_folders else weights,
            row.head + (" (conv)" if row.head_kind == "conv" else ""),
        )
    out.print(table)

"""Commands of the program: their help is plain text, and may show only the basic options."""

from __future__ import annotations

import re
from typing import Any

import typer
from typer.core import TyperCommand, TyperOption


class Command(TyperCommand):
    """Command whose `--help` shows the basic options and whose `--help-all` shows all, by panel."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.has_more_options = any(getattr(part, "hidden", False) for part in self.params)
        self._shows_all = False
        if self.has_more_options:
            self.params.append(
                TyperOption(
                    param_decls=["--help-all"],
                    is_flag=True,
                    is_eager=True,
                    expose_value=False,
                    callback=self._print_full_help,
                    help="Show all options and exit.",
                )
            )

    def _print_full_help(self, context: typer.Context, parameter: Any, requested: bool) -> None:
        if not requested:
            return
        self._shows_all = True
        for part in self.params:
            if isinstance(part, TyperOption):
                part.hidden = False
        typer.echo(context.get_help(), color=context.color)
        context.exit()

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write a section for the arguments and for each panel of options."""
        sections: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        for part in self.get_params(ctx):
            if (record := part.get_help_record(ctx)) is None:
                continue
            panel = "Arguments" if part.param_type_name == "argument" else "Options"
            if self._shows_all:
                panel = getattr(part, "rich_help_panel", None) or panel
            names, text = record
            # Typer puts a default that is given as text in parentheses.
            text = re.sub(r"\[default: \((.*)\)\]$", r"[default: \1]", text)
            sections.setdefault(panel, []).append((names, text))
        for title, records in sections.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write how to see the options that `--help` leaves out."""
        super().format_epilog(ctx, formatter)
        if self.has_more_options and not self._shows_all:
            formatter.write_paragraph()
            formatter.write(f"More options: {ctx.command_path} --help-all\n")

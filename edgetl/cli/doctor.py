"""`edgetl doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgetl.cli.console import out, print_json
from edgetl.cli.exit_codes import ExitCode

if TYPE_CHECKING:
    from edgetl.device.doctor import Environment, RuntimeInfo


def doctor(
    bundle: Annotated[
        Path | None,
        typer.Argument(
            metavar="[BUNDLE]",
            help="Bundle or run: also show on which execution provider each variant's nodes run.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as one JSON object.")
    ] = False,
) -> None:
    """Show the hardware and packages of this machine.

    Reports problems and the commands that fix them. Exit code 1 if even `predict` and `bench`
    cannot run.
    """
    from edgetl.device.doctor import inspect_environment

    environment = inspect_environment(bundle=bundle)
    if as_json:
        print_json(environment.to_json(), indent=2)
    else:
        show_environment(environment)
        if bundle is not None:
            show_placements(environment)
    if environment.fatal_findings:
        raise typer.Exit(ExitCode.USER_ERROR)


def show_environment(environment: Environment) -> None:
    """Print hardware, packages and findings."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _environment_rows(environment):
        table.add_row(name, escape(value))
    for runtime in environment.runtimes.values():
        table.add_row(runtime.title, _describe_runtime(runtime))
    for package, version in environment.packages.items():
        table.add_row(package, "[dim]not installed[/]" if version is None else escape(version))
    out.print(table)
    out.print()
    if not environment.findings:
        out.print("[bold green]No problems found.[/]")
    for finding in environment.findings:
        out.print("[bold red]Problem[/]" if finding.fatal else "[bold yellow]Missing[/]", end="  ")
        out.print(f"{finding.what} (needed by: {finding.effect})", markup=False, soft_wrap=True)
        out.print(f"         {finding.remedy}", markup=False, soft_wrap=True, style="cyan")


def show_placements(environment: Environment) -> None:
    """Print the nodes of each variant by execution provider."""
    from edgetl.core.formatting import format_node_counts, pluralize

    out.print()
    if not environment.placements:
        out.print("All nodes run on the CPU: no other provider starts here.")
    for item in environment.placements:
        name = f"{item.variant} on {item.provider.removesuffix('ExecutionProvider')}"
        out.print(f"[bold]{name}[/]", end="  ")
        nodes = pluralize(sum(item.nodes.values()), "node")
        text = item.problem or f"{nodes}: {format_node_counts(item.nodes)}"
        out.print(text, markup=False, soft_wrap=True)


def _describe_runtime(runtime: RuntimeInfo) -> str:
    from rich.markup import escape

    if runtime.version is None:
        return f"[dim]not installed: {escape(runtime.install)}[/]"
    if runtime.problem is not None:
        return escape(f"runtime {runtime.version}: cannot be imported, {runtime.problem}")
    return f"runtime {escape(runtime.version)}: works"


def _environment_rows(environment: Environment) -> list[tuple[str, str]]:
    cores = environment.cores
    quota = "" if cores.quota is None else f", CPU quota {cores.quota:g}"
    memory = "unknown"
    if environment.memory_bytes is not None:
        memory = f"{environment.memory_bytes / 2**30:.1f} GiB"
    return [
        ("Python", f"{environment.python}  {environment.executable}"),
        ("system", environment.system),
        ("processor", environment.cpu or "unknown"),
        ("cores", f"{cores.available} available of {cores.logical}{quota}"),
        ("memory", memory),
        ("GPU", _describe_gpus(environment)),
        *(
            (
                name.removesuffix("ExecutionProvider"),
                "provider: works" if problem is None else f"provider: cannot start, {problem}",
            )
            for name, problem in environment.providers.items()
        ),
    ]


def _describe_gpus(environment: Environment) -> str:
    gpus = ", ".join(environment.gpus) or "none"
    torch = environment.torch
    if torch is None:
        return gpus
    torch_gpus = ", ".join(torch.gpus) or "no GPU"
    build = f"built for CUDA {torch.cuda}" if torch.cuda else "built without CUDA"
    return f"{gpus}; torch detects {torch_gpus} ({build})"

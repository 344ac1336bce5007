"""Progress of long commands on standard error: a bar on a terminal, one line per step elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

import typer

from edgetl.cli.console import err, print_json
from edgetl.cli.interruption import interrupted_exit_status
from edgetl.core.progress import ProgressCallback


class _MeasurementResult(Protocol):
    """Result of a measurement."""

    @property
    def path(self) -> Path | None: ...

    @property
    def notes(self) -> tuple[str, ...]: ...

    def to_json(self) -> dict[str, Any]: ...


ResultT = TypeVar("ResultT", bound=_MeasurementResult)


@contextmanager
def open_step_progress() -> Iterator[ProgressCallback]:
    """Yield a callback that draws a bar, or prints each step once outside a terminal."""
    if not err.is_terminal:
        printed_steps: set[str] = set()

        def print_step(step: str, done: int, total: int) -> None:
            if step not in printed_steps:
                printed_steps.add(step)
                err.print(step, markup=False)

        yield print_step
        return

    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
    )

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=err, transient=True) as bar:
        task = bar.add_task("", total=None)

        def update_bar(step: str, done: int, total: int) -> None:
            bar.update(task, description=step, completed=done, total=total or None)

        yield update_bar


@contextmanager
def open_block_progress() -> Iterator[ProgressCallback]:
    """Yield a callback for the blocks of a benchmark.

    The bar is drawn only between blocks, so that drawing does not disturb a measurement.
    """
    if not err.is_terminal:
        yield lambda step, done, total: err.print(step, markup=False)
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, auto_refresh=False, transient=True) as bar:
        task = bar.add_task("", total=None)

        def draw(step: str, done: int, total: int) -> None:
            bar.update(task, description=step, completed=done, total=total or None)
            bar.refresh()

        yield draw


@contextmanager
def open_measurement_progress() -> Iterator[ProgressCallback]:
    """Yield block progress; on Ctrl-C print what was kept and exit with the interrupted status."""
    try:
        with open_block_progress() as progress:
            yield progress
    except KeyboardInterrupt as interrupt:
        err.print(
            str(interrupt) or "Interrupted: nothing was kept.",
            style="yellow",
            markup=False,
            soft_wrap=True,
        )
        raise typer.Exit(interrupted_exit_status()) from None


def measure_and_show(
    measure: Callable[[ProgressCallback], ResultT],
    show: Callable[[ResultT], None],
    as_json: bool,
    open_progress: Callable[
        [], AbstractContextManager[ProgressCallback]
    ] = open_measurement_progress,
) -> ResultT:
    """Measure and print the result, with `show` or as one JSON object.

    Raises:
        BenchError: the result file could not be written. The result is printed before.
    """
    from edgetl.core.errors import BenchError

    with open_progress() as progress:
        result = measure(progress)
    if as_json:
        print_json(result.to_json())
    else:
        show(result)
    if result.path is None:
        raise BenchError(result.notes[-1])
    return result

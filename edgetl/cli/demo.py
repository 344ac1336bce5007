"""`edgetl demo`: the complete workflow on generated images."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgetl.cli.console import heavy_imports, out

if TYPE_CHECKING:
    from edgetl.core.progress import ProgressCallback
    from edgetl.device.verify import VerifyResult
    from edgetl.experiment.progress import ExperimentProgress


def demo(
    weights: Annotated[
        str,
        typer.Option(
            help="Pretrained weights: `builtin` (MobileNetV3-small, shipped with edgetl), `imagenet` "
            "(EfficientNet-Lite0, from the extra `lite`), `auto` (imagenet if the extra is installed, "
            "builtin otherwise), or a file for MobileNetV3-small."
        ),
    ] = "auto",
    keep: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Keep all files in this folder: images, runs, bundle and results.",
            show_default="only two pages, in edgetl-demo",
        ),
    ] = None,
) -> None:
    """Run the complete workflow on generated images.

    Works offline, on images of parts on a conveyor. Trains from scratch and from pretrained
    weights for the same time, then exports, verifies, benchmarks and reports. Each step prints the
    command to use on your own images; a summary of accuracy and latency follows. Takes less than
    three minutes on two cores.
    """
    from edgetl.cli.compare import print_table
    from edgetl.core.errors import DataError
    from edgetl.core.paths import find_free_path

    folder = keep or find_free_path(Path(), "edgetl-demo")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(
            f"{folder} already exists and is not empty. Choose another folder with --keep."
        )
    with heavy_imports():
        from edgetl.demo.demo import PAGES, run_demo

    start_time = time.perf_counter()
    result = run_demo(folder, weights, keep is not None, _TerminalProgress())
    out.print()
    for table in result.tables:
        print_table(table)
    out.print()
    out.print(f"Done in {time.perf_counter() - start_time:.0f} s. Open")
    for page, description in PAGES.items():
        out.print(f"  {folder / page!s:<34} {description}", markup=False, soft_wrap=True)
    if keep is None:
        out.print("Use --keep DIR to keep the images, runs, bundle and results.")
        model, weights = result.settings.model, result.settings.weights
        command = f"edgetl compare DATA --models {model} --weights {weights}"
        out.print(f"With your own images: {command}", markup=False, soft_wrap=True)
    else:
        out.print(
            f"All files are in {folder}; {folder / 'README.md'} describes them and the next steps.",
            markup=False,
            soft_wrap=True,
        )


class _TerminalProgress:
    """Print each step with its command, and show the progress as the command does."""

    def on_step(self, number: int, title: str, *command: object) -> None:
        out.print()
        out.print(f"{number}  {title}", style="bold", markup=False, soft_wrap=True)
        if command:
            text = "$ edgetl " + shlex.join(map(str, command))
            out.print(text, style="dim", markup=False, soft_wrap=True)

    def on_text(self, text: str) -> None:
        out.print(text, markup=False, soft_wrap=True)

    def on_verified(self, results: Sequence[VerifyResult]) -> None:
        from edgetl.cli.verify import print_verify_results

        print_verify_results(results)

    def open_compare(self) -> AbstractContextManager[ExperimentProgress]:
        from edgetl.cli.compare_progress import open_experiment_progress

        return open_experiment_progress()

    def open_export(self) -> AbstractContextManager[ProgressCallback]:
        from edgetl.cli.progress import open_step_progress

        return open_step_progress()

    def open_verify(self) -> AbstractContextManager[ProgressCallback]:
        from edgetl.cli.verify import open_verify_progress

        return open_verify_progress()

    def open_bench(self) -> AbstractContextManager[ProgressCallback]:
        from edgetl.cli.progress import open_measurement_progress

        return open_measurement_progress()

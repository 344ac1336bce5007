"""`edgetl demo`: the whole job on pictures made on the spot."""

from __future__ import annotations

import shlex
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Annotated

import typer

from edgetl.cli.console import out

if TYPE_CHECKING:
    from edgetl.core.artifacts.bench import BenchResult
    from edgetl.core.artifacts.experiment import Experiment
    from edgetl.core.artifacts.experiment_runs import StrategyRun
    from edgetl.core.paths import RunDirectory

PAGES = {
    "comparison.html": "what pretraining gained, image by image",
    "model.html": "the model: mistakes, recipe, bundle, latencies",
}
"""What is left in any case."""


@dataclass(frozen=True)
class DemoSettings:
    """How much the demo does: it is to take less than three minutes on two cores."""

    train_images_per_class: int = 100
    val_images_per_class: int = 40
    """Pictures of each class."""
    generated_image_size: int = 128
    """Pixels of a picture's side."""
    model: str = "mobilenet_v3_small"
    strategy: str = "full"
    image_size: int = 112
    budget_per_run: str = "40s"
    """Of each training."""
    variants: str = "fp32,int8"
    rounds: int = 4


DEMO_SETTINGS = DemoSettings()


def demo(
    weights: Annotated[
        str,
        typer.Option(
            help="`builtin`: shipped with edgetl. `imagenet`: torchvision's, where there is a network. Or a file."
        ),
    ] = "builtin",
    keep: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Leave everything in this folder, to go on with: pictures, runs, bundle, results.",
            show_default="two pages, in edgetl-demo",
        ),
    ] = None,
) -> None:
    """Run the whole job, offline: draw parts on a conveyor, train from nothing and pretrained, export, verify, bench, report.

    Both trainings have the same time. What the pretrained one gained, what the exported file saves, and what to open stand at the end;
    each step prints the command that does the same on your own images. It takes less than three minutes on two cores.
    """
    from edgetl.core.errors import DataError
    from edgetl.core.paths import find_free_path

    folder = keep or find_free_path(Path(), "edgetl-demo")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder} exists and is not empty. Choose another folder with --keep.")
    _check_weights(weights)
    started = time.perf_counter()
    with _work_directory(folder, keep is not None) as work:
        found, best, result = _run_steps(work, weights)
        _show_summary(found, best, result)
    out.print()
    out.print(f"Done in {time.perf_counter() - started:.0f} s. Open")
    for page, what in PAGES.items():
        out.print(f"  {folder / page!s:<34} {what}", markup=False, soft_wrap=True)
    if keep is None:
        out.print("With --keep DIR the pictures, runs, bundle and results stay.")
        out.print(
            f"On your own images: edgetl compare DATA --models {DEMO_SETTINGS.model} --weights {weights}",
            markup=False,
            soft_wrap=True,
        )
    else:
        out.print(
            f"All else lies in {folder}; {folder / 'README.md'} says what is what and how to go on.",
            markup=False,
            soft_wrap=True,
        )


def _check_weights(weights: str) -> None:
    """Before anything is written: downloads them where they come from a server."""
    from edgetl.cli.console import heavy_imports
    from edgetl.core.errors import ConfigError

    with heavy_imports():
        from edgetl.train.model.weights import read_weights
    if read_weights(weights, DEMO_SETTINGS.model) is None:
        raise ConfigError(
            "--weights none is what pretrained weights are compared with: give builtin, imagenet, or a file."
        )


@contextmanager
def _work_directory(folder: Path, keep: bool) -> Iterator[Path]:
    """Where to work; nothing but the pages is left of it where `folder` is not to keep everything."""
    if keep:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="edgetl-demo-") as name:
        yield Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        for page in PAGES:
            shutil.copy(Path(name) / page, folder / page)


def _run_steps(folder: Path, weights: str) -> tuple[Experiment, StrategyRun, BenchResult]:
    from edgetl.cli.compare_progress import open_experiment_progress
    from edgetl.cli.console import heavy_imports
    from edgetl.cli.progress import open_measurement_progress, open_step_progress
    from edgetl.cli.verify import open_verify_progress, print_verify_results
    from edgetl.core.config.bench import BenchConfig
    from edgetl.core.config.compare import CompareConfig
    from edgetl.core.config.export import ExportConfig
    from edgetl.core.config.finetune import FinetuneConfig
    from edgetl.core.config.options import parse_duration
    from edgetl.core.errors import BundleError
    from edgetl.core.paths import RunDirectory

    with heavy_imports():
        from edgetl.demo.images.dataset import CLASSES, generate_inspection_dataset
        from edgetl.device.bench.protocol import QUICK_PROTOCOL
        from edgetl.device.bench.runner import bench
        from edgetl.device.runtime.bundle import open_bundle
        from edgetl.device.verify import verify
        from edgetl.experiment.compare import compare
        from edgetl.export.exporter import export_run
        from edgetl.train.check.dataset_check import check

    scale, data = DEMO_SETTINGS, folder / "parts"
    _print_step_title(1, f"Parts on a conveyor: {', '.join(CLASSES)}")
    generate_inspection_dataset(
        data, scale.train_images_per_class, scale.val_images_per_class, scale.generated_image_size
    )
    out.print(
        f"{len(CLASSES) * scale.train_images_per_class} training and {len(CLASSES) * scale.val_images_per_class} validation pictures, {scale.generated_image_size} pixels, drawn here."
    )

    _print_step_title(2, "What is wrong with them, before any training")
    _print_command("check", "parts")
    checked = check(data)
    for finding in checked.findings:
        out.print(f"{finding.severity}: {finding.message}", markup=False, soft_wrap=True)
    if not checked.findings:
        out.print(f"Nothing is wrong with any of the {checked.image_count}.")

    _print_step_title(3, "From nothing and from pretrained weights, in the same time")
    _print_command(
        "compare", "parts", "--models", scale.model, "--weights", weights, "--strategies", f"scratch,{scale.strategy}", "--seeds", 1,
        "--image-size", scale.image_size, "--budget", scale.budget_per_run, "--no-bench", "-o", "comparison",
    )  # fmt: skip
    settings = CompareConfig(
        folder / "comparison", (scale.model,), ("scratch", scale.strategy), 1, (scale.image_size,),
        budget_s=parse_duration(scale.budget_per_run), bench=False,
    )  # fmt: skip
    with open_experiment_progress() as watcher:
        found = compare(settings, FinetuneConfig(data.absolute(), weights=weights), watcher)
    best = _find_pretrained_run(found)
    for trained in found.runs:
        out.print(
            f"{trained.strategy:<8} {trained.val_accuracy:.1%} after {len(trained.epochs)} epochs",
            markup=False,
        )

    run = RunDirectory(folder / "comparison" / best.folder)
    shown = run.path.relative_to(folder)
    _print_step_title(
        4, "One file for the device, proven equal to PyTorch, and a smaller one in int8"
    )
    _print_command("export", shown, "--variants", scale.variants, "--search", "quick")
    with open_step_progress() as progress:
        export_run(
            run, ExportConfig(variants=tuple(scale.variants.split(",")), search="quick"), progress
        )

    _print_step_title(5, "Its reference images, through this machine's own ONNX Runtime")
    _print_command("verify", shown)
    with open_verify_progress() as tell:
        verified = verify(open_bundle(run.bundle), progress=tell)
    print_verify_results(verified)
    if not all(one.passed for one in verified):
        raise BundleError(
            "The bundle does not answer here as it was proven to; what failed stands above."
        )

    _print_step_title(6, "Timed against PyTorch")
    _print_command("bench", shown, "--scope", "model", "--rounds", scale.rounds)
    with open_measurement_progress() as blocks:
        result = bench(
            BenchConfig(run.path, scopes=("model",), rounds=scale.rounds), blocks, QUICK_PROTOCOL
        )

    _print_step_title(7, "Reports")
    _print_command("report", shown)
    _write_pages(folder, found, run)
    return found, best, result


def _find_pretrained_run(found: Experiment) -> StrategyRun:
    from edgetl.core.errors import RunError

    for failed in found.failed_runs:
        raise RunError(f"{failed.name} failed: {failed.failed}")
    return next(run for run in found.runs if run.strategy == DEMO_SETTINGS.strategy)


def _write_pages(folder: Path, found: Experiment, run: RunDirectory) -> None:
    from functools import partial

    from edgetl.core.artifacts.bench_json import read_run_results
    from edgetl.core.artifacts.run import read_run_record
    from edgetl.core.files import write_text
    from edgetl.core.paths import ExperimentDirectory
    from edgetl.report.html.blocks import write_page
    from edgetl.report.run.page import render_run_report

    comparison, model = (folder / page for page in PAGES)
    shutil.copy(ExperimentDirectory(found.folder).report, comparison)
    write_page(model, partial(render_run_report, read_run_record(run.path), read_run_results(run)))
    write_text(
        folder / "README.md",
        _README_TEMPLATE.substitute(run=run.path.relative_to(folder), model=DEMO_SETTINGS.model),
    )


_README_TEMPLATE = Template("""\
# What `edgetl demo` left

| | |
| --- | --- |
| parts/ | the pictures: train/ and val/, a folder for each class |
| comparison/ | both trainings, side by side: compare.json, report.html, and a run directory each in runs/ |
| $run | the pretrained one: weights, metrics, plots |
| $run/bundle | all that a device needs; copy this folder |
| $run/bench | every latency that was measured |
| comparison.html, model.html | what to look at |

Go on, in this folder:

    edgetl predict $run/bundle parts/val/scratched/scratched_0000.jpg
    edgetl finetune parts --model $model --weights builtin -o runs/mine     a longer training of your own; `edgetl finetune -h`
    edgetl verify $run                                     on any other machine: does it answer as it was proven to?
    edgetl bench $run                                      all scopes, for figures to keep
    edgetl report $run                                     the page anew

Put photos of your own into parts/train/CLASS and parts/val/CLASS, and the same commands do the same with them.
""")


def _show_summary(found: Experiment, best: StrategyRun, result: BenchResult) -> None:
    from edgetl.cli.compare import print_table
    from edgetl.core.artifacts.bundle import read_bundle_manifest
    from edgetl.core.paths import RunDirectory
    from edgetl.demo.summary import accuracy_gain_table, latency_gain_table

    scratch, pretrained = (
        next(row for row in found.rows if row.first_run.strategy == name)
        for name in ("scratch", DEMO_SETTINGS.strategy)
    )
    bundle = read_bundle_manifest(RunDirectory(found.folder / best.folder).bundle)
    out.print()
    print_table(accuracy_gain_table(found, scratch, pretrained))
    print_table(latency_gain_table(bundle, result, best.val_accuracy))


def _print_step_title(number: int, text: str) -> None:
    out.print()
    out.print(f"{number}  {text}", style="bold", markup=False, soft_wrap=True)


def _print_command(*command: object) -> None:
    out.print(
        "$ edgetl " + shlex.join(map(str, command)), style="dim", markup=False, soft_wrap=True
    )

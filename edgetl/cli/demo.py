"""`edgetl demo`: the complete workflow on generated images."""

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
    "comparison.html": "accuracy gain of pretraining, image by image",
    "model.html": "the model: mistakes, recipe, bundle, latencies",
}
"""Pages that are always written, and their descriptions."""


@dataclass(frozen=True)
class DemoSettings:
    """Size of the demo, chosen to take less than three minutes on two cores."""

    train_images_per_class: int = 100
    val_images_per_class: int = 40
    generated_image_size: int = 128
    """Side of a generated image, in pixels."""
    model: str = "mobilenet_v3_small"
    strategy: str = "full"
    image_size: int = 112
    """Side of the model's input, in pixels."""
    budget_per_run: str = "40s"
    """Time limit of each training run."""
    variants: str = "fp32,int8"
    rounds: int = 4


DEMO_SETTINGS = DemoSettings()


def demo(
    weights: Annotated[
        str,
        typer.Option(
            help="Pretrained weights: `builtin` (shipped with edgetl), `imagenet` (downloaded by "
            "torchvision), or a file."
        ),
    ] = "builtin",
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
    from edgetl.core.errors import DataError
    from edgetl.core.paths import find_free_path

    folder = keep or find_free_path(Path(), "edgetl-demo")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(
            f"{folder} already exists and is not empty. Choose another folder with --keep."
        )
    _check_weights(weights)
    start_time = time.perf_counter()
    with _work_directory(folder, keep is not None) as work_directory:
        experiment, best, result = _run_steps(work_directory, weights)
        _show_summary(experiment, best, result)
    out.print()
    out.print(f"Done in {time.perf_counter() - start_time:.0f} s. Open")
    for page, description in PAGES.items():
        out.print(f"  {folder / page!s:<34} {description}", markup=False, soft_wrap=True)
    if keep is None:
        out.print("Use --keep DIR to keep the images, runs, bundle and results.")
        command = f"edgetl compare DATA --models {DEMO_SETTINGS.model} --weights {weights}"
        out.print(f"With your own images: {command}", markup=False, soft_wrap=True)
    else:
        out.print(
            f"All files are in {folder}; {folder / 'README.md'} describes them and the next steps.",
            markup=False,
            soft_wrap=True,
        )


def _check_weights(weights: str) -> None:
    """Check that the weights can be read, downloading them if needed, before writing anything."""
    from edgetl.cli.console import heavy_imports
    from edgetl.core.errors import ConfigError

    with heavy_imports():
        from edgetl.train.model.weights import read_weights
    if read_weights(weights, DEMO_SETTINGS.model) is None:
        raise ConfigError(
            "--weights must be builtin, imagenet or a file, got none: the demo compares pretrained "
            "weights with random ones."
        )


@contextmanager
def _work_directory(folder: Path, keep: bool) -> Iterator[Path]:
    """Yield `folder` if `keep` is set, else a temporary folder whose pages are copied to it."""
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
    from edgetl.core.config.parsers import parse_duration
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

    settings = DEMO_SETTINGS
    data = folder / "parts"
    _print_step_title(1, f"Generate images of parts on a conveyor: {', '.join(CLASSES)}")
    generate_inspection_dataset(
        data,
        settings.train_images_per_class,
        settings.val_images_per_class,
        settings.generated_image_size,
    )
    out.print(
        f"{len(CLASSES) * settings.train_images_per_class} training and "
        f"{len(CLASSES) * settings.val_images_per_class} validation images, "
        f"{settings.generated_image_size} pixels."
    )

    _print_step_title(2, "Check the data set")
    _print_command("check", "parts")
    report = check(data)
    for finding in report.findings:
        out.print(f"{finding.severity}: {finding.message}", markup=False, soft_wrap=True)
    if not report.findings:
        out.print(f"No problems found in {report.image_count} images.")

    _print_step_title(3, "Train from scratch and from pretrained weights, for the same time")
    _print_command(
        "compare", "parts", "--models", settings.model, "--weights", weights,
        "--strategies", f"scratch,{settings.strategy}", "--seeds", 1,
        "--image-size", settings.image_size, "--budget", settings.budget_per_run,
        "--no-bench", "-o", "comparison",
    )  # fmt: skip
    compare_config = CompareConfig(
        folder / "comparison",
        (settings.model,),
        ("scratch", settings.strategy),
        1,
        (settings.image_size,),
        budget_s=parse_duration(settings.budget_per_run),
        bench=False,
    )
    recipe = FinetuneConfig(data.absolute(), weights=weights)
    with open_experiment_progress() as experiment_progress:
        experiment = compare(compare_config, recipe, experiment_progress)
    best = _find_pretrained_run(experiment)
    for strategy_run in experiment.runs:
        out.print(
            f"{strategy_run.strategy:<8} {strategy_run.val_accuracy:.1%} "
            f"after {len(strategy_run.epochs)} epochs",
            markup=False,
        )

    run = RunDirectory(folder / "comparison" / best.folder)
    relative_path = run.path.relative_to(folder)
    _print_step_title(4, "Export to ONNX, verified against PyTorch, and quantize to int8")
    _print_command("export", relative_path, "--variants", settings.variants, "--search", "quick")
    variants = tuple(settings.variants.split(","))
    with open_step_progress() as step_progress:
        export_run(run, ExportConfig(variants=variants, search="quick"), step_progress)

    _print_step_title(5, "Verify the bundle with this machine's ONNX Runtime")
    _print_command("verify", relative_path)
    with open_verify_progress() as verify_progress:
        verify_results = verify(open_bundle(run.bundle), progress=verify_progress)
    print_verify_results(verify_results)
    if not all(verify_result.passed for verify_result in verify_results):
        raise BundleError("The bundle failed verification on this machine, see the table above.")

    _print_step_title(6, "Benchmark against PyTorch")
    _print_command("bench", relative_path, "--scope", "model", "--rounds", settings.rounds)
    bench_config = BenchConfig(run.path, scopes=("model",), rounds=settings.rounds)
    with open_measurement_progress() as block_progress:
        result = bench(bench_config, block_progress, QUICK_PROTOCOL)

    _print_step_title(7, "Write the reports")
    _print_command("report", relative_path)
    _write_pages(folder, experiment, run)
    return experiment, best, result


def _find_pretrained_run(experiment: Experiment) -> StrategyRun:
    from edgetl.core.errors import RunError

    for run in experiment.failed_runs:
        raise RunError(f"{run.name} failed: {run.failed}")
    return next(run for run in experiment.runs if run.strategy == DEMO_SETTINGS.strategy)


def _write_pages(folder: Path, experiment: Experiment, run: RunDirectory) -> None:
    from functools import partial

    from edgetl.core.artifacts.bench_json import read_run_results
    from edgetl.core.artifacts.run import read_run_record
    from edgetl.core.files import write_text
    from edgetl.core.paths import ExperimentDirectory
    from edgetl.report.html.blocks import write_page
    from edgetl.report.run.page import render_run_report

    comparison, model = (folder / page for page in PAGES)
    shutil.copy(ExperimentDirectory(experiment.folder).report, comparison)
    write_page(model, partial(render_run_report, read_run_record(run.path), read_run_results(run)))
    write_text(
        folder / "README.md",
        _README_TEMPLATE.substitute(run=run.path.relative_to(folder), model=DEMO_SETTINGS.model),
    )


_README_TEMPLATE = Template("""\
# Files of `edgetl demo`

| | |
| --- | --- |
| parts/ | the images: train/ and val/, one folder per class |
| comparison/ | both training runs: compare.json, report.html, and the run directories in runs/ |
| $run | the pretrained run: weights, metrics, plots |
| $run/bundle | the bundle to copy to a device |
| $run/bench | all measured latencies |
| comparison.html, model.html | the reports |

Next steps, in this folder:

    edgetl predict $run/bundle parts/val/scratched/scratched_0000.jpg
    edgetl finetune parts --model $model --weights builtin -o runs/mine     train longer
    edgetl verify $run                                     check the bundle, also on another machine
    edgetl bench $run                                      benchmark all scopes
    edgetl report $run                                     write the report again

To use your own photos, put them into parts/train/CLASS and parts/val/CLASS, and run the same
commands.
""")


def _show_summary(experiment: Experiment, best: StrategyRun, result: BenchResult) -> None:
    from edgetl.cli.compare import print_table
    from edgetl.core.artifacts.bundle import read_bundle_manifest
    from edgetl.core.paths import RunDirectory
    from edgetl.demo.summary import accuracy_gain_table, latency_gain_table

    scratch, pretrained = (
        next(row for row in experiment.rows if row.first_run.strategy == name)
        for name in ("scratch", DEMO_SETTINGS.strategy)
    )
    bundle = read_bundle_manifest(RunDirectory(experiment.folder / best.folder).bundle)
    out.print()
    print_table(accuracy_gain_table(experiment, scratch, pretrained))
    print_table(latency_gain_table(bundle, result, best.val_accuracy))


def _print_step_title(number: int, text: str) -> None:
    out.print()
    out.print(f"{number}  {text}", style="bold", markup=False, soft_wrap=True)


def _print_command(*command: object) -> None:
    out.print(
        "$ edgetl " + shlex.join(map(str, command)), style="dim", markup=False, soft_wrap=True
    )

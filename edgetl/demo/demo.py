"""The complete workflow on generated images."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from string import Template
from typing import Protocol

from edgetl.core.artifacts.bench import BenchResult
from edgetl.core.artifacts.bench_json import read_run_results
from edgetl.core.artifacts.bundle import read_bundle_record
from edgetl.core.artifacts.experiment import Experiment
from edgetl.core.artifacts.experiment_runs import StrategyRun
from edgetl.core.artifacts.run import read_run_record
from edgetl.core.config.bench import BenchConfig
from edgetl.core.config.compare import CompareConfig
from edgetl.core.config.export import ExportConfig
from edgetl.core.config.finetune import FinetuneConfig
from edgetl.core.config.parsers import parse_duration
from edgetl.core.errors import BundleError, ConfigError, RunError
from edgetl.core.files import write_text
from edgetl.core.formatting import pluralize
from edgetl.core.paths import ExperimentDirectory, RunDirectory
from edgetl.core.progress import ProgressCallback
from edgetl.demo.images.dataset import CLASSES, generate_inspection_dataset
from edgetl.demo.summary import accuracy_gain_table, latency_gain_table
from edgetl.device.bench.protocol import QUICK_PROTOCOL
from edgetl.device.bench.runner import bench
from edgetl.device.verify import VerifyResult, verify
from edgetl.experiment.compare import compare
from edgetl.experiment.progress import ExperimentProgress
from edgetl.export.exporter import export_run
from edgetl.report.html.blocks import write_page
from edgetl.report.run.page import render_run_report
from edgetl.report.text_table import TextTable
from edgetl.train.check.dataset_check import check
from edgetl.train.model.sources.efficientnet_lite import is_weights_package_installed
from edgetl.train.model.weights import read_weights

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
    weights: str = "builtin"
    """Pretrained weights of the model, as for `--weights`."""
    strategy: str = "full"
    image_size: int = 112
    """Side of the model's input, in pixels."""
    budget_per_run: str = "32s"
    """Time limit of each training run."""
    variants: str = "fp32,int8"
    rounds: int = 4


DEMO_SETTINGS = DemoSettings()
IMAGENET_DEMO_SETTINGS = DemoSettings(
    model="efficientnet_lite0", weights="imagenet", strategy="finetune", budget_per_run="22s"
)
"""Settings for the ImageNet weights of the extra `lite`.

The network is larger, so only its last blocks are trained, and the export takes longer.
"""


def choose_settings(weights: str) -> DemoSettings:
    """Return the settings for `--weights`; `auto` is `imagenet` if the extra `lite` is installed."""
    if weights == "auto":
        has_package = is_weights_package_installed(IMAGENET_DEMO_SETTINGS.model)
        return IMAGENET_DEMO_SETTINGS if has_package else DEMO_SETTINGS
    if weights == "imagenet":
        return IMAGENET_DEMO_SETTINGS
    return replace(DEMO_SETTINGS, weights=weights)


class DemoProgress(Protocol):
    """Callbacks for the steps of the demo, and the progress of the steps that take long."""

    def on_step(self, number: int, title: str, *command: object) -> None:
        """Report the start of a step, and the arguments of `edgetl` that do the same."""

    def on_text(self, text: str) -> None:
        """Report a result in one line."""

    def on_verified(self, results: Sequence[VerifyResult]) -> None:
        """Report the verified variants."""

    def open_compare(self) -> AbstractContextManager[ExperimentProgress]:
        """Return the callbacks for training."""

    def open_export(self) -> AbstractContextManager[ProgressCallback]:
        """Return the callback for the export."""

    def open_verify(self) -> AbstractContextManager[ProgressCallback]:
        """Return the callback for the verification."""

    def open_bench(self) -> AbstractContextManager[ProgressCallback]:
        """Return the callback for the benchmark."""


@dataclass(frozen=True)
class DemoResult:
    """Results of the demo, and its summary of accuracy and latency."""

    settings: DemoSettings
    experiment: Experiment
    bench: BenchResult
    tables: tuple[TextTable, ...]


def run_demo(folder: Path, weights: str, keep: bool, progress: DemoProgress) -> DemoResult:
    """Train with and without pretrained weights, export, verify, measure and report.

    Args:
        folder: where to write PAGES; it is created.
        weights: pretrained weights: `auto`, `builtin`, `imagenet` or a file.
        keep: write all files to `folder`, not only the pages.
        progress: callbacks of the steps.

    Raises:
        ConfigError: `none`. Nothing has been written.
        WeightsError: there are no such weights. Nothing has been written.
        MissingPackageError: `imagenet`, but the extra `lite` is not installed.
        RunError: training failed.
        BundleError: the bundle failed verification.
    """
    settings = choose_settings(weights)
    if read_weights(settings.weights, settings.model) is None:
        raise ConfigError(
            "{weights} must be auto, builtin, imagenet or a file, got none: the demo compares "
            "pretrained weights with random ones.",
            FinetuneConfig,
        )
    with _work_directory(folder, keep) as work_directory:
        return _Demo(work_directory, settings, progress).run()


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


class _Demo:
    """One run of the demo."""

    def __init__(self, folder: Path, settings: DemoSettings, progress: DemoProgress) -> None:
        self._folder = folder
        self._data = folder / "parts"
        self._settings = settings
        self._progress = progress

    def run(self) -> DemoResult:
        self._generate_images()
        self._check()
        experiment, pretrained = self._train()
        run = RunDirectory(self._folder / "comparison" / pretrained.folder)
        relative_path = run.path.relative_to(self._folder)
        self._export(run, relative_path)
        self._verify(run, relative_path)
        result = self._bench(run, relative_path)
        self._progress.on_step(7, "Write the reports", "report", relative_path)
        self._write_pages(experiment, run)
        tables = self._summarize(experiment, pretrained, result)
        return DemoResult(self._settings, experiment, result, tables)

    def _generate_images(self) -> None:
        settings = self._settings
        self._progress.on_step(1, f"Generate images of parts on a conveyor: {', '.join(CLASSES)}")
        generate_inspection_dataset(
            self._data,
            settings.train_images_per_class,
            settings.val_images_per_class,
            settings.generated_image_size,
        )
        self._progress.on_text(
            f"{len(CLASSES) * settings.train_images_per_class} training and "
            f"{len(CLASSES) * settings.val_images_per_class} validation images, "
            f"{settings.generated_image_size} pixels."
        )

    def _check(self) -> None:
        self._progress.on_step(2, "Check the data set", "check", "parts")
        report = check(self._data)
        for finding in report.findings:
            self._progress.on_text(f"{finding.severity}: {finding.message}")
        if not report.findings:
            self._progress.on_text(f"No problems found in {report.image_count} images.")

    def _train(self) -> tuple[Experiment, StrategyRun]:
        settings = self._settings
        self._progress.on_step(
            3, "Train from scratch and from pretrained weights, for the same time",
            "compare", "parts", "--models", settings.model, "--weights", settings.weights,
            "--strategies", f"scratch,{settings.strategy}", "--seeds", 1,
            "--image-size", settings.image_size, "--budget", settings.budget_per_run,
            "--no-bench", "-o", "comparison",
        )  # fmt: skip
        config = CompareConfig(
            self._folder / "comparison",
            (settings.model,),
            ("scratch", settings.strategy),
            1,
            (settings.image_size,),
            budget_s=parse_duration(settings.budget_per_run),
            bench=False,
        )
        recipe = FinetuneConfig(self._data.absolute(), weights=settings.weights)
        with self._progress.open_compare() as progress:
            experiment = compare(config, recipe, progress)
        for run in experiment.failed_runs:
            raise RunError(f"{run.name} failed: {run.failed}")
        for run in experiment.runs:
            self._progress.on_text(
                f"{run.strategy:<8} {run.val_accuracy:.1%} after {pluralize(len(run.epochs), 'epoch')}"
            )
        pretrained = next(run for run in experiment.runs if run.strategy == settings.strategy)
        return experiment, pretrained

    def _export(self, run: RunDirectory, relative_path: Path) -> None:
        self._progress.on_step(
            4, "Export to ONNX, verified against PyTorch, and quantize to int8",
            "export", relative_path, "--variants", self._settings.variants, "--search", "quick",
        )  # fmt: skip
        variants = tuple(self._settings.variants.split(","))
        with self._progress.open_export() as progress:
            export_run(run, ExportConfig(variants=variants, search="quick"), progress)

    def _verify(self, run: RunDirectory, relative_path: Path) -> None:
        self._progress.on_step(
            5, "Verify the bundle with this machine's ONNX Runtime", "verify", relative_path
        )
        with self._progress.open_verify() as progress:
            results = verify(run, progress=progress)
        self._progress.on_verified(results)
        if not all(result.passed for result in results):
            raise BundleError(
                "The bundle failed verification on this machine, see the table above."
            )

    def _bench(self, run: RunDirectory, relative_path: Path) -> BenchResult:
        rounds = self._settings.rounds
        self._progress.on_step(
            6, "Benchmark against PyTorch",
            "bench", relative_path, "--scope", "model", "--rounds", rounds,
        )  # fmt: skip
        config = BenchConfig(run.path, scopes=("model",), rounds=rounds)
        with self._progress.open_bench() as progress:
            return bench(config, progress, QUICK_PROTOCOL)

    def _write_pages(self, experiment: Experiment, run: RunDirectory) -> None:
        comparison, model = (self._folder / page for page in PAGES)
        shutil.copy(ExperimentDirectory(experiment.folder).report, comparison)
        record, results = read_run_record(run.path), read_run_results(run)
        write_page(model, partial(render_run_report, record, results))
        readme = _README_TEMPLATE.substitute(
            run=run.path.relative_to(self._folder),
            model=self._settings.model,
            weights=self._settings.weights,
        )
        write_text(self._folder / "README.md", readme)

    def _summarize(
        self, experiment: Experiment, run: StrategyRun, result: BenchResult
    ) -> tuple[TextTable, ...]:
        scratch, pretrained = (
            next(row for row in experiment.rows if row.first_run.strategy == name)
            for name in ("scratch", self._settings.strategy)
        )
        bundle = read_bundle_record(RunDirectory(experiment.folder / run.folder).bundle)
        return (
            accuracy_gain_table(experiment, scratch, pretrained),
            latency_gain_table(bundle, result, run.val_accuracy),
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
    edgetl finetune parts --model $model --weights $weights -o runs/mine     train longer
    edgetl verify $run                                     check the bundle, also on another machine
    edgetl bench $run                                      benchmark all scopes
    edgetl report $run                                     write the report again

To use your own photos, put them into parts/train/CLASS and parts/val/CLASS, and run the same
commands.
""")

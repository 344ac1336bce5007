"""Files of a run directory: config.json before training, metrics and predictions after it."""

from __future__ import annotations

import platform
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import edgetl
from edgetl.core.artifacts.measured_choices import AutoChoices
from edgetl.core.artifacts.run import PredictionRecord, write_predictions
from edgetl.core.artifacts.run_config import RunConfiguration, WeightsInfo, read_run_configuration
from edgetl.core.artifacts.run_metrics import (
    FeatureReport,
    FinalModel,
    HeldOutMetrics,
    ParameterCounts,
    RunMetrics,
    TrainMetrics,
)
from edgetl.core.artifacts.split import SplitEntry, write_split
from edgetl.core.files import sha256_file
from edgetl.core.paths import RunDirectory
from edgetl.core.statistics import class_scores, macro_f1, wilson_interval
from edgetl.device.hardware.info import peak_memory_bytes
from edgetl.train.data.loader import ImageDataset, ImageLoader
from edgetl.train.data.splits import write_rejected
from edgetl.train.engine.evaluation import Evaluation, evaluate
from edgetl.train.engine.phases import TrainablePhase
from edgetl.train.engine.trainer import Trainer
from edgetl.train.features.partition import wrap_channels_last
from edgetl.train.plots import Explainer, draw_plots
from edgetl.train.setup import RunSetup

_TEST_BATCH_SIZE = 64
PACKAGES = ("torch", "torchvision", "albumentations", "numpy", "pillow", "safetensors")


def package_versions(*more: str) -> dict[str, str | None]:
    """Return the versions of edgetl, Python, the training packages and `more`; None if missing."""
    return {
        "edgetl": edgetl.__version__,
        "python": platform.python_version(),
        **{name: _version(name) for name in (*PACKAGES, *more)},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def compute_metrics(evaluation: Evaluation, labels: Sequence[str]) -> HeldOutMetrics:
    """Return the metrics of an evaluation; top-5 accuracy above 5 classes."""
    confusion = evaluation.confusion_matrix()
    return HeldOutMetrics(
        images=len(evaluation.targets),
        accuracy=evaluation.accuracy,
        interval=wilson_interval(evaluation.correct_count, len(evaluation.targets)),
        top5_accuracy=evaluation.top_k_accuracy(5) if len(labels) > 5 else None,
        loss=evaluation.loss,
        calibration_error=evaluation.calibration_error,
        macro_f1=macro_f1(confusion),
        per_class=dict(zip(labels, class_scores(confusion), strict=True)),
    )


def make_predictions(
    data: Path, entries: Sequence[SplitEntry], evaluation: Evaluation, labels: Sequence[str]
) -> list[PredictionRecord]:
    """Return the lines of predictions.csv, with paths as in split.csv."""
    predicted_classes, targets = evaluation.predictions.tolist(), evaluation.targets.tolist()
    return [
        PredictionRecord(
            path=entry.path.relative_to(data).as_posix(),
            label=entry.label,
            predicted=labels[predicted],
            probability=float(probabilities[predicted]),
            label_probability=float(probabilities[target]),
        )
        for entry, probabilities, predicted, target in zip(
            entries, evaluation.probabilities, predicted_classes, targets, strict=True
        )
    ]


def write_run_config(setup: RunSetup) -> None:
    """Write config.json, split.csv and rejected.csv."""
    RunConfiguration(
        config=setup.config,
        requested_config=replace(setup.requested_config, data=setup.data.folder),
        classes=tuple(setup.data.labels),
        preprocessing=setup.preprocessing,
        versions=package_versions(),
        data=setup.data.summarize(),
        weights=_weights_info(setup),
        code=setup.code,
        batch=setup.batch_fit,
        choices=setup.choices.current,
    ).write(setup.run)
    write_split(setup.run, setup.data.folder, setup.data.entries)
    write_rejected(setup.run, setup.data.folder, setup.data.rejected)


def write_choices(run: RunDirectory, choices: AutoChoices) -> None:
    """Update the automatic choices in config.json.

    Raises:
        RunError: the file is missing or damaged.
        OSError: the file cannot be written.
    """
    replace(read_run_configuration(run), choices=choices).write(run)


def write_results(
    setup: RunSetup,
    trainer: Trainer,
    last_phase: TrainablePhase,
    features_report: FeatureReport,
    start: float,
) -> None:
    """Write predictions, metrics.json and plots for the best weights; remove the checkpoint.

    All processes evaluate, and the main process writes.

    Args:
        setup: the run.
        trainer: trainer with the best weights loaded.
        last_phase: the phase whose forward function returns logits.
        features_report: report on the frozen blocks and their cache.
        start: start of the run, on the clock of time.perf_counter.
    """
    evaluation_start = time.perf_counter()
    model, processes = setup.adapted_model.model.eval(), setup.processes
    train = evaluate(
        last_phase.forward, last_phase.batch_source.iter_train_eval_batches(), processes
    )
    val = trainer.validate(last_phase)
    test = _evaluate_test_images(setup)
    if not processes.is_main:
        return
    trainer.add_seconds("evaluation", time.perf_counter() - evaluation_start)
    assert trainer.best is not None
    folder, classes = setup.data.folder, tuple(setup.data.labels)
    entries = setup.data.entries_in("val")
    if val is not None:
        predictions = make_predictions(folder, entries, val, classes)
        write_predictions(setup.run.predictions, predictions)
    if test is not None:
        predictions = make_predictions(folder, setup.data.entries_in("test"), test, classes)
        write_predictions(setup.run.test_predictions, predictions)
    RunMetrics(
        model=setup.config.model,
        classes=classes,
        train=TrainMetrics(len(train.targets), train.accuracy),
        val=None if val is None else compute_metrics(val, classes),
        test=None if test is None else compute_metrics(test, classes),
        seconds={"total": time.perf_counter() - start, **trainer.seconds},
        parameters=ParameterCounts(
            sum(parameter.numel() for parameter in model.parameters()),
            trainer.trainable_parameters,
        ),
        device=setup.compute_config.device_name,
        processes=processes.world_size,
        precision=last_phase.compute_config.precision,
        weights=_weights_info(setup),
        final=FinalModel(sha256_file(setup.run.weights), classes, setup.preprocessing),
        batch=setup.batch_fit,
        best_epoch=trainer.best.epoch,
        stop_reason=trainer.stop_reason,
        frozen_blocks=features_report,
        steps={f"phase{number}": report for number, report in trainer.step_reports.items()},
        peak_memory_bytes=peak_memory_bytes(),
        peak_gpu_memory_bytes=setup.compute_config.peak_gpu_memory_bytes(),
    ).write(setup.run)
    # Plots come last, so that an error in a plot does not lose the metrics.
    explainer = Explainer(
        setup.adapted_model,
        setup.preprocessing,
        setup.compute_config,
        trainer.context.progress,
    )
    draw_plots(setup.run, trainer.records, trainer.best, val, entries, classes, explainer)
    shutil.rmtree(setup.run.checkpoint.parent, ignore_errors=True)


def _evaluate_test_images(setup: RunSetup) -> Evaluation | None:
    """Evaluate the model on the test images, which nothing before has used.

    All processes call it.
    """
    entries = setup.data.entries_in("test")
    if not entries:
        return None
    compute_config, preprocessing = setup.compute_config, setup.preprocessing
    # They are read once, so they need no place in the cache of decoded images.
    setup.decoded_cache.stop_caching()
    images = ImageDataset(
        entries, setup.data.labels, setup.augmentation, preprocessing, setup.decoded_cache
    )
    pin_memory = compute_config.device.type == "cuda"
    loader = ImageLoader(images, setup.config.workers or 0, pin_memory)
    batches = loader.iter_eval_batches(setup.processes.shard(len(entries)), _TEST_BATCH_SIZE)
    return evaluate(
        wrap_channels_last(setup.adapted_model.model.eval()),
        (
            ((compute_config.to_model_input(pixels, preprocessing),), labels)
            for pixels, labels in batches
        ),
        setup.processes,
    )


def _weights_info(setup: RunSetup) -> WeightsInfo:
    if setup.weights is None:
        return WeightsInfo("none", None)
    return WeightsInfo(setup.weights.source, setup.weights.sha256, setup.weights.license)

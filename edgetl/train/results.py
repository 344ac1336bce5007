"""Files of a run directory: config.json before training, metrics and predictions after it."""

from __future__ import annotations

import platform
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import edgetl
from edgetl.core.artifacts.measured_choices import AutoChoices
from edgetl.core.errors import RunError
from edgetl.core.files import read_json, sha256_file, write_csv, write_json
from edgetl.core.paths import RunDirectory
from edgetl.core.statistics import class_scores, macro_f1, wilson_interval
from edgetl.device.hardware.info import peak_memory_bytes
from edgetl.train.data.splits import SplitEntry, write_rejected, write_split
from edgetl.train.engine.evaluation import Evaluation, evaluate
from edgetl.train.engine.phase_builder import TrainablePhase
from edgetl.train.engine.trainer import Trainer
from edgetl.train.model.final_model import final_model
from edgetl.train.plots import draw_plots
from edgetl.train.setup import RunSetup

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


def train_metrics(train: Evaluation) -> dict[str, Any]:
    """Return the metrics on the training images, without augmentation, with the final weights."""
    return {"images": len(train.targets), "accuracy": train.accuracy}


def val_metrics(val: Evaluation | None, labels: Sequence[str]) -> dict[str, Any] | None:
    """Return the metrics on the validation images; None without validation.

    Accuracy with its 95% interval, top-5 accuracy above 5 classes, loss, calibration error,
    macro-F1 and scores per class.
    """
    if val is None:
        return None
    confusion = val.confusion_matrix()
    scores = class_scores(confusion)
    return {
        "images": len(val.targets),
        "accuracy": val.accuracy,
        "accuracy_ci95": list(wilson_interval(val.correct_count, len(val.targets))),
        "top5_accuracy": val.top_k_accuracy(5) if len(labels) > 5 else None,
        "loss": val.loss,
        "calibration_error": val.calibration_error,
        "macro_f1": macro_f1(confusion),
        "per_class": {label: asdict(score) for label, score in zip(labels, scores, strict=True)},
    }


def write_predictions(
    run: RunDirectory,
    data: Path,
    entries: Sequence[SplitEntry],
    val: Evaluation,
    labels: Sequence[str],
) -> None:
    """Write predictions.csv.

    Columns: path as in split.csv, label, predicted class, its probability, the label's probability.
    """
    table = [
        (
            entry.path.relative_to(data).as_posix(),
            entry.label,
            labels[predicted],
            f"{float(probabilities[predicted]):.6f}",
            f"{float(probabilities[target]):.6f}",
        )
        for entry, probabilities, predicted, target in zip(
            entries, val.probabilities, val.predictions.tolist(), val.targets.tolist(), strict=True
        )
    ]
    write_csv(
        run.predictions, ("path", "label", "predicted", "probability", "label_probability"), table
    )


def write_run_config(setup: RunSetup) -> None:
    """Write config.json, split.csv and rejected.csv."""
    write_json(
        setup.run.config,
        {
            "config": setup.config.to_json(),
            "asked": {**setup.requested_config.to_json(), "data": str(setup.data.folder)},
            "classes": setup.data.labels,
            "preprocessing": setup.preprocessing.to_json(),
            "versions": package_versions(),
            "data": setup.data.to_json(),
            "weights": _weights(setup),
            "batch": setup.batch_fit.to_json() if setup.batch_fit else None,
            "choices": setup.choices.current.to_json(),
        },
    )
    write_split(setup.run, setup.data.folder, setup.data.entries)
    write_rejected(setup.run, setup.data.folder, setup.data.rejected)


def write_choices(run: RunDirectory, choices: AutoChoices) -> None:
    """Update the automatic choices in config.json.

    Raises:
        RunError: the file is missing or damaged.
        OSError: the file cannot be written.
    """
    content = read_json(run.config, RunError, "The run's config.json")
    write_json(run.config, {**content, "choices": choices.to_json()})


def write_results(
    setup: RunSetup,
    trainer: Trainer,
    last_phase: TrainablePhase,
    features_report: dict[str, Any],
    start: float,
) -> None:
    """Write predictions.csv, metrics.json and plots for the best weights; remove the checkpoint.

    All processes evaluate, and the main process writes.

    Args:
        setup: the run.
        trainer: trainer with the best weights loaded.
        last_phase: the phase whose forward function returns logits.
        features_report: report on the feature cache, for `frozen_blocks`.
        start: start of the run, on the clock of time.perf_counter.
    """
    evaluation_start = time.perf_counter()
    model = trainer.adapted_model.model.eval()
    train = evaluate(
        last_phase.forward, last_phase.batch_source.iter_train_eval_batches(), trainer.processes
    )
    val = trainer.evaluate(last_phase)
    if not trainer.processes.is_main:
        return
    trainer.seconds["evaluation"] = time.perf_counter() - evaluation_start
    assert trainer.best is not None
    if val is not None:
        write_predictions(
            setup.run,
            setup.data.folder,
            setup.data.entries_in("val"),
            val,
            setup.data.labels,
        )
    write_json(
        setup.run.metrics,
        {
            "model": setup.config.model,
            "classes": setup.data.labels,
            "train": train_metrics(train),
            "val": val_metrics(val, setup.data.labels),
            "seconds": {"total": time.perf_counter() - start, **trainer.seconds},
            "parameters": {
                "total": sum(parameter.numel() for parameter in model.parameters()),
                "trainable": trainer.trainable_parameters,
            },
            "device": setup.compute_config.device_name,
            "processes": trainer.processes.world_size,
            "precision": last_phase.compute_config.precision,
            "weights": _weights(setup),
            "final": final_model(
                sha256_file(setup.run.weights), setup.data.labels, setup.preprocessing
            ),
            "batch": setup.batch_fit.to_json() if setup.batch_fit else None,
            "best_epoch": trainer.best.epoch,
            "ended": trainer.stop_reason,
            "frozen_blocks": features_report,
            "steps": {
                f"phase{number}": report.to_json()
                for number, report in trainer.step_reports.items()
            },
            "peak_memory_bytes": peak_memory_bytes(),
            "peak_gpu_memory_bytes": setup.compute_config.peak_gpu_memory_bytes(),
        },
    )
    # Plots come last, so that an error in a plot does not lose the metrics.
    draw_plots(
        setup.run,
        trainer.records,
        trainer.best,
        val,
        setup.data.entries_in("val"),
        setup.data.labels,
    )
    shutil.rmtree(setup.run.checkpoint.parent, ignore_errors=True)


def _weights(setup: RunSetup) -> dict[str, str | None]:
    if setup.weights is None:
        return {"source": "none", "sha256": None}
    return {"source": setup.weights.source, "sha256": setup.weights.sha256}

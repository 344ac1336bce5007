"""What a run directory says of a run: before it trains, and when it has."""

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
    """Of edgetl, Python, the training packages and `more`; None for what is not installed."""
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
    """Accuracy on the training images, without augmentation, with the final weights."""
    return {"images": len(train.targets), "accuracy": train.accuracy}


def val_metrics(val: Evaluation | None, labels: Sequence[str]) -> dict[str, Any] | None:
    """Accuracy with its 95% interval, top-5 above 5 classes, macro-F1, calibration error and every class; None without validation."""
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
    rows: Sequence[SplitEntry],
    val: Evaluation,
    labels: Sequence[str],
) -> None:
    """Write predictions.csv: path as in split.csv, label, predicted class, its probability, and the label's."""
    probabilities = val.probabilities
    table = [
        (
            row.path.relative_to(data).as_posix(),
            row.label,
            labels[predicted],
            f"{float(own[predicted]):.6f}",
            f"{float(own[target]):.6f}",
        )
        for row, own, predicted, target in zip(
            rows, probabilities, val.predictions.tolist(), val.targets.tolist(), strict=True
        )
    ]
    write_csv(
        run.predictions, ("path", "label", "predicted", "probability", "label_probability"), table
    )


def write_run_config(prepared: RunSetup) -> None:
    """config.json, split.csv and rejected.csv."""
    write_json(
        prepared.run.config,
        {
            "config": prepared.config.to_json(),
            "asked": {**prepared.requested_config.to_json(), "data": str(prepared.data.folder)},
            "classes": prepared.data.labels,
            "preprocessing": prepared.preprocessing.to_json(),
            "versions": package_versions(),
            "data": prepared.data.to_json(),
            "weights": _weights(prepared),
            "batch": prepared.batch_fit.to_json() if prepared.batch_fit else None,
            "choices": prepared.choices.current.to_json(),
        },
    )
    write_split(prepared.run, prepared.data.folder, prepared.data.entries)
    write_rejected(prepared.run, prepared.data.folder, prepared.data.rejected)


def write_choices(run: RunDirectory, choices: AutoChoices) -> None:
    """Put what was decided since into config.json.

    Raises:
        RunError: the file is gone or damaged.
        OSError: there is no room.
    """
    content = read_json(run.config, RunError, "The run's config.json")
    write_json(run.config, {**content, "choices": choices.to_json()})


def write_results(
    prepared: RunSetup,
    training: Trainer,
    last: TrainablePhase,
    frozen_blocks: dict[str, Any],
    started: float,
) -> None:
    """predictions.csv, metrics.json and the plots, of the best epoch's weights; the checkpoint is removed.

    Where several processes train, all evaluate and the first writes.

    Args:
        last: the stage whose values lead to logits.
        frozen_blocks: how their values were computed.
        started: on the clock of time.perf_counter.
    """
    evaluating = time.perf_counter()
    network = training.adapted_model.model.eval()
    train = evaluate(last.forward, last.batch_source.iter_train_eval_batches(), training.processes)
    val = training.evaluate(last)
    if not training.processes.is_main:
        return
    training.seconds["evaluation"] = time.perf_counter() - evaluating
    assert training.best is not None
    if val is not None:
        write_predictions(
            prepared.run,
            prepared.data.folder,
            prepared.data.entries_in("val"),
            val,
            prepared.data.labels,
        )
    write_json(
        prepared.run.metrics,
        {
            "model": prepared.config.model,
            "classes": prepared.data.labels,
            "train": train_metrics(train),
            "val": val_metrics(val, prepared.data.labels),
            "seconds": {"total": time.perf_counter() - started, **training.seconds},
            "parameters": {
                "total": sum(parameter.numel() for parameter in network.parameters()),
                "trainable": training.trainable_parameters,
            },
            "device": prepared.compute_config.device_name,
            "processes": training.processes.world_size,
            "precision": last.compute_config.precision,
            "weights": _weights(prepared),
            "final": final_model(
                sha256_file(prepared.run.weights), prepared.data.labels, prepared.preprocessing
            ),
            "batch": prepared.batch_fit.to_json() if prepared.batch_fit else None,
            "best_epoch": training.best.epoch,
            "ended": training.stop_reason,
            "frozen_blocks": frozen_blocks,
            "steps": {
                f"phase{number}": report.to_json()
                for number, report in training.step_reports.items()
            },
            "peak_memory_bytes": peak_memory_bytes(),
            "peak_gpu_memory_bytes": prepared.compute_config.peak_gpu_memory_bytes(),
        },
    )
    # Pictures come last: nothing that can go wrong with a picture may cost the figures.
    draw_plots(
        prepared.run,
        training.records,
        training.best,
        val,
        prepared.data.entries_in("val"),
        prepared.data.labels,
    )
    shutil.rmtree(prepared.run.checkpoint.parent, ignore_errors=True)


def _weights(prepared: RunSetup) -> dict[str, str | None]:
    known = prepared.weights
    return {"source": known.source if known else "none", "sha256": known.sha256 if known else None}

"""Reading a run directory: its configuration, epochs, figures and answers, finished or not."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgetl.core.errors import RunError
from edgetl.core.files import read_csv, read_json
from edgetl.core.layout import RunDirectory
from edgetl.core.statistics import ClassScore

_BROKEN = (KeyError, TypeError, ValueError, AttributeError)


@dataclass(frozen=True)
class Epoch:
    """A line of history.jsonl."""

    phase: int
    epoch: int
    train_loss: float
    train_accuracy: float
    val_loss: float | None
    val_accuracy: float | None
    lr: float
    seconds: float
    elapsed: float | None
    """Seconds since the run's start; None in runs that did not record it."""


@dataclass(frozen=True)
class Answer:
    """A line of predictions.csv: one validation image."""

    path: str
    label: str
    predicted: str
    probability: float
    label_probability: float


@dataclass(frozen=True)
class Validation:
    """How well the kept weights do on the validation images."""

    images: int
    accuracy: float
    interval: tuple[float, float]
    top5_accuracy: float | None
    calibration_error: float | None
    macro_f1: float
    per_class: Mapping[str, ClassScore]


@dataclass(frozen=True)
class Metrics:
    """metrics.json: there once a run has finished."""

    train_images: int
    train_accuracy: float
    validation: Validation | None
    seconds: Mapping[str, float]
    """`total`, and what it went to."""
    parameters: int
    trained: int
    """Parameters that the last phase trained."""
    device: str
    precision: str
    best_epoch: int
    ended: str | None
    peak_memory_bytes: int | None
    peak_gpu_memory_bytes: int | None
    content: Mapping[str, Any]
    """As it stands in the file."""

    @property
    def gap(self) -> float | None:
        """Training accuracy less validation accuracy."""
        return None if self.validation is None else self.train_accuracy - self.validation.accuracy


@dataclass(frozen=True)
class TrainedRun:
    """What a run directory tells; what it does not hold is None or empty."""

    directory: RunDirectory
    config: Mapping[str, Any]
    classes: list[str]
    preprocessing: Mapping[str, Any]
    versions: Mapping[str, Any]
    data: Mapping[str, Any]
    """Counts, fingerprint, warnings."""
    weights: Mapping[str, Any]
    """Source and SHA-256 of the pretrained weights."""
    metrics: Metrics | None
    history: tuple[Epoch, ...]
    answers: tuple[Answer, ...] | None
    rejected: tuple[tuple[str, str], ...]
    """Path and reason."""

    @property
    def model(self) -> str:
        """The architecture."""
        return str(self.config["model"])

    @property
    def kept(self) -> Epoch | None:
        """The epoch whose weights are kept: the best so far where the run has not finished."""
        if self.metrics is not None:
            return next((epoch for epoch in self.history if epoch.epoch == self.metrics.best_epoch), None)
        validated = [epoch for epoch in self.history if epoch.val_accuracy is not None]
        if not validated:
            return self.history[-1] if self.history else None
        return min(validated, key=lambda epoch: (-(epoch.val_accuracy or 0.0), epoch.val_loss or 0.0))

    @property
    def mistakes(self) -> list[Answer]:
        """The wrong answers, the surest first."""
        wrong = (answer for answer in self.answers or () if answer.predicted != answer.label)
        return sorted(wrong, key=lambda answer: -answer.probability)

    @property
    def confusion(self) -> list[list[int]] | None:
        """Counts [true][predicted] of the validation images; None without predictions.csv."""
        if not self.answers:
            return None
        counts = Counter((answer.label, answer.predicted) for answer in self.answers)
        return [[counts[true, predicted] for predicted in self.classes] for true in self.classes]

    def to_json(self) -> dict[str, Any]:
        """Its configuration, figures and epochs; the answers, which may be many, are in predictions.csv."""
        return {
            "path": str(self.directory.path),
            "finished": self.metrics is not None,
            "config": self.config,
            "classes": self.classes,
            "data": self.data,
            "kept_epoch": None if self.kept is None else self.kept.epoch,
            "epochs": [asdict(epoch) for epoch in self.history],
            "metrics": None if self.metrics is None else self.metrics.content,
            "gap": None if self.metrics is None else self.metrics.gap,
        }


def read_run(path: Path) -> TrainedRun:
    """The run directory at `path`, as far as it has come.

    Raises:
        RunError: it is no run directory, or one of its files is broken or of another schema.
    """
    run = RunDirectory(path)
    content = read_json(run.config, RunError, "The run's configuration")
    try:
        json.dumps(content, allow_nan=False)
        data = content["data"]
        counts = {part: {str(label): int(count) for label, count in labels.items()} for part, labels in data["counts"].items()}
        told: dict[str, Any] = {
            "config": {"model": content["config"]["model"], **content["config"]},
            "classes": [str(name) for name in content["classes"]],
            "preprocessing": dict(content["preprocessing"]),
            "versions": dict(content["versions"]),
            "data": {**data, "counts": counts, "warnings": [str(text) for text in data.get("warnings", [])]},
            "weights": dict(content["weights"]),
        }
    except _BROKEN as cause:
        raise _broken(run.config, cause) from cause
    return TrainedRun(
        directory=run, **told, metrics=_metrics(run), history=_history(run), answers=_answers(run), rejected=_rejected(run.rejected)
    )


def _metrics(run: RunDirectory) -> Metrics | None:
    if not run.metrics.exists():
        return None
    content = read_json(run.metrics, RunError, "The run's metrics")
    try:
        json.dumps(content, allow_nan=False)
        val, parameters = content["val"], content["parameters"]
        return Metrics(
            train_images=int(content["train"]["images"]),
            train_accuracy=_finite(content["train"]["accuracy"]),
            validation=None if val is None else _validation(val),
            seconds={"total": _finite(content["seconds"]["total"])} | {name: _finite(value) for name, value in content["seconds"].items()},
            parameters=int(parameters["total"]),
            trained=int(parameters["trainable"]),
            device=str(content["device"]),
            precision=str(content["precision"]),
            best_epoch=int(content["best_epoch"]),
            ended=content.get("ended"),
            peak_memory_bytes=content.get("peak_memory_bytes"),
            peak_gpu_memory_bytes=content.get("peak_gpu_memory_bytes"),
            content=content,
        )
    except _BROKEN as cause:
        raise _broken(run.metrics, cause) from cause


def _validation(val: Mapping[str, Any]) -> Validation:
    low, high = val["accuracy_ci95"]
    scores = {
        str(label): ClassScore(int(score["images"]), *(_finite(score[name]) for name in ("precision", "recall", "f1")))
        for label, score in val["per_class"].items()
    }
    return Validation(
        images=int(val["images"]),
        accuracy=_finite(val["accuracy"]),
        interval=(_finite(low), _finite(high)),
        top5_accuracy=_maybe(val.get("top5_accuracy")),
        calibration_error=_maybe(val.get("calibration_error")),
        macro_f1=_finite(val["macro_f1"]),
        per_class=scores,
    )


def _history(run: RunDirectory) -> tuple[Epoch, ...]:
    try:
        lines = run.history.read_text(encoding="utf-8").splitlines() if run.history.exists() else []
        # A run that is being trained may be in the middle of its last line.
        whole = [line for line in lines if line.strip().endswith("}")]
        return tuple(_epoch(json.loads(line)) for line in whole)
    except (OSError, *_BROKEN) as cause:
        raise _broken(run.history, cause) from cause


def _epoch(line: Mapping[str, Any]) -> Epoch:
    figures = {name: _finite(line[name]) for name in ("train_loss", "train_accuracy", "lr", "seconds")}
    absent: dict[str, Any] = {name: _maybe(line.get(name)) for name in ("val_loss", "val_accuracy", "elapsed")}
    return Epoch(phase=int(line["phase"]), epoch=int(line["epoch"]), **figures, **absent)


def _answers(run: RunDirectory) -> tuple[Answer, ...] | None:
    if not run.predictions.exists():
        return None
    try:
        return tuple(
            Answer(row["path"], row["label"], row["predicted"], _finite(row["probability"]), _finite(row["label_probability"]))
            for row in read_csv(run.predictions)
        )
    except (OSError, *_BROKEN) as cause:
        raise _broken(run.predictions, cause) from cause


def _rejected(path: Path) -> tuple[tuple[str, str], ...]:
    try:
        return tuple((row["path"], row["reason"]) for row in read_csv(path)) if path.exists() else ()
    except (OSError, *_BROKEN) as cause:
        raise _broken(path, cause) from cause


def _finite(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{value} is no figure")
    return number


def _maybe(value: Any) -> float | None:
    return None if value is None else _finite(value)


def _broken(path: Path, cause: BaseException) -> RunError:
    return RunError(f"{path} is broken: {cause!r}. Restore the file, or train again with `edgetl finetune`.")

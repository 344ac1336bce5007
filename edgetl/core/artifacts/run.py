"""Reading a run directory: its configuration, epochs, figures and answers, finished or not."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgetl.core.artifacts.run_config import read_run_configuration
from edgetl.core.errors import RunError
from edgetl.core.files import MAX_JSON_BYTES, parse_json, read_csv, read_json, read_regular_file
from edgetl.core.paths import RunDirectory
from edgetl.core.statistics import ClassScore
from edgetl.core.typed_json import parse_as

_BROKEN = (KeyError, ValueError)
_LONGEST_REASON = 200
"""Characters: a broken cell may hold the whole file."""


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
    elapsed: float | None = None
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
            return next(
                (epoch for epoch in self.history if epoch.epoch == self.metrics.best_epoch), None
            )
        validated = [epoch for epoch in self.history if epoch.val_accuracy is not None]
        if not validated:
            return self.history[-1] if self.history else None
        return min(
            validated, key=lambda epoch: (-(epoch.val_accuracy or 0.0), epoch.val_loss or 0.0)
        )

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
    configuration = read_run_configuration(run)
    content = configuration.content
    return TrainedRun(
        directory=run,
        config=content["config"],
        classes=list(configuration.classes),
        preprocessing=content["preprocessing"],
        versions=configuration.versions,
        data={**content["data"], **asdict(configuration.data)},
        weights=content["weights"],
        metrics=_metrics(run, configuration.classes),
        history=_history(run),
        answers=_answers(run),
        rejected=_rejected(run.rejected),
    )


@dataclass(frozen=True)
class _TrainFigures:
    images: int
    accuracy: float


@dataclass(frozen=True)
class _ValFigures:
    images: int
    accuracy: float
    accuracy_ci95: tuple[float, float]
    macro_f1: float
    per_class: dict[str, ClassScore]
    top5_accuracy: float | None = None
    calibration_error: float | None = None


@dataclass(frozen=True)
class _Parameters:
    total: int
    trainable: int


@dataclass(frozen=True)
class _MetricsFile:
    train: _TrainFigures
    val: _ValFigures | None
    seconds: dict[str, float]
    parameters: _Parameters
    device: str
    precision: str
    best_epoch: int
    ended: str | None = None
    peak_memory_bytes: int | None = None
    peak_gpu_memory_bytes: int | None = None


def _metrics(run: RunDirectory, classes: Sequence[str]) -> Metrics | None:
    if not run.metrics.exists():
        return None
    content = read_json(run.metrics, RunError, "The run's metrics")
    try:
        file = parse_as(_MetricsFile, content, "metrics", extra="ignore")
        if "total" not in file.seconds:
            raise ValueError("metrics.seconds has no field 'total'")
        if file.val is not None and file.val.per_class.keys() != set(classes):
            raise ValueError("metrics.val.per_class has other classes than config.json")
    except ValueError as cause:
        raise _broken(run.metrics, cause) from cause
    return Metrics(
        train_images=file.train.images,
        train_accuracy=file.train.accuracy,
        validation=None if file.val is None else _validation(file.val),
        seconds=file.seconds,
        parameters=file.parameters.total,
        trained=file.parameters.trainable,
        device=file.device,
        precision=file.precision,
        best_epoch=file.best_epoch,
        ended=file.ended,
        peak_memory_bytes=file.peak_memory_bytes,
        peak_gpu_memory_bytes=file.peak_gpu_memory_bytes,
        content=content,
    )


def _validation(val: _ValFigures) -> Validation:
    return Validation(
        images=val.images,
        accuracy=val.accuracy,
        interval=val.accuracy_ci95,
        top5_accuracy=val.top5_accuracy,
        calibration_error=val.calibration_error,
        macro_f1=val.macro_f1,
        per_class=val.per_class,
    )


def _history(run: RunDirectory) -> tuple[Epoch, ...]:
    try:
        text = (
            read_regular_file(run.history, MAX_JSON_BYTES).decode() if run.history.exists() else ""
        )
        # A run that is being trained may be in the middle of its last line.
        whole = [line for line in text.splitlines() if line.strip().endswith("}")]
        return tuple(
            parse_as(Epoch, parse_json(line), f"line {number}", extra="ignore")
            for number, line in enumerate(whole, 1)
        )
    except (OSError, ValueError) as cause:
        raise _broken(run.history, cause) from cause


def _answers(run: RunDirectory) -> tuple[Answer, ...] | None:
    if not run.predictions.exists():
        return None
    try:
        return tuple(
            Answer(
                row["path"],
                row["label"],
                row["predicted"],
                _finite(row["probability"]),
                _finite(row["label_probability"]),
            )
            for row in read_csv(run.predictions)
        )
    except (OSError, *_BROKEN) as cause:
        raise _broken(run.predictions, cause) from cause


def _rejected(path: Path) -> tuple[tuple[str, str], ...]:
    try:
        return (
            tuple((row["path"], row["reason"]) for row in read_csv(path)) if path.exists() else ()
        )
    except (OSError, *_BROKEN) as cause:
        raise _broken(path, cause) from cause


def _finite(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{value} is no figure")
    return number


def _broken(path: Path, cause: BaseException) -> RunError:
    return RunError(
        f"{path} is broken: {_reason(cause)}. Restore the file, or train again with `edgetl finetune`."
    )


def _reason(cause: BaseException) -> str:
    reason = f"it has no column {cause}" if isinstance(cause, KeyError) else str(cause)
    return reason if len(reason) <= _LONGEST_REASON else f"{reason[:_LONGEST_REASON]}..."

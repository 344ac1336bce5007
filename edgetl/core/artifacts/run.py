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

_PARSE_ERRORS = (KeyError, ValueError)
_MAX_REASON_LENGTH = 200
"""Characters: a broken cell may hold the whole file."""


@dataclass(frozen=True)
class HistoryEpoch:
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
class PredictionRecord:
    """A line of predictions.csv: one validation image."""

    path: str
    label: str
    predicted: str
    probability: float
    label_probability: float


@dataclass(frozen=True)
class ValidationMetrics:
    """How well the kept weights do on the validation images."""

    images: int
    accuracy: float
    accuracy_interval: tuple[float, float]
    top5_accuracy: float | None
    calibration_error: float | None
    macro_f1: float
    per_class: Mapping[str, ClassScore]


@dataclass(frozen=True)
class RunMetrics:
    """metrics.json: there once a run has finished."""

    train_images: int
    train_accuracy: float
    validation: ValidationMetrics | None
    seconds: Mapping[str, float]
    """`total`, and what it went to."""
    total_parameters: int
    trainable_parameters: int
    """Parameters that the last phase trained."""
    device: str
    precision: str
    best_epoch: int
    stop_reason: str | None
    peak_memory_bytes: int | None
    peak_gpu_memory_bytes: int | None
    content: Mapping[str, Any]
    """As it stands in the file."""

    @property
    def gap(self) -> float | None:
        """Training accuracy less validation accuracy."""
        return None if self.validation is None else self.train_accuracy - self.validation.accuracy


@dataclass(frozen=True)
class RunRecord:
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
    metrics: RunMetrics | None
    history: tuple[HistoryEpoch, ...]
    predictions: tuple[PredictionRecord, ...] | None
    rejected_files: tuple[tuple[str, str], ...]
    """Path and reason."""

    @property
    def model(self) -> str:
        """The architecture."""
        return str(self.config["model"])

    @property
    def best_epoch(self) -> HistoryEpoch | None:
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
    def mistakes(self) -> list[PredictionRecord]:
        """The wrong answers, the surest first."""
        wrong = (answer for answer in self.predictions or () if answer.predicted != answer.label)
        return sorted(wrong, key=lambda answer: -answer.probability)

    @property
    def confusion(self) -> list[list[int]] | None:
        """Counts [true][predicted] of the validation images; None without predictions.csv."""
        if not self.predictions:
            return None
        counts = Counter((answer.label, answer.predicted) for answer in self.predictions)
        return [[counts[true, predicted] for predicted in self.classes] for true in self.classes]

    def to_json(self) -> dict[str, Any]:
        """Its configuration, figures and epochs; the answers, which may be many, are in predictions.csv."""
        return {
            "path": str(self.directory.path),
            "finished": self.metrics is not None,
            "config": self.config,
            "classes": self.classes,
            "data": self.data,
            "kept_epoch": None if self.best_epoch is None else self.best_epoch.epoch,
            "epochs": [asdict(epoch) for epoch in self.history],
            "metrics": None if self.metrics is None else self.metrics.content,
            "gap": None if self.metrics is None else self.metrics.gap,
        }


def read_run_record(path: Path) -> RunRecord:
    """The run directory at `path`, as far as it has come.

    Raises:
        RunError: it is no run directory, or one of its files is broken or of another schema.
    """
    run = RunDirectory(path)
    configuration = read_run_configuration(run)
    content = configuration.content
    return RunRecord(
        directory=run,
        config=content["config"],
        classes=list(configuration.classes),
        preprocessing=content["preprocessing"],
        versions=configuration.versions,
        data={**content["data"], **asdict(configuration.data)},
        weights=content["weights"],
        metrics=_read_metrics(run, configuration.classes),
        history=_read_history(run),
        predictions=_read_predictions(run),
        rejected_files=_read_rejected_files(run.rejected_files),
    )


@dataclass(frozen=True)
class _TrainMetrics:
    images: int
    accuracy: float


@dataclass(frozen=True)
class _ValMetrics:
    images: int
    accuracy: float
    accuracy_ci95: tuple[float, float]
    macro_f1: float
    per_class: dict[str, ClassScore]
    top5_accuracy: float | None = None
    calibration_error: float | None = None


@dataclass(frozen=True)
class _ParameterCounts:
    total: int
    trainable: int


@dataclass(frozen=True)
class _MetricsFile:
    train: _TrainMetrics
    val: _ValMetrics | None
    seconds: dict[str, float]
    parameters: _ParameterCounts
    device: str
    precision: str
    best_epoch: int
    ended: str | None = None
    peak_memory_bytes: int | None = None
    peak_gpu_memory_bytes: int | None = None


def _read_metrics(run: RunDirectory, classes: Sequence[str]) -> RunMetrics | None:
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
        raise _broken_file_error(run.metrics, cause) from cause
    return RunMetrics(
        train_images=file.train.images,
        train_accuracy=file.train.accuracy,
        validation=None if file.val is None else _to_validation_metrics(file.val),
        seconds=file.seconds,
        total_parameters=file.parameters.total,
        trainable_parameters=file.parameters.trainable,
        device=file.device,
        precision=file.precision,
        best_epoch=file.best_epoch,
        stop_reason=file.ended,
        peak_memory_bytes=file.peak_memory_bytes,
        peak_gpu_memory_bytes=file.peak_gpu_memory_bytes,
        content=content,
    )


def _to_validation_metrics(val: _ValMetrics) -> ValidationMetrics:
    return ValidationMetrics(
        images=val.images,
        accuracy=val.accuracy,
        accuracy_interval=val.accuracy_ci95,
        top5_accuracy=val.top5_accuracy,
        calibration_error=val.calibration_error,
        macro_f1=val.macro_f1,
        per_class=val.per_class,
    )


def _read_history(run: RunDirectory) -> tuple[HistoryEpoch, ...]:
    try:
        text = (
            read_regular_file(run.history, MAX_JSON_BYTES).decode() if run.history.exists() else ""
        )
        # A run that is being trained may be in the middle of its last line.
        whole = [line for line in text.splitlines() if line.strip().endswith("}")]
        return tuple(
            parse_as(HistoryEpoch, parse_json(line), f"line {number}", extra="ignore")
            for number, line in enumerate(whole, 1)
        )
    except (OSError, ValueError) as cause:
        raise _broken_file_error(run.history, cause) from cause


def _read_predictions(run: RunDirectory) -> tuple[PredictionRecord, ...] | None:
    if not run.predictions.exists():
        return None
    try:
        return tuple(
            PredictionRecord(
                row["path"],
                row["label"],
                row["predicted"],
                _parse_finite(row["probability"]),
                _parse_finite(row["label_probability"]),
            )
            for row in read_csv(run.predictions)
        )
    except (OSError, *_PARSE_ERRORS) as cause:
        raise _broken_file_error(run.predictions, cause) from cause


def _read_rejected_files(path: Path) -> tuple[tuple[str, str], ...]:
    try:
        return (
            tuple((row["path"], row["reason"]) for row in read_csv(path)) if path.exists() else ()
        )
    except (OSError, *_PARSE_ERRORS) as cause:
        raise _broken_file_error(path, cause) from cause


def _parse_finite(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{value} is no figure")
    return number


def _broken_file_error(path: Path, cause: BaseException) -> RunError:
    return RunError(
        f"{path} is broken: {_short_reason(cause)}. Restore the file, or train again with `edgetl finetune`."
    )


def _short_reason(cause: BaseException) -> str:
    reason = f"it has no column {cause}" if isinstance(cause, KeyError) else str(cause)
    return reason if len(reason) <= _MAX_REASON_LENGTH else f"{reason[:_MAX_REASON_LENGTH]}..."

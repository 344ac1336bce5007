"""Content of a run directory, finished or not: configuration, epochs, metrics and predictions."""

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
"""Maximum characters of a reason in a message, since a broken cell may contain the whole file."""


@dataclass(frozen=True)
class EpochRecord:
    """Metrics of one epoch: a line of history.jsonl."""

    phase: int
    """1 trains the new head, 2 the head and the last blocks."""
    epoch: int
    """Epoch, counted from 1 over both phases."""
    train_loss: float
    """Mean loss over the epoch, on augmented images, while the weights change."""
    train_accuracy: float
    """Training accuracy over the epoch, on augmented images."""
    val_loss: float | None
    """Validation loss after the epoch; None without validation images."""
    val_accuracy: float | None
    """Validation accuracy after the epoch; None without validation images."""
    lr: float
    seconds: float
    """Time of training and validation."""
    images_per_second: float
    """Training throughput, without validation."""
    elapsed: float | None = None
    """Seconds from the start of the run to the end of this epoch, with reading and caching.

    None in runs of older versions.
    """

    def is_better_than(self, best: EpochRecord | None) -> bool:
        """Return whether this epoch is better than the best one before it.

        Higher validation accuracy is better, then lower validation loss; without validation images,
        the later epoch.
        """
        if best is None or self.val_accuracy is None or best.val_accuracy is None:
            return True
        if self.val_accuracy != best.val_accuracy:
            return self.val_accuracy > best.val_accuracy
        return (self.val_loss or 0.0) < (best.val_loss or 0.0)


@dataclass(frozen=True)
class PredictionRecord:
    """Prediction for one validation image: a line of predictions.csv."""

    path: str
    label: str
    predicted: str
    probability: float
    label_probability: float


@dataclass(frozen=True)
class ValidationMetrics:
    """Metrics of the best weights on the validation images."""

    images: int
    accuracy: float
    accuracy_interval: tuple[float, float]
    top5_accuracy: float | None
    calibration_error: float | None
    macro_f1: float
    per_class: Mapping[str, ClassScore]


@dataclass(frozen=True)
class RunMetrics:
    """Content of metrics.json, which exists once a run has finished."""

    train_images: int
    train_accuracy: float
    validation: ValidationMetrics | None
    seconds: Mapping[str, float]
    """Duration `total` and its parts."""
    total_parameters: int
    trainable_parameters: int
    """Trainable parameters in the last phase."""
    device: str
    precision: str
    best_epoch: int
    stop_reason: str | None
    peak_memory_bytes: int | None
    peak_gpu_memory_bytes: int | None
    content: Mapping[str, Any]
    """Raw content of the file."""

    @property
    def gap(self) -> float | None:
        """Generalization gap: training minus validation accuracy."""
        return None if self.validation is None else self.train_accuracy - self.validation.accuracy


@dataclass(frozen=True)
class RunRecord:
    """Content of a run directory; missing parts are None or empty."""

    directory: RunDirectory
    config: Mapping[str, Any]
    classes: list[str]
    preprocessing: Mapping[str, Any]
    versions: Mapping[str, Any]
    data: Mapping[str, Any]
    """Counts, fingerprint and warnings of the data set."""
    weights: Mapping[str, Any]
    """Source and SHA-256 of the pretrained weights."""
    metrics: RunMetrics | None
    history: tuple[EpochRecord, ...]
    predictions: tuple[PredictionRecord, ...] | None
    rejected_files: tuple[tuple[str, str], ...]
    """Path and reason."""

    @property
    def model(self) -> str:
        """Name of the architecture."""
        return str(self.config["model"])

    @property
    def best_epoch(self) -> EpochRecord | None:
        """The epoch with the best weights; the best so far if the run has not finished."""
        if self.metrics is not None:
            return next(
                (epoch for epoch in self.history if epoch.epoch == self.metrics.best_epoch), None
            )
        best = None
        for epoch in self.history:
            if epoch.is_better_than(best):
                best = epoch
        return best

    @property
    def mistakes(self) -> list[PredictionRecord]:
        """Wrong predictions, the most confident first."""
        mistakes = (record for record in self.predictions or () if record.predicted != record.label)
        return sorted(mistakes, key=lambda record: -record.probability)

    @property
    def confusion(self) -> list[list[int]] | None:
        """Counts [true][predicted] of the validation images; None without predictions.csv."""
        if not self.predictions:
            return None
        counts = Counter((record.label, record.predicted) for record in self.predictions)
        return [[counts[true, predicted] for predicted in self.classes] for true in self.classes]

    def to_json(self) -> dict[str, Any]:
        """Return configuration, epochs and metrics; predictions stay in predictions.csv."""
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
    """Read the run directory at `path`, finished or not.

    Raises:
        RunError: It is not a run directory, or a file is broken or of another schema.
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
            raise ValueError("metrics.val.per_class does not match the classes of config.json")
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


def _read_history(run: RunDirectory) -> tuple[EpochRecord, ...]:
    try:
        if not run.history.exists():
            return ()
        text = read_regular_file(run.history, MAX_JSON_BYTES).decode()
        # The last line may be incomplete while the run is training.
        lines = [line for line in text.splitlines() if line.strip().endswith("}")]
        return tuple(
            parse_as(EpochRecord, parse_json(line), f"line {number}", extra="ignore")
            for number, line in enumerate(lines, 1)
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
        if not path.exists():
            return ()
        return tuple((row["path"], row["reason"]) for row in read_csv(path))
    except (OSError, *_PARSE_ERRORS) as cause:
        raise _broken_file_error(path, cause) from cause


def _parse_finite(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{value} is not a finite number")
    return number


def _broken_file_error(path: Path, cause: BaseException) -> RunError:
    return RunError(
        f"{path} is broken: {_short_reason(cause)}. "
        "Restore the file, or train again with `edgetl finetune`."
    )


def _short_reason(cause: BaseException) -> str:
    reason = f"it has no column {cause}" if isinstance(cause, KeyError) else str(cause)
    if len(reason) <= _MAX_REASON_LENGTH:
        return reason
    return f"{reason[:_MAX_REASON_LENGTH]}..."

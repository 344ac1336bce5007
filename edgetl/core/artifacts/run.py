"""Content of a run directory, finished or not: configuration, epochs, metrics and predictions."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from edgetl.core.artifacts.run_config import (
    RunConfiguration,
    broken_file_error,
    read_run_configuration,
)
from edgetl.core.artifacts.run_metrics import RunMetrics, read_metrics
from edgetl.core.files import (
    MAX_JSON_BYTES,
    SCHEMA,
    parse_json,
    read_csv,
    read_regular_file,
    write_csv,
    write_text,
)
from edgetl.core.paths import RunDirectory
from edgetl.core.typed_json import JsonObject, parse_as, to_json

_PARSE_ERRORS = (KeyError, ValueError)


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
    """Prediction for one validation or test image: a line of predictions.csv."""

    path: str
    label: str
    predicted: str
    probability: float
    label_probability: float


@dataclass(frozen=True)
class RunRecord:
    """Content of a run directory; missing parts are None or empty."""

    directory: RunDirectory
    configuration: RunConfiguration
    metrics: RunMetrics | None
    """None if the run has not finished."""
    history: tuple[EpochRecord, ...]
    predictions: tuple[PredictionRecord, ...] | None
    test_predictions: tuple[PredictionRecord, ...] | None
    rejected_files: tuple[tuple[str, str], ...]
    """Path and reason."""

    @property
    def model(self) -> str:
        """Name of the architecture."""
        return self.configuration.config.model

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the logits."""
        return self.configuration.classes

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
        return self._count_confusions(self.predictions)

    @property
    def test_confusion(self) -> list[list[int]] | None:
        """Counts [true][predicted] of the test images; None without test_predictions.csv."""
        return self._count_confusions(self.test_predictions)

    def _count_confusions(
        self, predictions: Sequence[PredictionRecord] | None
    ) -> list[list[int]] | None:
        if not predictions:
            return None
        counts = Counter((record.label, record.predicted) for record in predictions)
        return [[counts[true, predicted] for predicted in self.classes] for true in self.classes]

    def to_json(self) -> JsonObject:
        """Return configuration, epochs and metrics; predictions stay in predictions.csv."""
        configuration, metrics = self.configuration, self.metrics
        return {
            "path": str(self.directory.path),
            "finished": metrics is not None,
            "config": configuration.config.to_json(),
            "classes": list(configuration.classes),
            "data": to_json(configuration.data),
            "kept_epoch": None if self.best_epoch is None else self.best_epoch.epoch,
            "epochs": [to_json(epoch) for epoch in self.history],
            "metrics": None if metrics is None else {"schema": SCHEMA, **to_json(metrics)},
            "gap": None if metrics is None else metrics.gap,
        }


def read_run_record(path: Path) -> RunRecord:
    """Read the run directory at `path`, finished or not.

    Raises:
        RunError: It is not a run directory, or a file is broken or of another schema.
    """
    run = RunDirectory(path)
    configuration = read_run_configuration(run)
    metrics = read_metrics(run) if run.metrics.exists() else None
    if metrics is not None and set(metrics.classes) != set(configuration.classes):
        raise broken_file_error(run.metrics, ValueError("classes do not match config.json"))
    return RunRecord(
        directory=run,
        configuration=configuration,
        metrics=metrics,
        history=read_history(run),
        predictions=_read_predictions(run.predictions, configuration.classes),
        test_predictions=_read_predictions(run.test_predictions, configuration.classes),
        rejected_files=_read_rejected_files(run.rejected_files),
    )


def read_history(run: RunDirectory) -> tuple[EpochRecord, ...]:
    """Read history.jsonl; empty before the first epoch has ended.

    Raises:
        RunError: The file is broken.
    """
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
        raise broken_file_error(run.history, cause) from cause


def append_epoch(run: RunDirectory, record: EpochRecord) -> None:
    """Append a line to history.jsonl."""
    with run.history.open("a", encoding="utf-8") as stream:
        stream.write(_to_line(record))


def write_history(run: RunDirectory, records: Sequence[EpochRecord]) -> None:
    """Write history.jsonl anew."""
    write_text(run.history, "".join(map(_to_line, records)))


def _to_line(record: EpochRecord) -> str:
    return json.dumps(to_json(record)) + "\n"


def write_predictions(path: Path, predictions: Sequence[PredictionRecord]) -> None:
    """Write predictions.csv or test_predictions.csv, in the order of split.csv."""
    rows = [
        (
            record.path,
            record.label,
            record.predicted,
            f"{record.probability:.6f}",
            f"{record.label_probability:.6f}",
        )
        for record in predictions
    ]
    write_csv(path, [field.name for field in fields(PredictionRecord)], rows)


def _read_predictions(path: Path, classes: Sequence[str]) -> tuple[PredictionRecord, ...] | None:
    if not path.exists():
        return None
    try:
        predictions = tuple(
            PredictionRecord(
                row["path"],
                row["label"],
                row["predicted"],
                _parse_finite(row["probability"]),
                _parse_finite(row["label_probability"]),
            )
            for row in read_csv(path)
        )
        labels = {label for record in predictions for label in (record.label, record.predicted)}
        if unknown := sorted(labels - set(classes)):
            raise ValueError(f"the class {unknown[0]} is not listed in config.json")
    except (OSError, *_PARSE_ERRORS) as cause:
        raise broken_file_error(path, cause) from cause
    return predictions


def _read_rejected_files(path: Path) -> tuple[tuple[str, str], ...]:
    try:
        if not path.exists():
            return ()
        return tuple((row["path"], row["reason"]) for row in read_csv(path))
    except (OSError, *_PARSE_ERRORS) as cause:
        raise broken_file_error(path, cause) from cause


def _parse_finite(value: str) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{value} is not a finite number")
    return number

"""Runs of an experiment: metrics of each run, and their summary over the seeds of a strategy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from statistics import fmean, median

from edgetl.core.artifacts.run import EpochRecord, PredictionRecord, RunRecord
from edgetl.core.statistics import wilson_interval
from edgetl.core.typed_json import in_json


@dataclass(frozen=True)
class StrategyEpoch:
    """Time and accuracies of one epoch, from its `EpochRecord`."""

    phase: int
    elapsed: float
    train_accuracy: float
    val_accuracy: float


@dataclass(frozen=True)
class StrategyRun:
    """One training run: a strategy with a seed."""

    name: str
    row: str
    architecture: str
    image_size: int
    strategy: str
    seed: int
    folder: str
    """The run directory, relative to the experiment's folder."""
    failed: str | None = None
    """Reason why the run failed; the fields below are then empty."""
    seconds: float = 0.0
    """Duration from reading the images to the metrics, without imports and plots."""
    train_images: int = 0
    train_accuracy: float = 0.0
    """Accuracy of the best weights on the training images, without augmentation."""
    macro_f1: float = 0.0
    best_epoch: int = 0
    trainable: int = 0
    """Trainable parameters in the phase that trained the most."""
    parameters: int = 0
    peak_memory_bytes: int | None = None
    """Peak memory of the training process."""
    peak_gpu_memory_bytes: int | None = None
    device: str = ""
    """Training device: `cpu` or the name of the GPU."""
    precision: str = ""
    weights: str = ""
    """Source of the initial weights."""
    epochs: tuple[StrategyEpoch, ...] = ()
    correct: str = ""
    """Predictions on the validation images in the order of split.csv: 1 is correct, 0 wrong."""
    test_correct: str = field(default="", metadata=in_json(omit_default=True))
    """The same for the test images, if there are any."""
    confusion: tuple[tuple[int, ...], ...] = ()
    """Confusion matrix: counts of validation images [true][predicted]."""

    def with_results(self, record: RunRecord) -> StrategyRun:
        """Return this run with the results of its run directory.

        Raises:
            ValueError: The run has not finished, or lacks validation, predictions or times.
        """
        metrics, confusion = record.metrics, record.confusion
        if metrics is None or metrics.val is None or confusion is None or not record.history:
            raise ValueError("metrics, epochs or predictions are missing")
        return replace(
            self,
            seconds=metrics.seconds["total"],
            train_images=metrics.train.images,
            train_accuracy=metrics.train.accuracy,
            macro_f1=metrics.val.macro_f1,
            best_epoch=metrics.best_epoch,
            trainable=metrics.parameters.trainable,
            parameters=metrics.parameters.total,
            peak_memory_bytes=metrics.peak_memory_bytes,
            peak_gpu_memory_bytes=metrics.peak_gpu_memory_bytes,
            device=metrics.device,
            precision=metrics.precision,
            weights=metrics.weights.source,
            epochs=tuple(_summarize_epoch(epoch) for epoch in record.history),
            correct=_mark_correct(record.predictions),
            test_correct=_mark_correct(record.test_predictions),
            confusion=tuple(map(tuple, confusion)),
        )

    @cached_property
    def correct_mask(self) -> list[bool]:
        """Whether each validation image was classified correctly."""
        return [digit == "1" for digit in self.correct]

    @property
    def val_accuracy(self) -> float:
        """Validation accuracy of the best weights."""
        return sum(self.correct_mask) / len(self.correct_mask)

    @property
    def test_accuracy(self) -> float | None:
        """Test accuracy of the best weights; None without test images."""
        if not self.test_correct:
            return None
        return self.test_correct.count("1") / len(self.test_correct)

    @property
    def images_per_second(self) -> float:
        """Training images of all epochs divided by the duration of the whole run."""
        return self.train_images * len(self.epochs) / self.seconds

    def seconds_to_accuracy(self, accuracy: float) -> float | None:
        """Return the time of the first epoch with this validation accuracy, or None."""
        return next(
            (epoch.elapsed for epoch in self.epochs if epoch.val_accuracy >= accuracy), None
        )

    def best_accuracy_within(self, seconds: float) -> float | None:
        """Return the best validation accuracy within this time; None before the first epoch."""
        return max(
            (epoch.val_accuracy for epoch in self.epochs if epoch.elapsed <= seconds), default=None
        )


def _mark_correct(predictions: Sequence[PredictionRecord] | None) -> str:
    return "".join("1" if item.label == item.predicted else "0" for item in predictions or ())


def _summarize_epoch(epoch: EpochRecord) -> StrategyEpoch:
    if epoch.elapsed is None or epoch.val_accuracy is None:
        raise ValueError(f"epoch {epoch.epoch} has no time or no validation accuracy")
    return StrategyEpoch(epoch.phase, epoch.elapsed, epoch.train_accuracy, epoch.val_accuracy)


def _mean_interval(accuracy: float, images: int) -> tuple[float, float]:
    low, high = wilson_interval(round(accuracy * images), images)
    return min(low, accuracy), max(high, accuracy)


@dataclass(frozen=True)
class StrategyResult:
    """Summary of a network trained by one strategy, over all finished seeds."""

    name: str
    runs: tuple[StrategyRun, ...]

    @property
    def first_run(self) -> StrategyRun:
        """The run with the lowest seed, for properties that all runs share."""
        return self.runs[0]

    @property
    def best_run(self) -> StrategyRun:
        """The run with the highest validation accuracy."""
        return max(self.runs, key=lambda run: run.val_accuracy)

    @property
    def network(self) -> str:
        """Architecture and image size."""
        return f"{self.first_run.architecture}-{self.first_run.image_size}"

    @property
    def val_accuracy(self) -> float:
        """Mean validation accuracy over seeds."""
        return fmean(run.val_accuracy for run in self.runs)

    @property
    def val_range(self) -> tuple[float, float]:
        """Lowest and highest validation accuracy of the seeds."""
        accuracies = [run.val_accuracy for run in self.runs]
        return min(accuracies), max(accuracies)

    @property
    def ci95(self) -> tuple[float, float]:
        """95% interval of the mean validation accuracy over similar images (Wilson, 1927).

        It accounts neither for the variation between seeds nor for the best epoch being selected on
        the same images.
        """
        return _mean_interval(self.val_accuracy, len(self.first_run.correct_mask))

    @property
    def test_accuracy(self) -> float | None:
        """Mean test accuracy over seeds; None unless all runs have test images."""
        accuracies = [run.test_accuracy for run in self.runs if run.test_accuracy is not None]
        return fmean(accuracies) if len(accuracies) == len(self.runs) else None

    @property
    def test_interval(self) -> tuple[float, float] | None:
        """95% interval of the mean test accuracy; it does not account for the seeds."""
        accuracy = self.test_accuracy
        if accuracy is None:
            return None
        return _mean_interval(accuracy, len(self.first_run.test_correct))

    @property
    def train_accuracy(self) -> float:
        """Mean training accuracy over seeds."""
        return fmean(run.train_accuracy for run in self.runs)

    @property
    def gap(self) -> float:
        """Generalization gap: training minus validation accuracy."""
        return self.train_accuracy - self.val_accuracy

    @property
    def seconds(self) -> float:
        """Median duration over seeds."""
        return median(run.seconds for run in self.runs)

    def seconds_to_accuracy(self, accuracy: float) -> float | None:
        """Return the median time to an accuracy over seeds, or None if the median is not reached.

        Seeds that do not reach the accuracy count as slowest.
        """
        times = [run.seconds_to_accuracy(accuracy) for run in self.runs]
        middle = median(math.inf if time is None else time for time in times)
        return None if math.isinf(middle) else middle

    def mean_accuracy_within(self, seconds: float) -> float | None:
        """Return the mean best accuracy within this time; None before a seed's first epoch."""
        accuracies = [run.best_accuracy_within(seconds) for run in self.runs]
        reached = [accuracy for accuracy in accuracies if accuracy is not None]
        return fmean(reached) if len(reached) == len(accuracies) else None

"""Trained runs as figures: each one's own, and those of a strategy over all seeds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean, median

from edgetl.core.statistics import wilson_interval


@dataclass(frozen=True)
class StrategyEpoch:
    """A point of a run's course."""

    phase: int
    elapsed: float
    """Seconds from the run's start, everything included."""
    train_accuracy: float
    """On augmented images, while the weights moved."""
    val_accuracy: float


@dataclass(frozen=True)
class StrategyRun:
    """One trained network: a strategy with a seed."""

    name: str
    row: str
    architecture: str
    image_size: int
    strategy: str
    seed: int
    folder: str
    """The run directory, relative to the experiment's folder."""
    failed: str | None = None
    """Why it came to nothing; then everything below is empty."""
    seconds: float = 0.0
    """The run from reading the images to its figures; imports before and pictures after it are not in it."""
    train_images: int = 0
    train_accuracy: float = 0.0
    """Without augmentation, with the weights that were kept."""
    macro_f1: float = 0.0
    best_epoch: int = 0
    trainable: int = 0
    """Parameters of the phase that trained most."""
    parameters: int = 0
    peak_memory_bytes: int | None = None
    """Of the training process."""
    peak_gpu_memory_bytes: int | None = None
    device: str = ""
    """What trained it: `cpu`, or the GPU's name."""
    precision: str = ""
    weights: str = ""
    """What training began from."""
    epochs: tuple[StrategyEpoch, ...] = ()
    correct: str = ""
    """1 or 0 for each validation image, in the order of split.csv."""
    confusion: tuple[tuple[int, ...], ...] = ()
    """Validation images [true][predicted]."""

    @cached_property
    def correct_mask(self) -> list[bool]:
        """For each validation image, whether it was answered rightly."""
        return [mark == "1" for mark in self.correct]

    @property
    def val_accuracy(self) -> float:
        """Share of validation images answered rightly by the weights that were kept."""
        return sum(self.correct_mask) / len(self.correct_mask)

    @property
    def images_per_second(self) -> float:
        """Training images of all epochs over the whole run's time: what it took, not what a step can do."""
        return self.train_images * len(self.epochs) / self.seconds

    def seconds_to_accuracy(self, accuracy: float) -> float | None:
        """When an epoch ended that reached this validation accuracy; None where none did."""
        return next(
            (epoch.elapsed for epoch in self.epochs if epoch.val_accuracy >= accuracy), None
        )

    def best_accuracy_within(self, seconds: float) -> float | None:
        """Best validation accuracy of the epochs that had ended by then; None before the first."""
        return max(
            (epoch.val_accuracy for epoch in self.epochs if epoch.elapsed <= seconds), default=None
        )


@dataclass(frozen=True)
class StrategyResult:
    """A network trained by one strategy, over all seeds that ended."""

    name: str
    runs: tuple[StrategyRun, ...]

    @property
    def first_run(self) -> StrategyRun:
        """Of the lowest seed: for what is the same in all."""
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
        """Mean over seeds."""
        return fmean(run.val_accuracy for run in self.runs)

    @property
    def val_range(self) -> tuple[float, float]:
        """Lowest and highest of the seeds."""
        return min(run.val_accuracy for run in self.runs), max(
            run.val_accuracy for run in self.runs
        )

    @property
    def ci95(self) -> tuple[float, float]:
        """95% interval of the mean for other images of the same kind (Wilson, 1927).

        Neither other seeds' chance is in it, nor that the epoch that was kept was chosen on these images.
        """
        images = len(self.first_run.correct_mask)
        low, high = wilson_interval(round(self.val_accuracy * images), images)
        return min(low, self.val_accuracy), max(high, self.val_accuracy)

    @property
    def train_accuracy(self) -> float:
        """Mean over seeds."""
        return fmean(run.train_accuracy for run in self.runs)

    @property
    def gap(self) -> float:
        """Overfitting: training minus validation accuracy."""
        return self.train_accuracy - self.val_accuracy

    @property
    def seconds(self) -> float:
        """Median over seeds."""
        return median(run.seconds for run in self.runs)

    def seconds_to_accuracy(self, accuracy: float) -> float | None:
        """Median over seeds, those that did not reach it counted as slowest; None where that is not reached."""
        found = median(
            math.inf if (seconds := run.seconds_to_accuracy(accuracy)) is None else seconds
            for run in self.runs
        )
        return None if math.isinf(found) else found

    def mean_accuracy_within(self, seconds: float) -> float | None:
        """Mean of what the seeds had reached; None before the first epoch of one of them."""
        found = [run.best_accuracy_within(seconds) for run in self.runs]
        return None if None in found else fmean(value for value in found if value is not None)

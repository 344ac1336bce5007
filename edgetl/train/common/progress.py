"""Progress reports of a training run, displayed by the command line."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class EpochRecord:
    """One line of history.jsonl."""

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
    elapsed: float
    """Seconds from the start of the run to the end of this epoch, with reading and caching."""

    def to_json(self) -> dict[str, Any]:
        """Return the record as written to history.jsonl."""
        return asdict(self)


@dataclass(frozen=True)
class StepProgress:
    """Progress within an epoch."""

    phase: int
    epoch: int
    epochs: int
    """Number of epochs in both phases."""
    images: int
    """Training images processed in this epoch."""
    images_total: int
    """Training images per epoch."""
    loss: float
    """Mean loss over the epoch so far."""
    accuracy: float
    """Training accuracy over the epoch so far."""
    images_per_second: float


class Progress(Protocol):
    """Receiver of progress reports, called from the training thread."""

    def note(self, text: str) -> None:
        """Report information."""

    def warn(self, text: str) -> None:
        """Report a problem that needs attention."""

    def on_files_checked(self, done: int, total: int) -> None:
        """Report the number of image files checked so far."""

    def on_features_computed(self, done: int, total: int) -> None:
        """Report the number of views passed through the frozen blocks so far."""

    def on_step_end(self, step: StepProgress) -> None:
        """Report a training step; some steps are skipped, the last of an epoch never."""

    def on_epoch_end(self, record: EpochRecord, best: bool) -> None:
        """Report the end of an epoch; `best` if its weights are the best so far."""


class NullProgress:
    """Progress that ignores all reports."""

    def note(self, text: str) -> None:
        """Do nothing."""

    def warn(self, text: str) -> None:
        """Do nothing."""

    def on_files_checked(self, done: int, total: int) -> None:
        """Do nothing."""

    def on_features_computed(self, done: int, total: int) -> None:
        """Do nothing."""

    def on_step_end(self, step: StepProgress) -> None:
        """Do nothing."""

    def on_epoch_end(self, record: EpochRecord, best: bool) -> None:
        """Do nothing."""

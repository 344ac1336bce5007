"""What a long job tells its caller while it runs; the command line draws it, a library caller may ignore it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class EpochRecord:
    """One line of history.jsonl."""

    phase: int
    """1: the new head; 2: the head and the last blocks."""
    epoch: int
    """From 1, over both phases."""
    train_loss: float
    """Mean over the epoch, on augmented images, while the weights moved."""
    train_accuracy: float
    """As train_loss."""
    val_loss: float | None
    """After the epoch; None without validation images."""
    val_accuracy: float | None
    """As val_loss."""
    lr: float
    seconds: float
    """Training and validation."""
    images_per_second: float
    """Training images per second of training."""
    elapsed: float
    """Seconds from the start of the run to the end of this epoch, reading and frozen blocks included."""

    def to_json(self) -> dict[str, Any]:
        """As it stands in history.jsonl."""
        return asdict(self)


@dataclass(frozen=True)
class StepProgress:
    """How far an epoch has come."""

    phase: int
    epoch: int
    epochs: int
    """Of both phases together."""
    images: int
    """Seen in this epoch."""
    images_total: int
    """In an epoch."""
    loss: float
    """Mean of the epoch so far."""
    accuracy: float
    """As loss."""
    images_per_second: float


class Progress(Protocol):
    """Called from the thread that trains."""

    def note(self, text: str) -> None:
        """Something worth knowing."""

    def warn(self, text: str) -> None:
        """Something that the user should look at."""

    def on_files_checked(self, done: int, total: int) -> None:
        """Image files checked so far."""

    def on_features_computed(self, done: int, total: int) -> None:
        """Views put through the frozen blocks so far."""

    def on_step_end(self, step: StepProgress) -> None:
        """A batch was trained; not every one is told, the last of an epoch is."""

    def on_epoch_end(self, record: EpochRecord, best: bool) -> None:
        """An epoch ended; `best` says whether its weights were kept."""


class NullProgress:
    """Progress that nobody watches."""

    def note(self, text: str) -> None:
        """Ignore it."""

    def warn(self, text: str) -> None:
        """Ignore it."""

    def on_files_checked(self, done: int, total: int) -> None:
        """Ignore it."""

    def on_features_computed(self, done: int, total: int) -> None:
        """Ignore it."""

    def on_step_end(self, step: StepProgress) -> None:
        """Ignore it."""

    def on_epoch_end(self, record: EpochRecord, best: bool) -> None:
        """Ignore it."""

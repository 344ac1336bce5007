"""Progress of long operations: callbacks, and the log for callers that pass none."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from edgetl.core.artifacts.run import EpochRecord

ProgressCallback = Callable[[str, int, int], None]
"""Called with (step, done, total); done and total are 0 where nothing is counted."""

LOGGER = logging.getLogger("edgetl")
"""Receives the notes and warnings of callers that pass no progress object."""


def log_progress(step: str, done: int, total: int) -> None:
    """Log a step: the callback of callers that pass none. Counts are logged for debugging only."""
    if total:
        LOGGER.debug("%s (%d of %d)", step, done, total)
    else:
        LOGGER.info("%s", step)


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


class TrainingProgress:
    """Receiver of the progress of a training run, called from the training thread.

    Subclasses override the methods of interest. By default notes and warnings are logged, and
    everything else is ignored.
    """

    def note(self, text: str) -> None:
        """Receive information."""
        LOGGER.info("%s", text)

    def warn(self, text: str) -> None:
        """Receive a problem that needs attention."""
        LOGGER.warning("%s", text)

    def on_progress(self, step: str, done: int, total: int) -> None:
        """Receive the progress of a step before training, as a `ProgressCallback`."""

    def on_step_end(self, step: StepProgress) -> None:
        """Receive a training step; some steps are skipped, the last of an epoch never."""

    def on_epoch_end(self, record: EpochRecord, best: bool) -> None:
        """Receive the end of an epoch; `best` if its weights are the best so far."""


class NullProgress(TrainingProgress):
    """Progress of the processes that do not report."""

    def note(self, text: str) -> None:
        """Do nothing."""

    def warn(self, text: str) -> None:
        """Do nothing."""

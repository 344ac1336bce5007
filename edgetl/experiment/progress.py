"""Progress of an experiment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from edgetl.core.progress import LOGGER

if TYPE_CHECKING:
    from edgetl.core.artifacts.experiment_runs import StrategyRun
    from edgetl.experiment.matrix import PlannedRun
    from edgetl.experiment.messages import WorkerMessage


class ExperimentProgress:
    """Receiver of an experiment's progress, called from the thread that runs it.

    Subclasses override the methods of interest. The others log notes and warnings to the logger
    `edgetl` and do nothing else.
    """

    def note(self, text: str) -> None:
        """Receive a note for the user."""
        LOGGER.info(text)

    def on_bench_progress(self, step: str, done: int, total: int) -> None:
        """Receive the progress of a latency measurement. Drawing would disturb the measurement."""

    def on_plan(
        self, runs: Sequence[PlannedRun], finished: Sequence[str], seconds: Mapping[str, float]
    ) -> None:
        """Receive all runs, the names of finished runs, and the estimated time by name."""

    def on_run_start(self, run: PlannedRun) -> None:
        """Receive a run whose process is about to start."""

    def on_run_message(self, run: PlannedRun, message: WorkerMessage) -> None:
        """Receive a message of the run's process: a step, epoch, note or warning."""
        if message.warning is not None:
            LOGGER.warning("%s: %s", run.name, message.warning)

    def on_run_end(self, run: PlannedRun, result: StrategyRun) -> None:
        """Receive a run that finished or failed."""

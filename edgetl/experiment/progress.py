"""Progress callbacks of an experiment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from edgetl.core.artifacts.experiment_runs import StrategyRun
from edgetl.experiment.matrix import PlannedRun


class ExperimentProgress(Protocol):
    """Callbacks for the progress of an experiment, called from the thread that runs it."""

    def note(self, text: str) -> None:
        """Report a note for the user."""

    def on_bench_progress(self, done: int, total: int, text: str) -> None:
        """Report the progress of a latency measurement. Drawing would disturb the measurement."""

    def on_plan(
        self, runs: Sequence[PlannedRun], finished: Sequence[str], seconds: Mapping[str, float]
    ) -> None:
        """Report the plan: all runs, the names of finished runs, and the estimated time by name."""

    def on_run_start(self, run: PlannedRun) -> None:
        """Report that the process of a run is about to start."""

    def on_run_message(self, run: PlannedRun, message: Mapping[str, Any]) -> None:
        """Report a message of the run's process: `step`, `epoch`, `note` or `warning`."""

    def on_run_end(self, run: PlannedRun, result: StrategyRun) -> None:
        """Report that a run finished or failed."""


class NullExperimentProgress:
    """Progress callbacks that do nothing."""

    def note(self, text: str) -> None:
        """Do nothing."""

    def on_bench_progress(self, done: int, total: int, text: str) -> None:
        """Do nothing."""

    def on_plan(
        self, runs: Sequence[PlannedRun], finished: Sequence[str], seconds: Mapping[str, float]
    ) -> None:
        """Do nothing."""

    def on_run_start(self, run: PlannedRun) -> None:
        """Do nothing."""

    def on_run_message(self, run: PlannedRun, message: Mapping[str, Any]) -> None:
        """Do nothing."""

    def on_run_end(self, run: PlannedRun, result: StrategyRun) -> None:
        """Do nothing."""

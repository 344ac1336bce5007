"""What an experiment tells its caller while it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from edgetl.core.artifacts.experiment_runs import StrategyRun
from edgetl.experiment.matrix import PlannedRun


class ExperimentProgress(Protocol):
    """Called from the thread that runs the experiment."""

    def note(self, text: str) -> None:
        """Something worth knowing."""

    def on_bench_progress(self, done: int, total: int, text: str) -> None:
        """A measurement of latencies goes on; not to be disturbed by drawing."""

    def on_plan(
        self, runs: Sequence[PlannedRun], finished: Sequence[str], seconds: Mapping[str, float]
    ) -> None:
        """The plan, the names of runs that had ended before, and what each is expected to take."""

    def on_run_start(self, run: PlannedRun) -> None:
        """Its process is about to start."""

    def on_run_message(self, run: PlannedRun, message: Mapping[str, Any]) -> None:
        """A message of its process: `step`, `epoch`, `note` or `warning`."""

    def on_run_end(self, run: PlannedRun, result: StrategyRun) -> None:
        """It ended, or failed."""


class NullExperimentProgress:
    """An experiment that nobody watches."""

    def note(self, text: str) -> None:
        """Ignore it."""

    def on_bench_progress(self, done: int, total: int, text: str) -> None:
        """Ignore it."""

    def on_plan(
        self, runs: Sequence[PlannedRun], finished: Sequence[str], seconds: Mapping[str, float]
    ) -> None:
        """Ignore it."""

    def on_run_start(self, run: PlannedRun) -> None:
        """Ignore it."""

    def on_run_message(self, run: PlannedRun, message: Mapping[str, Any]) -> None:
        """Ignore it."""

    def on_run_end(self, run: PlannedRun, result: StrategyRun) -> None:
        """Ignore it."""

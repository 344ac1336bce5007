"""What an experiment tells its caller while it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from edgetl.core.artifacts.experiment_runs import Run
from edgetl.core.config.compare import PlannedRun


class Watcher(Protocol):
    """Called from the thread that runs the experiment."""

    def note(self, text: str) -> None:
        """Something worth knowing."""

    def measuring(self, done: int, total: int, text: str) -> None:
        """A measurement of latencies goes on; not to be disturbed by drawing."""

    def planned(
        self, runs: Sequence[PlannedRun], finished: Sequence[str], seconds: Mapping[str, float]
    ) -> None:
        """The plan, the names of runs that had ended before, and what each is expected to take."""

    def started(self, run: PlannedRun) -> None:
        """Its process is about to start."""

    def told(self, run: PlannedRun, message: Mapping[str, Any]) -> None:
        """A message of its process: `step`, `epoch`, `note` or `warning`."""

    def ended(self, run: PlannedRun, result: Run) -> None:
        """It ended, or failed."""


class Silent:
    """An experiment that nobody watches."""

    def note(self, text: str) -> None:
        """Ignore it."""

    def measuring(self, done: int, total: int, text: str) -> None:
        """Ignore it."""

    def planned(
        self, runs: Sequence[PlannedRun], finished: Sequence[str], seconds: Mapping[str, float]
    ) -> None:
        """Ignore it."""

    def started(self, run: PlannedRun) -> None:
        """Ignore it."""

    def told(self, run: PlannedRun, message: Mapping[str, Any]) -> None:
        """Ignore it."""

    def ended(self, run: PlannedRun, result: Run) -> None:
        """Ignore it."""

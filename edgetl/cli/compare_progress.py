"""An experiment as it goes on: a live table on a terminal, a line an event elsewhere; always on standard error."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from edgetl.cli.console import err

if TYPE_CHECKING:
    from edgetl.core.artifacts.experiment_runs import StrategyRun
    from edgetl.experiment.matrix import PlannedRun

_REDRAW_INTERVAL_S = 0.5


class PlainExperimentProgress:
    """A line for each run's start and end, and for each note."""

    def __init__(self) -> None:
        self._runs: Sequence[PlannedRun] = ()
        self._expected_seconds: Mapping[str, float] = {}
        self._unfinished: list[str] = []
        self._actual_and_expected_s = [0.0, 0.0]
        self._current_run: tuple[PlannedRun, float] | None = None

    def note(self, text: str) -> None:
        """Print it."""
        err.print(text, markup=False, soft_wrap=True)

    def on_bench_progress(self, done: int, total: int, text: str) -> None:
        """Nothing: what is measured is told by a note."""

    def on_plan(
        self, runs: Sequence[PlannedRun], finished: Sequence[str], seconds: Mapping[str, float]
    ) -> None:
        """Print how many runs there are."""
        self._runs, self._expected_seconds, self._unfinished = (
            runs,
            seconds,
            [run.name for run in runs if run.name not in finished],
        )
        before = f", {len(finished)} of them ended before" if finished else ""
        self.note(f"{len(runs)} runs{before}; {self.describe_time_left()}.")

    def on_run_start(self, run: PlannedRun) -> None:
        """Print its name."""
        self._current_run = run, time.monotonic()
        self.note(
            f"{self._run_number_label(run)} {run.name}: expected to take {_format_duration(self._expected_seconds.get(run.name, 0.0))}"
        )

    def on_run_message(self, run: PlannedRun, message: Mapping[str, Any]) -> None:
        """Print warnings; epochs are in the run's history."""
        if "warning" in message:
            self.note(f"Warning: {run.name}: {message['warning']}")

    def on_run_end(self, run: PlannedRun, result: StrategyRun) -> None:
        """Print what became of it."""
        self._current_run = None
        self._unfinished = [name for name in self._unfinished if name != run.name]
        if result.failed is None:
            self._actual_and_expected_s[0] += result.seconds
            self._actual_and_expected_s[1] += self._expected_seconds.get(run.name, 0.0)
        self.note(
            f"{self._run_number_label(run)} {run.name}: {describe_run_result(result)}; {self.describe_time_left()}"
        )

    def describe_time_left(self) -> str:
        """Of the runs that have not ended, at the pace of those that have."""
        if not self._unfinished:
            return "no runs left"
        pace = (
            self._actual_and_expected_s[0] / self._actual_and_expected_s[1]
            if self._actual_and_expected_s[1]
            else 1.0
        )
        expected = {name: pace * self._expected_seconds.get(name, 0.0) for name in self._unfinished}
        if self._current_run is not None:
            name = self._current_run[0].name
            expected[name] = max(
                0.0, expected.get(name, 0.0) - (time.monotonic() - self._current_run[1])
            )
        return f"about {_format_duration(sum(expected.values()))} of training left"

    def _run_number_label(self, run: PlannedRun) -> str:
        names = [other.name for other in self._runs]
        return f"[{names.index(run.name) + 1}/{len(names)}]"


class LiveExperimentProgress(PlainExperimentProgress):
    """All runs in a table that is drawn anew as they go on."""

    def __init__(self, live: Live) -> None:
        super().__init__()
        self._live, self._run_states, self._last_draw_time = live, {}, 0.0  # type: tuple[Live, dict[str, str], float]
        self._last_note = ""

    def note(self, text: str) -> None:
        """Show it below the table until the next one."""
        self._last_note = text
        self._draw()

    def on_bench_progress(self, done: int, total: int, text: str) -> None:
        """Show it between blocks only: drawing would disturb what is measured."""
        if total:
            self._last_note = f"{text} ({done} of {total})"
            self._draw()

    def on_plan(
        self, runs: Sequence[PlannedRun], finished: Sequence[str], seconds: Mapping[str, float]
    ) -> None:
        """Show the table."""
        self._run_states = dict.fromkeys(finished, "ended before")
        super().on_plan(runs, finished, seconds)

    def on_run_start(self, run: PlannedRun) -> None:
        """Mark it as running."""
        self._current_run = run, time.monotonic()
        self._run_states[run.name] = "starting"
        self._draw()

    def on_run_message(self, run: PlannedRun, message: Mapping[str, Any]) -> None:
        """Show how far it has come."""
        if "warning" in message:
            err.print(
                f"Warning: {run.name}: {message['warning']}",
                style="yellow",
                markup=False,
                soft_wrap=True,
            )
        step, epoch = message.get("step"), message.get("epoch")
        if step is not None:
            self._run_states[run.name] = (
                f"epoch {step['epoch']} of {step['epochs']}, training accuracy {step['accuracy']:.2f}"
            )
        if epoch is not None and epoch["val_accuracy"] is not None:
            self._run_states[run.name] = (
                f"epoch {epoch['epoch']}, validation accuracy {epoch['val_accuracy']:.3f}"
            )
        if time.monotonic() - self._last_draw_time > _REDRAW_INTERVAL_S:
            self._draw()

    def on_run_end(self, run: PlannedRun, result: StrategyRun) -> None:
        """Show what became of it."""
        self._run_states[run.name] = describe_run_result(result)
        super().on_run_end(run, result)

    def _draw(self) -> None:
        self._last_draw_time = time.monotonic()
        table = Table(box=None, pad_edge=False, show_header=False)
        for run in self._visible_runs():
            state = self._run_states.get(run.name)
            is_running = self._current_run is not None and self._current_run[0] is run
            ended = "✗" if (state or "").startswith("failed") else "✓"
            mark, style = (
                ("▶", "bold") if is_running else ("·", "dim") if state is None else (ended, "")
            )
            taken = (
                _format_duration(time.monotonic() - self._current_run[1])
                if is_running and self._current_run
                else ""
            )
            expected = (
                _format_duration(self._expected_seconds[run.name])
                if run.name in self._expected_seconds and run.name in self._unfinished
                else ""
            )
            table.add_row(
                mark,
                run.name,
                Text(state or "waiting"),
                " of about ".join(filter(None, (taken, expected))),
                style=style,
            )
        count = len(self._runs) - len(self._unfinished)
        foot = (
            f"{count} of {len(self._runs)} runs ended, {self.describe_time_left()}"
            if self._runs
            else ""
        )
        self._live.update(
            Group(Text(foot, style="bold"), table, Text(self._last_note, style="dim")), refresh=True
        )

    def _visible_runs(self) -> Sequence[PlannedRun]:
        """As many runs as the screen has lines for, around the one that trains."""
        room = max(3, err.size.height - 5)
        at = next(
            (number for number, run in enumerate(self._runs) if run.name in self._unfinished),
            len(self._runs),
        )
        first = max(0, min(at - room // 3, len(self._runs) - room))
        return self._runs[first : first + room]


@contextmanager
def open_experiment_progress() -> Iterator[PlainExperimentProgress]:
    """The live table where somebody watches, lines where not."""
    if not err.is_terminal:
        yield PlainExperimentProgress()
        return
    with Live(console=err, auto_refresh=False, transient=True) as live:
        yield LiveExperimentProgress(live)


def describe_run_result(result: StrategyRun) -> str:
    """A run's end in a few words."""
    if result.failed is not None:
        return f"failed: {result.failed.splitlines()[0]}"
    return f"validation accuracy {result.val_accuracy:.3f} in {_format_duration(result.seconds)}"


def _format_duration(seconds: float) -> str:
    from edgetl.core.formatting import format_duration

    return format_duration(seconds)

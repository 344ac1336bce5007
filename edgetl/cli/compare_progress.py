"""Progress of an experiment on standard error: a live table on a terminal, log lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from edgetl.cli.console import err
from edgetl.experiment.progress import ExperimentProgress  # noqa: TID253 (a light module)

if TYPE_CHECKING:
    from edgetl.core.artifacts.experiment_runs import StrategyRun
    from edgetl.experiment.matrix import PlannedRun
    from edgetl.experiment.messages import WorkerMessage

_REDRAW_INTERVAL_S = 0.5


class PlainExperimentProgress(ExperimentProgress):
    """Print one line per note and per start and end of a run."""

    def __init__(self) -> None:
        self._runs: Sequence[PlannedRun] = ()
        self._expected_seconds: Mapping[str, float] = {}
        self._unfinished: list[str] = []
        self._actual_and_expected_s = [0.0, 0.0]
        self._current_run: tuple[PlannedRun, float] | None = None

    def note(self, text: str) -> None:
        """Print the note."""
        err.print(text, markup=False, soft_wrap=True)

    def on_plan(
        self, runs: Sequence[PlannedRun], finished: Sequence[str], seconds: Mapping[str, float]
    ) -> None:
        """Print the number of runs and the estimated time."""
        self._runs = runs
        self._expected_seconds = seconds
        self._unfinished = [run.name for run in runs if run.name not in finished]
        already_finished = f", {len(finished)} already finished" if finished else ""
        self.note(f"{len(runs)} runs{already_finished}; {self.describe_time_left()}.")

    def on_run_start(self, run: PlannedRun) -> None:
        """Print the name and the expected time of the run."""
        self._current_run = run, time.monotonic()
        expected = _format_duration(self._expected_seconds.get(run.name, 0.0))
        self.note(f"{self._run_number_label(run)} {run.name}: expected to take {expected}")

    def on_run_message(self, run: PlannedRun, message: WorkerMessage) -> None:
        """Print warnings; the run's history records the epochs."""
        if message.warning is not None:
            self.note(f"Warning: {run.name}: {message.warning}")

    def on_run_end(self, run: PlannedRun, result: StrategyRun) -> None:
        """Print the result of the run and the time left."""
        self._current_run = None
        self._unfinished = [name for name in self._unfinished if name != run.name]
        if result.failed is None:
            self._actual_and_expected_s[0] += result.seconds
            self._actual_and_expected_s[1] += self._expected_seconds.get(run.name, 0.0)
        summary = f"{describe_run_result(result)}; {self.describe_time_left()}"
        self.note(f"{self._run_number_label(run)} {run.name}: {summary}")

    def describe_time_left(self) -> str:
        """Estimate the training time left, scaled by the actual pace of the finished runs."""
        if not self._unfinished:
            return "no runs left"
        actual_s, expected_s = self._actual_and_expected_s
        pace = actual_s / expected_s if expected_s else 1.0
        seconds_left = {
            name: pace * self._expected_seconds.get(name, 0.0) for name in self._unfinished
        }
        if self._current_run is not None:
            run, start_time = self._current_run
            elapsed = time.monotonic() - start_time
            seconds_left[run.name] = max(0.0, seconds_left.get(run.name, 0.0) - elapsed)
        return f"about {_format_duration(sum(seconds_left.values()))} of training left"

    def _run_number_label(self, run: PlannedRun) -> str:
        names = [planned.name for planned in self._runs]
        return f"[{names.index(run.name) + 1}/{len(names)}]"


class LiveExperimentProgress(PlainExperimentProgress):
    """Live table of all runs, redrawn as they progress."""

    def __init__(self, live: Live) -> None:
        super().__init__()
        self._live = live
        self._run_states: dict[str, str] = {}
        self._last_draw_time = 0.0
        self._last_note = ""

    def note(self, text: str) -> None:
        """Show the note below the table until the next one."""
        self._last_note = text
        self._draw()

    def on_bench_progress(self, step: str, done: int, total: int) -> None:
        """Show the progress between blocks only: drawing would disturb the measurement."""
        if total:
            self._last_note = f"{step} ({done} of {total})"
            self._draw()

    def on_plan(
        self, runs: Sequence[PlannedRun], finished: Sequence[str], seconds: Mapping[str, float]
    ) -> None:
        """Show the table."""
        self._run_states = dict.fromkeys(finished, "already finished")
        super().on_plan(runs, finished, seconds)

    def on_run_start(self, run: PlannedRun) -> None:
        """Mark the run as running."""
        self._current_run = run, time.monotonic()
        self._run_states[run.name] = "starting"
        self._draw()

    def on_run_message(self, run: PlannedRun, message: WorkerMessage) -> None:
        """Show the progress of the run; print warnings above the table."""
        if message.warning is not None:
            err.print(
                f"Warning: {run.name}: {message.warning}",
                style="yellow",
                markup=False,
                soft_wrap=True,
            )
        step, epoch = message.step, message.epoch
        if step is not None:
            self._run_states[run.name] = (
                f"epoch {step.epoch} of {step.epochs}, training accuracy {step.accuracy:.2f}"
            )
        if epoch is not None and epoch.val_accuracy is not None:
            self._run_states[run.name] = (
                f"epoch {epoch.epoch}, validation accuracy {epoch.val_accuracy:.3f}"
            )
        if time.monotonic() - self._last_draw_time > _REDRAW_INTERVAL_S:
            self._draw()

    def on_run_end(self, run: PlannedRun, result: StrategyRun) -> None:
        """Show the result of the run."""
        self._run_states[run.name] = describe_run_result(result)
        super().on_run_end(run, result)

    def _draw(self) -> None:
        self._last_draw_time = time.monotonic()
        table = Table(box=None, pad_edge=False, show_header=False)
        for run in self._visible_runs():
            state = self._run_states.get(run.name)
            elapsed = ""
            expected = ""
            if self._current_run is not None and self._current_run[0] is run:
                mark, style = "▶", "bold"
                elapsed = _format_duration(time.monotonic() - self._current_run[1])
            elif state is None:
                mark, style = "·", "dim"
            else:
                mark, style = "✗" if state.startswith("failed") else "✓", ""
            if run.name in self._expected_seconds and run.name in self._unfinished:
                expected = _format_duration(self._expected_seconds[run.name])
            table.add_row(
                mark,
                run.name,
                Text(state or "waiting"),
                " of about ".join(filter(None, (elapsed, expected))),
                style=style,
            )
        heading = ""
        if self._runs:
            finished_count = len(self._runs) - len(self._unfinished)
            heading = f"{finished_count} of {len(self._runs)} runs finished"
            heading += f", {self.describe_time_left()}"
        note = Text(self._last_note, style="dim")
        self._live.update(Group(Text(heading, style="bold"), table, note), refresh=True)

    def _visible_runs(self) -> Sequence[PlannedRun]:
        """Return as many runs as fit on the screen, around the first unfinished one."""
        row_count = max(3, err.size.height - 5)
        current = next(
            (index for index, run in enumerate(self._runs) if run.name in self._unfinished),
            len(self._runs),
        )
        first = max(0, min(current - row_count // 3, len(self._runs) - row_count))
        return self._runs[first : first + row_count]


@contextmanager
def open_experiment_progress() -> Iterator[PlainExperimentProgress]:
    """Yield a live table on a terminal, a plain log elsewhere."""
    if not err.is_terminal:
        yield PlainExperimentProgress()
        return
    with Live(console=err, auto_refresh=False, transient=True) as live:
        yield LiveExperimentProgress(live)


def describe_run_result(result: StrategyRun) -> str:
    """Describe the result of a run in a few words."""
    if result.failed is not None:
        return f"failed: {result.failed.splitlines()[0]}"
    return f"validation accuracy {result.val_accuracy:.3f} in {_format_duration(result.seconds)}"


def _format_duration(seconds: float) -> str:
    from edgetl.core.formatting import format_duration

    return format_duration(seconds)

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
    from edgetl.core.artifacts.experiment_runs import Run
    from edgetl.core.config.compare import PlannedRun

_REDRAWN_EVERY_S = 0.5


class PlainView:
    """A line for each run's start and end, and for each note."""

    def __init__(self) -> None:
        self._runs: Sequence[PlannedRun] = ()
        self._seconds: Mapping[str, float] = {}
        self._left: list[str] = []
        self._pace = [0.0, 0.0]
        self._running: tuple[PlannedRun, float] | None = None

    def note(self, text: str) -> None:
        """Print it."""
        err.print(text, markup=False, soft_wrap=True)

    def measuring(self, done: int, total: int, text: str) -> None:
        """Nothing: what is measured is told by a note."""

    def planned(
        self, runs: Sequence[PlannedRun], finished: Sequence[str], seconds: Mapping[str, float]
    ) -> None:
        """Print how many runs there are."""
        self._runs, self._seconds, self._left = (
            runs,
            seconds,
            [run.name for run in runs if run.name not in finished],
        )
        before = f", {len(finished)} of them ended before" if finished else ""
        self.note(f"{len(runs)} runs{before}; {self.time_left()}.")

    def started(self, run: PlannedRun) -> None:
        """Print its name."""
        self._running = run, time.monotonic()
        self.note(
            f"{self._number(run)} {run.name}: expected to take {_clock(self._seconds.get(run.name, 0.0))}"
        )

    def told(self, run: PlannedRun, message: Mapping[str, Any]) -> None:
        """Print warnings; epochs are in the run's history."""
        if "warning" in message:
            self.note(f"Warning: {run.name}: {message['warning']}")

    def ended(self, run: PlannedRun, result: Run) -> None:
        """Print what became of it."""
        self._running = None
        self._left = [name for name in self._left if name != run.name]
        if result.failed is None:
            self._pace[0] += result.seconds
            self._pace[1] += self._seconds.get(run.name, 0.0)
        self.note(f"{self._number(run)} {run.name}: {outcome(result)}; {self.time_left()}")

    def time_left(self) -> str:
        """Of the runs that have not ended, at the pace of those that have."""
        if not self._left:
            return "no runs left"
        pace = self._pace[0] / self._pace[1] if self._pace[1] else 1.0
        expected = {name: pace * self._seconds.get(name, 0.0) for name in self._left}
        if self._running is not None:
            name = self._running[0].name
            expected[name] = max(
                0.0, expected.get(name, 0.0) - (time.monotonic() - self._running[1])
            )
        return f"about {_clock(sum(expected.values()))} of training left"

    def _number(self, run: PlannedRun) -> str:
        names = [other.name for other in self._runs]
        return f"[{names.index(run.name) + 1}/{len(names)}]"


class LiveView(PlainView):
    """All runs in a table that is drawn anew as they go on."""

    def __init__(self, live: Live) -> None:
        super().__init__()
        self._live, self._state, self._drawn = live, {}, 0.0  # type: tuple[Live, dict[str, str], float]
        self._note = ""

    def note(self, text: str) -> None:
        """Show it below the table until the next one."""
        self._note = text
        self._draw()

    def measuring(self, done: int, total: int, text: str) -> None:
        """Show it between blocks only: drawing would disturb what is measured."""
        if total:
            self._note = f"{text} ({done} of {total})"
            self._draw()

    def planned(
        self, runs: Sequence[PlannedRun], finished: Sequence[str], seconds: Mapping[str, float]
    ) -> None:
        """Show the table."""
        self._state = dict.fromkeys(finished, "ended before")
        super().planned(runs, finished, seconds)

    def started(self, run: PlannedRun) -> None:
        """Mark it as running."""
        self._running = run, time.monotonic()
        self._state[run.name] = "starting"
        self._draw()

    def told(self, run: PlannedRun, message: Mapping[str, Any]) -> None:
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
            self._state[run.name] = (
                f"epoch {step['epoch']} of {step['epochs']}, training accuracy {step['accuracy']:.2f}"
            )
        if epoch is not None and epoch["val_accuracy"] is not None:
            self._state[run.name] = (
                f"epoch {epoch['epoch']}, validation accuracy {epoch['val_accuracy']:.3f}"
            )
        if time.monotonic() - self._drawn > _REDRAWN_EVERY_S:
            self._draw()

    def ended(self, run: PlannedRun, result: Run) -> None:
        """Show what became of it."""
        self._state[run.name] = outcome(result)
        super().ended(run, result)

    def _draw(self) -> None:
        self._drawn = time.monotonic()
        table = Table(box=None, pad_edge=False, show_header=False)
        for run in self._window():
            state = self._state.get(run.name)
            is_running = self._running is not None and self._running[0] is run
            ended = "✗" if (state or "").startswith("failed") else "✓"
            mark, style = (
                ("▶", "bold") if is_running else ("·", "dim") if state is None else (ended, "")
            )
            taken = (
                _clock(time.monotonic() - self._running[1]) if is_running and self._running else ""
            )
            expected = (
                _clock(self._seconds[run.name])
                if run.name in self._seconds and run.name in self._left
                else ""
            )
            table.add_row(
                mark,
                run.name,
                Text(state or "waiting"),
                " of about ".join(filter(None, (taken, expected))),
                style=style,
            )
        count = len(self._runs) - len(self._left)
        foot = f"{count} of {len(self._runs)} runs ended, {self.time_left()}" if self._runs else ""
        self._live.update(
            Group(Text(foot, style="bold"), table, Text(self._note, style="dim")), refresh=True
        )

    def _window(self) -> Sequence[PlannedRun]:
        """As many runs as the screen has lines for, around the one that trains."""
        room = max(3, err.size.height - 5)
        at = next(
            (number for number, run in enumerate(self._runs) if run.name in self._left),
            len(self._runs),
        )
        first = max(0, min(at - room // 3, len(self._runs) - room))
        return self._runs[first : first + room]


@contextmanager
def watching() -> Iterator[PlainView]:
    """The live table where somebody watches, lines where not."""
    if not err.is_terminal:
        yield PlainView()
        return
    with Live(console=err, auto_refresh=False, transient=True) as live:
        yield LiveView(live)


def outcome(result: Run) -> str:
    """A run's end in a few words."""
    if result.failed is not None:
        return f"failed: {result.failed.splitlines()[0]}"
    return f"validation accuracy {result.val_accuracy:.3f} in {_clock(result.seconds)}"


def _clock(seconds: float) -> str:
    from edgetl.core.formatting import duration

    return duration(seconds)

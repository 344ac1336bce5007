"""Progress of training: a bar on a terminal, one line per epoch elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from edgetl.core.progress import StepProgress, TrainingProgress

if TYPE_CHECKING:
    from edgetl.core.artifacts.run import EpochRecord


class PlainTrainingProgress(TrainingProgress):
    """Print notes, warnings and one line per epoch."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def note(self, text: str) -> None:
        """Print the note."""
        self._console.print(text, markup=False, soft_wrap=True)

    def warn(self, text: str) -> None:
        """Print the warning in yellow."""
        self._console.print(f"Warning: {text}", style="yellow", markup=False, soft_wrap=True)

    def on_epoch_end(self, record: EpochRecord, best: bool) -> None:
        """Print the metrics of the epoch; `*` marks the best so far."""
        parts = [
            f"epoch {record.epoch} (phase {record.phase})",
            f"loss {record.train_loss:.3f}",
            f"accuracy {record.train_accuracy:.3f}",
        ]
        if record.val_accuracy is not None:
            parts += [f"val loss {record.val_loss:.3f}", f"val accuracy {record.val_accuracy:.3f}"]
        parts += [f"{record.images_per_second:.0f} images/s", f"{record.seconds:.1f} s"]
        self.note(", ".join(parts) + (" *" if best and record.val_accuracy is not None else ""))


class LiveTrainingProgress(PlainTrainingProgress):
    """Print the same log above a bar with the current epoch and the time left for all epochs."""

    def __init__(self, console: Console, bar: Progress) -> None:
        super().__init__(console)
        self._bar = bar
        self._task: TaskID | None = None

    def on_progress(self, step: str, done: int, total: int) -> None:
        """Show a bar for the step."""
        if self._task is None:
            self._task = self._bar.add_task(step, total=total, metrics="")
        self._bar.update(self._task, completed=done)
        if done == total:
            self._bar.remove_task(self._task)
            self._task = None

    def on_step_end(self, step: StepProgress) -> None:
        """Update the bar of all epochs, which counts images."""
        if self._task is None:
            self._task = self._bar.add_task(
                "training", total=step.epochs * step.images_total, metrics=""
            )
        self._bar.update(
            self._task,
            total=step.epochs * step.images_total,
            completed=(step.epoch - 1) * step.images_total + step.images,
            description=f"epoch {step.epoch}/{step.epochs} (phase {step.phase})",
            metrics=f"loss {step.loss:.3f}  accuracy {step.accuracy:.3f}  "
            f"{step.images_per_second:.0f} images/s",
        )


@contextmanager
def open_training_progress(console: Console) -> Iterator[PlainTrainingProgress]:
    """Yield a bar on a terminal, a plain log elsewhere."""
    if not console.is_terminal:
        yield PlainTrainingProgress(console)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.percentage:>3.0f}%"),
        TextColumn("{task.fields[metrics]}"),
        TimeRemainingColumn(compact=True),
        TextColumn("left"),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        yield LiveTrainingProgress(bar.console, bar)

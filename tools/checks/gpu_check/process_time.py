"""Time from process start to metrics.json, cold and warm cache, compared with a plain loop."""

from __future__ import annotations

import time
from statistics import median

from tools.checks.gpu_check.record import Record
from tools.checks.gpu_check.settings import Settings
from tools.checks.gpu_check.training_run import TrainingRun, execute, finetune

TURNS = 2


def check_process_time(settings: Settings, record: Record) -> None:
    """Run step `process_time`: edgetl and the plain loop in turns on the same device."""
    epochs = ("1", "1") if settings.rehearsal else ("5", "3")
    turns = 1 if settings.rehearsal else TURNS
    longest_s = 0.0
    seconds: dict[str, list[float]] = {"plain loop": [], "edgetl, cold": [], "edgetl, warm": []}
    accuracies: dict[str, list[float]] = {name: [] for name in seconds}
    for turn in range(turns):
        started = time.monotonic()
        if turn and not record.has_time(1.1 * longest_s, f"turn {turn + 1}"):
            break
        for name in seconds:
            run = _run(settings, name, turn, epochs)
            finished = run.status == 0 and run.seconds_to_metrics is not None
            text = f"turn {turn + 1}, {name}: metrics.json is written"
            record.require(text, finished, run.status)
            if run.seconds_to_metrics is not None:
                seconds[name].append(run.seconds_to_metrics)
                accuracies[name].append(run.accuracy)
            # Record after each run, so that measurements survive if the turn fails.
            record.measure(
                seconds_to_metrics=seconds, accuracy=accuracies, epochs=" + ".join(epochs)
            )
        longest_s = max(longest_s, time.monotonic() - started)
    if not all(seconds.values()):
        return
    plain = median(seconds["plain loop"])
    for name in ("edgetl, cold", "edgetl, warm"):
        record.measure(**{f"{name}: plain loop's time / edgetl's": plain / median(seconds[name])})
    baseline = max(accuracies["plain loop"])
    required = baseline - (1.0 if settings.rehearsal else 0.02)
    lowest = min(accuracies["edgetl, cold"] + accuracies["edgetl, warm"])
    text = "edgetl's accuracy is at most 2 points below the plain loop's"
    record.require(text, lowest >= required, f"{lowest:.4f}, plain loop {baseline:.4f}")


def _run(settings: Settings, name: str, turn: int, epochs: tuple[str, str]) -> TrainingRun:
    folder = f"{name.replace(', ', '-').replace(' ', '-')}-{turn}"
    if name == "plain loop":
        path = settings.folder / folder
        script = ["-m", "tools.checks.gpu_check.plain_loop", str(settings.folder / "settings.json")]
        return execute([*script, *epochs, str(path / "metrics.json")], path)
    more = ("--epochs", epochs[0], "--finetune-epochs", epochs[1])
    return finetune(settings, folder, *more, cache=settings.folder / f"cache-{turn}")

"""Steps one after another, each in a process of its own with a time limit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Status = Literal["passed", "failed", "error", "timed out", "skipped"]
LOG_LINES = 12
"""Last lines of a step's output that the result keeps where it did not pass."""


@dataclass(frozen=True)
class Step:
    """One row of the table of steps."""

    name: str
    title: str
    limit_s: float
    function: str
    """`module:function`, called with the settings and a record."""
    needs: tuple[str, ...] = ()
    """Steps whose files this one uses."""


@dataclass(frozen=True)
class Outcome:
    """What became of a step."""

    step: Step
    status: Status
    seconds: float = 0.0
    reason: str = ""
    figures: Mapping[str, Any] = field(default_factory=dict)
    requirements: Sequence[Mapping[str, Any]] = ()
    log: Sequence[str] = ()

    def to_json(self) -> dict[str, Any]:
        """An entry of the result file."""
        return {
            "step": self.step.name,
            "title": self.step.title,
            "limit_s": self.step.limit_s,
            "status": self.status,
            "seconds": round(self.seconds, 2),
            "reason": self.reason,
            "requirements": list(self.requirements),
            "figures": dict(self.figures),
            "log": list(self.log),
        }


def run_steps(
    steps: Sequence[Step],
    settings: Path,
    logs: Path,
    deadline: float,
    environment: Mapping[str, str],
    report: Callable[[Sequence[Outcome]], None],
) -> list[Outcome]:
    """Run the steps in order and report after each.

    Args:
        settings: the file that every step reads.
        logs: a folder for each step's record and output.
        deadline: on the clock of time.monotonic; a step whose limit does not fit before it is skipped.
        environment: variables of the steps' processes.
        report: called with all outcomes so far, first with none.
    """
    outcomes: list[Outcome] = []
    report(outcomes)
    for step in steps:
        outcomes.append(_outcome(step, settings, logs, deadline, environment, outcomes))
        report(outcomes)
    return outcomes


def _outcome(
    step: Step,
    settings: Path,
    logs: Path,
    deadline: float,
    environment: Mapping[str, str],
    before: Sequence[Outcome],
) -> Outcome:
    # A step with a broken requirement has come to its end, and its files are there.
    ended = {outcome.step.name for outcome in before if outcome.status in ("passed", "failed")}
    missing = [name for name in step.needs if name not in ended]
    if missing:
        return Outcome(step, "skipped", reason=f"it needs {', '.join(missing)}, which did not end")
    left = deadline - time.monotonic()
    if step.limit_s > left:
        late = f"its limit of {step.limit_s:g} s does not fit into the {max(0.0, left):.0f} s left"
        return Outcome(step, "skipped", reason=late)
    return run_step(step, settings, logs, environment)


def run_step(step: Step, settings: Path, logs: Path, environment: Mapping[str, str]) -> Outcome:
    """Run one step in a process; it and its children are killed at the limit."""
    record, output = logs / f"{step.name}.json", logs / f"{step.name}.log"
    record.unlink(missing_ok=True)
    worker = [sys.executable, "-m", "tools.checks.gpu_check.worker"]
    command = [*worker, step.function, str(settings), str(record), str(step.limit_s)]
    started = time.monotonic()
    with output.open("wb") as stream:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            start_new_session=True,
        )
        try:
            status: int | None = process.wait(step.limit_s)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            # Also after a normal end: a worker that a step left behind would disturb the next one.
            kill_tree(process.pid)
            process.wait()
    seconds = time.monotonic() - started
    content = _read(record)
    figures, requirements = content.get("figures", {}), content.get("requirements", [])
    verdict, reason = judge(status, requirements, step.limit_s)
    log = [] if verdict == "passed" else _last_lines(output)
    return Outcome(step, verdict, seconds, reason, figures, requirements, log)


def judge(
    status: int | None, requirements: Sequence[Mapping[str, Any]], limit_s: float
) -> tuple[Status, str]:
    """The verdict on a step, with its reason where it did not pass.

    Args:
        status: the exit status of its process; None where the limit ended it.
    """
    if status is None:
        return "timed out", f"it was killed after its limit of {limit_s:g} s"
    if status:
        return "error", f"its process ended with status {status}"
    if not requirements:
        return "error", "it ended without checking anything"
    broken = [entry["text"] for entry in requirements if not entry["passed"]]
    if broken:
        return "failed", "; ".join(broken)
    return "passed", ""


def kill_tree(pid: int) -> None:
    """Kill a process that leads a session, its process group, and its descendants in other groups."""
    victims = descendants(pid)
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    for victim in victims:
        with suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)


def descendants(pid: int) -> list[int]:
    """Processes below `pid`, by the parents in /proc (proc(5)); empty where there is no /proc."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ValueError, IndexError):
            # The name in parentheses may hold spaces: state and parent follow the last parenthesis.
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(entry.name))
    found: list[int] = []
    waiting = [pid]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def _read(record: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content


def _last_lines(output: Path) -> list[str]:
    text = output.read_text(encoding="utf-8", errors="replace")
    return text.strip().splitlines()[-LOG_LINES:]

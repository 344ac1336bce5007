"""Runner of the steps, each in its own process with a time limit."""

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
"""Last output lines that the result includes for a step that did not pass."""


@dataclass(frozen=True)
class Step:
    """A step of the check."""

    name: str
    title: str
    limit_s: float
    function: str
    """`module:function`, called with the settings and a record."""
    needs: tuple[str, ...] = ()
    """Names of the steps whose files this step uses."""


@dataclass(frozen=True)
class StepResult:
    """Result of a step."""

    step: Step
    status: Status
    seconds: float = 0.0
    reason: str = ""
    figures: Mapping[str, Any] = field(default_factory=dict)
    requirements: Sequence[Mapping[str, Any]] = ()
    log: Sequence[str] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the entry of the result file."""
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
    report: Callable[[Sequence[StepResult]], None],
) -> list[StepResult]:
    """Run the steps in order and report after each.

    Args:
        steps: steps to run.
        settings: settings file that every step reads.
        logs: folder for each step's record and output.
        deadline: end time on the time.monotonic clock; a step whose limit does not fit is skipped.
        environment: environment variables of the steps' processes.
        report: called with the results so far, first with none.
    """
    results: list[StepResult] = []
    report(results)
    for step in steps:
        results.append(_run_or_skip(step, settings, logs, deadline, environment, results))
        report(results)
    return results


def _run_or_skip(
    step: Step,
    settings: Path,
    logs: Path,
    deadline: float,
    environment: Mapping[str, str],
    earlier: Sequence[StepResult],
) -> StepResult:
    # A step with a failed requirement ran to its end, so its files exist.
    finished = {result.step.name for result in earlier if result.status in ("passed", "failed")}
    missing = [name for name in step.needs if name not in finished]
    if missing:
        reason = f"it needs {', '.join(missing)}, which did not finish"
        return StepResult(step, "skipped", reason=reason)
    remaining_s = deadline - time.monotonic()
    if step.limit_s > remaining_s:
        reason = (
            f"its limit of {step.limit_s:g} s does not fit into the "
            f"{max(0.0, remaining_s):.0f} s left"
        )
        return StepResult(step, "skipped", reason=reason)
    return run_step(step, settings, logs, environment)


def run_step(step: Step, settings: Path, logs: Path, environment: Mapping[str, str]) -> StepResult:
    """Run one step in a process; kill it and its children at the limit."""
    record = logs / f"{step.name}.json"
    output = logs / f"{step.name}.log"
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
            exit_status: int | None = process.wait(step.limit_s)
        except subprocess.TimeoutExpired:
            exit_status = None
        finally:
            # Also after a normal exit: a leftover child process would disturb the next step.
            kill_tree(process.pid)
            process.wait()
    seconds = time.monotonic() - started
    content = _read(record)
    figures, requirements = content.get("figures", {}), content.get("requirements", [])
    status, reason = step_status(exit_status, requirements, step.limit_s)
    log = [] if status == "passed" else _last_lines(output)
    return StepResult(step, status, seconds, reason, figures, requirements, log)


def step_status(
    exit_status: int | None, requirements: Sequence[Mapping[str, Any]], limit_s: float
) -> tuple[Status, str]:
    """Return the status of a step, and the reason if it did not pass.

    Args:
        exit_status: exit status of the step's process; None if it was killed at the limit.
        requirements: the step's requirements as in its record.
        limit_s: time limit of the step.
    """
    if exit_status is None:
        return "timed out", f"it was killed after its limit of {limit_s:g} s"
    if exit_status:
        return "error", f"its process exited with status {exit_status}"
    if not requirements:
        return "error", "it checked nothing"
    failed = [entry["text"] for entry in requirements if not entry["passed"]]
    if failed:
        return "failed", "; ".join(failed)
    return "passed", ""


def kill_tree(pid: int) -> None:
    """Kill a session leader, its process group, and its descendants in other groups."""
    children = descendants(pid)
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    for child in children:
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)


def descendants(pid: int) -> list[int]:
    """Return the descendants of a process from /proc (proc(5)); empty without /proc."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ValueError, IndexError):
            # The name in parentheses may contain spaces; state and parent follow the last ")".
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(entry.name))
    pids: list[int] = []
    stack = [pid]
    while stack:
        child_pids = children.get(stack.pop(), [])
        pids += child_pids
        stack += child_pids
    return pids


def _read(record: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content


def _last_lines(output: Path) -> list[str]:
    text = output.read_text(encoding="utf-8", errors="replace")
    return text.strip().splitlines()[-LOG_LINES:]

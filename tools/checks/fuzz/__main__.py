"""Mutate and read files of all formats that edgetl reads.

    python -m tools.checks.fuzz --seed 0 --cases 10000 [--target runs] [--quick]

A case passes if it is read or raises an EdgetlError, which the command line prints as a message. It
fails if it raises another exception, takes more than ten seconds, allocates more than a gibibyte or
crashes the process. Failing inputs are saved in a folder, named by target, seed and number.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from tools.checks.fuzz.targets import TARGETS
from tools.checks.fuzz.worker import LIMIT_S

CASES, QUICK_CASES = 10_000, 24
_CASE_TIMEOUT_S = 4 * LIMIT_S
"""Timeout for a line of the worker, whose own time limit cannot interrupt native code."""
_START_TIMEOUT_S = 120
_MAX_MESSAGES = 8


@dataclass
class FuzzResult:
    """Results of the cases of a target."""

    target: str
    counts: Counter[str] = field(default_factory=Counter)
    """Number of cases by outcome: read, refused, failed, hung, memory or died."""
    failures: list[tuple[int, str]] = field(default_factory=list)
    """Number and message of each failed case."""
    peak_bytes: int = 0
    """Largest increase of resident memory in one case."""
    seconds: float = 0.0

    @property
    def cases(self) -> int:
        """Number of cases that were run."""
        return sum(self.counts.values())


def fuzz(target: str, cases: int, seed: int, failures: Path) -> FuzzResult:
    """Run cases 0 to `cases - 1` of a target, with a new worker after a crash or hang.

    Args:
        target: key of TARGETS.
        cases: number of cases.
        seed: seed of the mutations.
        failures: folder for failing inputs; created if missing.
    """
    result = FuzzResult(target)
    started = time.perf_counter()
    failures.mkdir(parents=True, exist_ok=True)
    first = 0
    while first < cases:
        first = _run_worker(result, seed, first, cases - first, failures)
    result.seconds = time.perf_counter() - started
    return result


def _run_worker(result: FuzzResult, seed: int, first: int, count: int, failures: Path) -> int:
    """Run a worker until it exits or hangs; return the number of the next case."""
    arguments = [result.target, seed, first, count, failures]
    command = [sys.executable, "-m", "tools.checks.fuzz.worker", *map(str, arguments)]
    errors = failures / f"{result.target}.stderr"
    with (
        errors.open("wb") as stderr,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=stderr, env=_environment()
        ) as worker,
    ):
        assert worker.stdout is not None
        lines: queue.Queue[dict[str, Any] | None] = queue.Queue()
        threading.Thread(target=_read_lines, args=(worker.stdout, lines), daemon=True).start()
        running_case = None
        timeout_s = _START_TIMEOUT_S
        while True:
            try:
                line = lines.get(timeout=timeout_s)
            except queue.Empty:
                worker.kill()
                number = first if running_case is None else running_case
                _record(result, number, "hung", "no output, killed")
                break
            timeout_s = _CASE_TIMEOUT_S
            if line is None:
                break
            if "running" in line:
                running_case = line["running"]
                continue
            _record(result, line["case"], line["outcome"], line["message"])
            result.peak_bytes = max(result.peak_bytes, line["bytes"])
            first = line["case"] + 1
            running_case = None
    if line is None and worker.returncode:
        message = errors.read_text(encoding="utf-8", errors="replace")[-1500:]
        status = f"exit status {worker.returncode}"
        if running_case is None:
            raise SystemExit(f"{result.target}: worker failed between cases, {status}.\n{message}")
        _record(result, running_case, "died", f"{status}: {message}")
    errors.unlink(missing_ok=True)
    return first if running_case is None else running_case + 1


def _read_lines(stream: IO[bytes], lines: queue.Queue[dict[str, Any] | None]) -> None:
    for line in stream:
        lines.put(json.loads(line))
    lines.put(None)


def _record(result: FuzzResult, number: int, outcome: str, message: str) -> None:
    result.counts[outcome] += 1
    if outcome not in ("read", "refused"):
        result.failures.append((number, f"{outcome}: {message}"))


def _environment() -> dict[str, str]:
    # With one arena, memory freed by a thread is reused by the next, so a case is charged for its
    # own memory only.
    return {
        **os.environ,
        "MALLOC_ARENA_MAX": "1",
        "OMP_NUM_THREADS": "1",
        "NO_ALBUMENTATIONS_UPDATE": "1",
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tools.checks.fuzz",
        description="Mutate and read files of all formats that edgetl reads.",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the mutations [0]")
    parser.add_argument("--cases", type=int, help=f"total over all targets [{CASES:,}]")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_CASES} cases per target")
    parser.add_argument(
        "--target", choices=TARGETS, action="append", help="target, repeatable [all]"
    )
    parser.add_argument(
        "--failures", type=Path, default=Path("build/fuzz"), help="folder for failing inputs"
    )
    options = parser.parse_args(arguments)
    targets = options.target or list(TARGETS)
    cases = CASES if options.cases is None else options.cases
    if options.quick:
        cases = QUICK_CASES * len(targets)
    failed = 0
    for number, target in enumerate(targets):
        share = (cases * (number + 1)) // len(targets) - (cases * number) // len(targets)
        result = fuzz(target, share, options.seed, options.failures)
        failed += len(result.failures)
        print(_describe(result), flush=True)
    if not failed and not any(options.failures.iterdir()):
        shutil.rmtree(options.failures)
    if failed:
        sys.exit(f"{failed} cases failed. Their inputs are in {options.failures}.")


def _describe(result: FuzzResult) -> str:
    counts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(result.counts.items()))
    memory = f"peak {result.peak_bytes / 2**20:.0f} MiB"
    lines = [f"{result.target}: {result.cases} cases in {result.seconds:.0f} s: {counts}; {memory}"]
    cases_by_message: dict[str, list[int]] = {}
    for number, message in result.failures:
        cases_by_message.setdefault(message.strip(), []).append(number)
    ranked = sorted(cases_by_message.items(), key=lambda entry: -len(entry[1]))
    for message, numbers in ranked[:_MAX_MESSAGES]:
        lines.append(f"  {len(numbers)} x, first case {numbers[0]}: {message}")
    if len(ranked) > _MAX_MESSAGES:
        lines.append(f"  and {len(ranked) - _MAX_MESSAGES} other messages")
    return "\n".join(lines)


if __name__ == "__main__":
    main()

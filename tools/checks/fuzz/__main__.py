"""Mutate files of every kind that edgetl reads: python -m tools.checks.fuzz --seed 0 --cases 10000 [--target runs] [--quick].

A case fails where it ends in anything but success or an EdgetlError, which the command line shows as one sentence; where it takes more
than ten seconds or a gibibyte; or where the process dies of it. Failing inputs are kept in a folder, named by target, seed and number.
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
_PATIENCE_S = 4 * LIMIT_S
"""For a line of the worker: code outside Python is not interrupted by its own limit."""
_START_S = 120
_SHOWN = 8


@dataclass
class Outcome:
    """What came of the cases of a target."""

    target: str
    counts: Counter[str] = field(default_factory=Counter)
    """read, refused, failed, hung, memory or died."""
    failures: list[tuple[int, str]] = field(default_factory=list)
    """Number of the case and what happened."""
    peak_bytes: int = 0
    """Most that one case added to resident memory."""
    seconds: float = 0.0

    @property
    def cases(self) -> int:
        """All that were used."""
        return sum(self.counts.values())


def fuzz(target: str, cases: int, seed: int, failures: Path) -> Outcome:
    """Use so many cases of a target; a worker that dies or hangs is replaced."""
    outcome, started, first = Outcome(target), time.perf_counter(), 0
    failures.mkdir(parents=True, exist_ok=True)
    while first < cases:
        first = _work(outcome, target, seed, first, cases - first, failures)
    outcome.seconds = time.perf_counter() - started
    return outcome


def _work(outcome: Outcome, target: str, seed: int, first: int, count: int, failures: Path) -> int:
    command = [
        sys.executable,
        "-m",
        "tools.checks.fuzz.worker",
        target,
        *map(str, (seed, first, count)),
        str(failures),
    ]
    errors = failures / f"{target}.stderr"
    with (
        errors.open("wb") as stderr,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=stderr, env=_environment()
        ) as worker,
    ):
        assert worker.stdout is not None
        lines: queue.Queue[dict[str, Any] | None] = queue.Queue()
        threading.Thread(target=_read, args=(worker.stdout, lines), daemon=True).start()
        begun, patience = None, _START_S
        while True:
            try:
                line = lines.get(timeout=patience)
            except queue.Empty:
                worker.kill()
                _note(outcome, first if begun is None else begun, "hung", "no answer, killed")
                break
            patience = _PATIENCE_S
            if line is None:
                break
            if "begun" in line:
                begun = line["begun"]
                continue
            _note(outcome, line["case"], line["outcome"], line["what"])
            outcome.peak_bytes, first, begun = (
                max(outcome.peak_bytes, line["bytes"]),
                line["case"] + 1,
                None,
            )
    if line is None and worker.returncode:
        told = errors.read_text(encoding="utf-8", errors="replace")[-1500:]
        if begun is None:
            raise SystemExit(
                f"{target}: the worker ended with status {worker.returncode} outside of a case.\n{told}"
            )
        _note(outcome, begun, "died", f"status {worker.returncode}: {told}")
    errors.unlink(missing_ok=True)
    return first if begun is None else begun + 1


def _read(stream: IO[bytes], lines: queue.Queue[dict[str, Any] | None]) -> None:
    for line in stream:
        lines.put(json.loads(line))
    lines.put(None)


def _note(outcome: Outcome, number: int, kind: str, what: str) -> None:
    outcome.counts[kind] += 1
    if kind not in ("read", "refused"):
        outcome.failures.append((number, f"{kind}: {what}"))


def _environment() -> dict[str, str]:
    # glibc gives memory of one thread back to the next, and what is measured is the case.
    return {
        **os.environ,
        "MALLOC_ARENA_MAX": "1",
        "OMP_NUM_THREADS": "1",
        "NO_ALBUMENTATIONS_UPDATE": "1",
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tools.checks.fuzz",
        description="Mutated files of every kind that edgetl reads.",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", type=int, help=f"of all targets together; {CASES:,} by default")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_CASES} cases of each target")
    parser.add_argument(
        "--target", choices=TARGETS, action="append", help="one target, or several; all by default"
    )
    parser.add_argument(
        "--failures", type=Path, default=Path("build/fuzz"), help="folder for inputs that fail"
    )
    options = parser.parse_args(arguments)
    targets = options.target or list(TARGETS)
    cases = (
        QUICK_CASES * len(targets)
        if options.quick
        else CASES
        if options.cases is None
        else options.cases
    )
    failed = 0
    for number, target in enumerate(targets):
        share = (cases * (number + 1)) // len(targets) - (cases * number) // len(targets)
        outcome = fuzz(target, share, options.seed, options.failures)
        failed += len(outcome.failures)
        print(_describe(outcome), flush=True)
    if not failed and not any(options.failures.iterdir()):
        shutil.rmtree(options.failures)
    if failed:
        sys.exit(f"{failed} cases failed; their inputs are in {options.failures}.")


def _describe(outcome: Outcome) -> str:
    counts = ", ".join(f"{count} {kind}" for kind, count in sorted(outcome.counts.items()))
    memory = f"{outcome.peak_bytes / 2**20:.0f} MiB at most"
    lines = [
        f"{outcome.target}: {outcome.cases} cases in {outcome.seconds:.0f} s: {counts}; {memory}"
    ]
    by_end: dict[str, list[int]] = {}
    for number, what in outcome.failures:
        by_end.setdefault(what.strip(), []).append(number)
    ranked = sorted(by_end.items(), key=lambda entry: -len(entry[1]))
    lines += [
        f"  {len(numbers)} x, first case {numbers[0]}: {what}" for what, numbers in ranked[:_SHOWN]
    ]
    lines += [f"  and {len(ranked) - _SHOWN} other ends"] if len(ranked) > _SHOWN else []
    return "\n".join(lines)


if __name__ == "__main__":
    main()

"""Time `edgetl finetune` against a plain script: python -m tools.benchmarks.finetune_speed DATA WEIGHTS --reference PLAIN_FINETUNE.py.

A run is the reference, then edgetl with an empty cache (cold), then edgetl again with the cache that the cold run left (warm); runs follow
one another in one session, so that a slow spell of the machine meets all three. Ratios are of the same run. The reference is called as
`PLAIN_FINETUNE.py DATA WEIGHTS --seed N` and prints a JSON object with val_accuracy as its last line.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from statistics import mean, median
from typing import Any, NoReturn

from edgetl.core.files import write_json
from edgetl.core.paths import RunDirectory
from edgetl.device.hardware.info import collect_device_info

CACHE = "EDGETL_CACHE"
"""The environment variable that names edgetl's cache folder."""
TOLD_LINES = 15
"""Of what a failed process wrote last."""
MACHINE = (
    "machine",
    "system",
    "cpu",
    "cores",
    "cores_available",
    "cpu_quota",
    "memory_bytes",
    "gpus",
    "python",
    "packages",
)
PEAK = (
    "Largest resident memory of a single process (ru_maxrss of wait4): the program itself or any process that it started and waited for, "
    "not their sum. It cannot be lower than what this tool held when it started the program."
)
PROGRAMS = {"reference": "reference", "cold": "edgetl, cold cache", "warm": "edgetl, warm cache"}
"""In the order of a run."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Finished:
    """A process that ended well."""

    command: list[str]
    output: str
    """What it wrote to stdout."""
    started: float
    """time.time() just before."""
    seconds: float
    """From its start to its end."""
    peak_bytes: int
    """See PEAK."""

    def to_json(self) -> Row:
        """What every row has."""
        return {
            "command": self.command,
            "started": self.started,
            "seconds": self.seconds,
            "peak_bytes": self.peak_bytes,
        }


def execute(command: list[str], variables: dict[str, str]) -> Finished:
    """Run `command` to its end with `variables` added to the environment; a failure ends this program."""
    # Files and not pipes: this process does nothing but wait meanwhile.
    with (
        tempfile.TemporaryFile("w+", errors="replace") as output,
        tempfile.TemporaryFile("w+", errors="replace") as errors,
    ):
        started, clock = time.time(), time.perf_counter()
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=errors,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **variables},
        )
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            process.wait()
            raise
        seconds = time.perf_counter() - clock
        process.returncode = os.waitstatus_to_exitcode(status)
        for stream in (output, errors):
            stream.seek(0)
        text, complaint = output.read(), errors.read()
    if process.returncode:
        fail(command, f"ended with status {process.returncode}", complaint or text)
    # Linux counts in KiB, macOS in bytes.
    return Finished(
        command, text, started, seconds, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    )


def fail(command: Sequence[str], what: str, text: str) -> NoReturn:
    """End this program with status 1."""
    sys.exit(
        "\n".join([f"{shlex.join(command)} {what}:", *text.rstrip().splitlines()[-TOLD_LINES:]])
    )


@dataclass(frozen=True)
class Comparison:
    """What is compared on which data."""

    data: Path
    weights: Path
    reference: Path
    edgetl: list[str]
    """The program; `finetune` and its options follow."""
    options: list[str]
    """Of `edgetl finetune`, after those that this tool gives."""
    warm: bool
    """Whether each cold run is followed by a warm one."""

    def run(self, number: int, seed: int, scratch: Path) -> Row:
        """One run of each program; what they leave under `scratch` is deleted."""
        cache = scratch / f"cache-{number}"
        cache.mkdir()
        row: Row = {"run": number, "seed": seed, "reference": self._reference(seed)}
        row["cold"] = self._edgetl(seed, scratch / f"run-{number}", cache)
        row["cold"]["cache_bytes"] = sum(
            path.stat().st_size for path in cache.rglob("*") if path.is_file()
        )
        if self.warm:
            row["warm"] = self._edgetl(seed, scratch / f"run-{number}-warm", cache)
        for leftover in scratch.iterdir():
            shutil.rmtree(leftover)
        return row

    def _reference(self, seed: int) -> Row:
        done = execute(
            [
                sys.executable,
                str(self.reference),
                str(self.data),
                str(self.weights),
                "--seed",
                str(seed),
            ],
            {},
        )
        try:
            report = json.loads(done.output.splitlines()[-1])
            accuracy = float(report["val_accuracy"])
        except (IndexError, KeyError, TypeError, ValueError):
            fail(
                done.command,
                "must print a JSON object with val_accuracy as its last line, but printed",
                done.output,
            )
        return {**done.to_json(), "val_accuracy": accuracy, "reported": report}

    def _edgetl(self, seed: int, output: Path, cache: Path) -> Row:
        given = [
            "finetune",
            str(self.data),
            "--weights",
            str(self.weights),
            "--seed",
            str(seed),
            "-o",
            str(output),
            *self.options,
        ]
        done = execute([*self.edgetl, *given], {CACHE: str(cache)})
        run = RunDirectory(output)
        try:
            metrics = json.loads(run.metrics.read_text(encoding="utf-8"))
            history = [
                json.loads(line) for line in run.history.read_text(encoding="utf-8").splitlines()
            ]
            accuracy = float(metrics["val"]["accuracy"])
        except (OSError, KeyError, TypeError, ValueError) as cause:
            fail(
                done.command,
                "left no metrics.json and history.jsonl with validation accuracies",
                f"{type(cause).__name__}: {cause}",
            )
        return {
            **done.to_json(),
            "seconds_to_metrics": run.metrics.stat().st_mtime - done.started,
            "val_accuracy": accuracy,
            "best_of_phase": {str(phase): best_of_phase(history, phase) for phase in (1, 2)},
            "metrics": metrics,
            "history": history,
        }


def best_of_phase(history: Sequence[Row], phase: int) -> float | None:
    """The highest validation accuracy of a phase's epochs; None where it had none."""
    return max(
        (
            line["val_accuracy"]
            for line in history
            if line["phase"] == phase and line["val_accuracy"] is not None
        ),
        default=None,
    )


def read_files(*paths: Path) -> None:
    """Read everything once, or the first program would be the only one that waits for the disk."""
    for path in paths:
        for file in (entry for entry in (path, *path.rglob("*")) if entry.is_file()):
            file.read_bytes()


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": median(values), "min": min(values), "max": max(values)}


def averaged(runs: Sequence[Row], values: Iterable[float | None]) -> dict[str, float] | None:
    """Over seeds; a seed counts once, by the mean of its runs. `values` has one for each run; None where there is none at all."""
    by_seed: dict[int, list[float]] = {}
    for run, value in zip(runs, values, strict=True):
        if value is not None:
            by_seed.setdefault(run["seed"], []).append(value)
    means = [mean(of_seed) for of_seed in by_seed.values()]
    return {"mean": mean(means), "min": min(means), "max": max(means)} if means else None


def summarise(runs: Sequence[Row]) -> dict[str, Row]:
    """Per program: seconds, memory, accuracy over seeds; for edgetl also its ratio to and difference from the same run's reference."""
    summary: dict[str, Row] = {}
    references = [run["reference"] for run in runs]
    for name in (name for name in PROGRAMS if name in runs[0]):
        rows = [run[name] for run in runs]
        pairs = list(zip(references, rows, strict=True))
        summary[name] = {
            "seconds": spread([row["seconds"] for row in rows]),
            "peak_bytes": spread([row["peak_bytes"] for row in rows]),
            "val_accuracy": averaged(runs, (row["val_accuracy"] for row in rows)),
        }
        if name != "reference":
            summary[name] |= {
                "seconds_to_metrics": spread([row["seconds_to_metrics"] for row in rows]),
                "ratio": spread(
                    [reference["seconds"] / row["seconds"] for reference, row in pairs]
                ),
                "ratio_to_metrics": spread(
                    [reference["seconds"] / row["seconds_to_metrics"] for reference, row in pairs]
                ),
                "points": averaged(
                    runs,
                    (
                        100 * (row["val_accuracy"] - reference["val_accuracy"])
                        for reference, row in pairs
                    ),
                ),
                "best_of_phase": {
                    phase: averaged(runs, (row["best_of_phase"][phase] for row in rows))
                    for phase in ("1", "2")
                },
            }
    return summary


def table(summary: dict[str, Row], runs: Sequence[Row]) -> str:
    """What is printed."""

    def values(figures: dict[str, float] | None, form: str, scale: float = 1.0) -> str:
        if figures is None:
            return "-"
        middle, low, high = (format(value * scale, form) for value in figures.values())
        return middle if low == high == middle else f"{middle} ({low} to {high})"

    lines: list[list[str]] = [["", *(PROGRAMS[name] for name in summary)]]

    def line(title: str, cell: Callable[[Row], str]) -> None:
        lines.append([title, *(cell(entry) for entry in summary.values())])

    line("seconds", lambda entry: values(entry["seconds"], ".2f"))
    line("seconds to metrics.json", lambda entry: values(entry.get("seconds_to_metrics"), ".2f"))
    line("reference / edgetl", lambda entry: values(entry.get("ratio"), ".2f"))
    line("the same to metrics.json", lambda entry: values(entry.get("ratio_to_metrics"), ".2f"))
    line("peak memory, MiB", lambda entry: values(entry["peak_bytes"], ".0f", 1 / 2**20))
    line("validation accuracy, %", lambda entry: values(entry["val_accuracy"], ".2f", 100))
    line("minus reference, points", lambda entry: values(entry.get("points"), "+.2f"))
    line(
        "best of phase 1, %",
        lambda entry: values(entry.get("best_of_phase", {}).get("1"), ".2f", 100),
    )
    line(
        "best of phase 2, %",
        lambda entry: values(entry.get("best_of_phase", {}).get("2"), ".2f", 100),
    )
    widths = [max(len(row[column]) for row in lines) for column in range(len(lines[0]))]
    drawn = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in lines
    ]
    seeds = len({run["seed"] for run in runs})
    return "\n".join(
        [
            *drawn,
            "",
            f"Runs: {len(runs)}, seeds: {seeds}. Seconds from process start, memory and ratios: median (lowest to highest); "
            "accuracies: mean of the seeds (lowest to highest).",
            f"Memory: {PEAK}",
        ]
    )


def result(comparison: Comparison, runs: Sequence[Row]) -> Row:
    """Everything, as it stands in the JSON file after its schema number."""
    facts = collect_device_info()
    return {
        "kind": "finetune-comparison",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {name: facts[name] for name in MACHINE},
        "data": str(comparison.data),
        "weights": str(comparison.weights),
        "edgetl": comparison.edgetl,
        "options": comparison.options,
        "peak_bytes_is": PEAK,
        "tool_peak_bytes": getrusage(RUSAGE_SELF).ru_maxrss
        * (1 if sys.platform == "darwin" else 1024),
        "summary": summarise(runs),
        "runs": list(runs),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tools.benchmarks.finetune_speed",
        description="Time `edgetl finetune` against a plain script, in turns.",
    )
    parser.add_argument(
        "data", metavar="DATA", type=Path, help="a folder with train/ and val/ folders of classes"
    )
    parser.add_argument(
        "weights", metavar="WEIGHTS", type=Path, help="a weights file that both programs read"
    )
    parser.add_argument(
        "--reference",
        type=Path,
        required=True,
        metavar="PLAIN_FINETUNE.py",
        help="the plain script",
    )
    parser.add_argument("--runs", type=int, default=3, help="run i has seed i")
    parser.add_argument(
        "--seeds", type=int, help="fewer seeds than runs: run i has seed i modulo SEEDS"
    )
    parser.add_argument(
        "--warm",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="follow every cold run by a warm one",
    )
    parser.add_argument(
        "--options",
        default="",
        metavar='"..."',
        help='more options of `edgetl finetune`, as --options="--workers 2"',
    )
    parser.add_argument(
        "--edgetl",
        default=shlex.join([sys.executable, "-m", "edgetl"]),
        metavar='"..."',
        help="the command instead of this Python's edgetl",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="RESULT.json",
        help="where everything measured goes; written after every run",
    )
    given = parser.parse_args(arguments)
    seeds = given.runs if given.seeds is None else given.seeds
    if not 1 <= seeds <= given.runs:
        parser.error("--runs must be 1 or more, and --seeds between 1 and --runs")
    for path in (given.data, given.weights, given.reference):
        if not path.exists():
            parser.error(f"{path} is not there")
    comparison = Comparison(
        given.data,
        given.weights,
        given.reference,
        shlex.split(given.edgetl),
        shlex.split(given.options),
        given.warm,
    )
    runs: list[Row] = []
    read_files(given.data, given.weights)
    with tempfile.TemporaryDirectory(prefix="compare-finetune-") as scratch:
        for number in range(given.runs):
            runs.append(comparison.run(number, number % seeds, Path(scratch)))
            took = ", ".join(
                f"{name} {runs[-1][name]['seconds']:.1f} s" for name in PROGRAMS if name in runs[-1]
            )
            print(f"run {number + 1} of {given.runs}: {took}", file=sys.stderr, flush=True)
            if given.output:
                # Every time: an interruption must not lose hours.
                write_json(given.output, result(comparison, runs))
    print(table(summarise(runs), runs))


if __name__ == "__main__":
    main()

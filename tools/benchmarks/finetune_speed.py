"""Time `edgetl finetune` against a plain training script.

    python -m tools.benchmarks.finetune_speed DATA WEIGHTS --reference PLAIN_FINETUNE.py

A run is the reference, then edgetl with an empty cache (cold), then edgetl with the cache of the
cold run (warm). Runs follow one another in one session, so that slow periods of the machine affect
all three; ratios compare programs within a run. The reference is called as
`PLAIN_FINETUNE.py DATA WEIGHTS --seed N` and prints a JSON object with `val_accuracy` as its last
line.
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
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from resource import RUSAGE_SELF, getrusage, struct_rusage
from statistics import mean, median
from typing import Any, NoReturn

from edgetl.core.files import write_json
from edgetl.core.paths import RunDirectory
from edgetl.device.hardware.info import collect_device_info

CACHE = "EDGETL_CACHE"
"""Environment variable of edgetl's cache folder."""
ERROR_LINES = 15
"""Number of lines of a failed process's output to print."""
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
    "Largest resident memory of a single process (ru_maxrss of wait4): the program itself or any "
    "process that it started and waited for, not their sum. It cannot be lower than what this tool "
    "held when it started the program."
)
PROGRAMS = {"reference": "reference", "cold": "edgetl, cold cache", "warm": "edgetl, warm cache"}
"""Programs and their names, in the order of a run."""

Row = dict[str, Any]


@dataclass(frozen=True)
class TimedProcess:
    """A process that exited with status 0."""

    command: list[str]
    output: str
    """Its stdout."""
    started: float
    """`time.time()` just before the start."""
    seconds: float
    """Wall-clock time from start to exit."""
    peak_bytes: int
    """Peak memory, see PEAK."""

    def to_json(self) -> Row:
        """Return the fields that all rows have in common."""
        return {
            "command": self.command,
            "started": self.started,
            "seconds": self.seconds,
            "peak_bytes": self.peak_bytes,
        }


def execute(command: list[str], variables: dict[str, str]) -> TimedProcess:
    """Run `command` with `variables` added to the environment.

    Raises:
        SystemExit: the process failed.
    """
    # Files instead of pipes, so that this process uses no CPU time while it waits.
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
        stdout, stderr = output.read(), errors.read()
    if process.returncode:
        fail(command, f"failed with exit status {process.returncode}", stderr or stdout)
    return TimedProcess(command, stdout, started, seconds, _maxrss_bytes(usage))


def _maxrss_bytes(usage: struct_rusage) -> int:
    # ru_maxrss is in KiB on Linux and in bytes on macOS.
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def fail(command: Sequence[str], problem: str, output: str) -> NoReturn:
    """Exit with status 1, the problem and the last lines of the output.

    Raises:
        SystemExit: always.
    """
    lines = output.rstrip().splitlines()[-ERROR_LINES:]
    sys.exit("\n".join([f"{shlex.join(command)} {problem}:", *lines]))


@dataclass(frozen=True)
class Comparison:
    """The programs to compare and their inputs."""

    data: Path
    weights: Path
    reference: Path
    edgetl: list[str]
    """Command of the program, without `finetune` and its options."""
    options: list[str]
    """Additional options of `edgetl finetune`."""
    warm: bool
    """Whether to follow each cold run by a warm one."""

    def run(self, number: int, seed: int, scratch: Path) -> Row:
        """Run each program once and delete the files below `scratch`."""
        cache = scratch / f"cache-{number}"
        cache.mkdir()
        row: Row = {"run": number, "seed": seed, "reference": self._reference(seed)}
        row["cold"] = self._edgetl(seed, scratch / f"run-{number}", cache)
        files = [path for path in cache.rglob("*") if path.is_file()]
        row["cold"]["cache_bytes"] = sum(path.stat().st_size for path in files)
        if self.warm:
            row["warm"] = self._edgetl(seed, scratch / f"run-{number}-warm", cache)
        for leftover in scratch.iterdir():
            shutil.rmtree(leftover)
        return row

    def _reference(self, seed: int) -> Row:
        arguments = [self.reference, self.data, self.weights, "--seed", seed]
        process = execute([sys.executable, *map(str, arguments)], {})
        try:
            report = json.loads(process.output.splitlines()[-1])
            accuracy = float(report["val_accuracy"])
        except (IndexError, KeyError, TypeError, ValueError):
            problem = "must print a JSON object with val_accuracy as its last line, but printed"
            fail(process.command, problem, process.output)
        return {**process.to_json(), "val_accuracy": accuracy, "reported": report}

    def _edgetl(self, seed: int, output: Path, cache: Path) -> Row:
        arguments = [
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
        process = execute([*self.edgetl, *arguments], {CACHE: str(cache)})
        run = RunDirectory(output)
        try:
            metrics = json.loads(run.metrics.read_text(encoding="utf-8"))
            lines = run.history.read_text(encoding="utf-8").splitlines()
            history = [json.loads(line) for line in lines]
            accuracy = float(metrics["val"]["accuracy"])
        except (OSError, KeyError, TypeError, ValueError) as error:
            fail(
                process.command,
                "wrote no metrics.json and history.jsonl with validation accuracies",
                f"{type(error).__name__}: {error}",
            )
        return {
            **process.to_json(),
            "seconds_to_metrics": run.metrics.stat().st_mtime - process.started,
            "val_accuracy": accuracy,
            "best_of_phase": {str(phase): best_of_phase(history, phase) for phase in (1, 2)},
            "metrics": metrics,
            "history": history,
        }


def best_of_phase(history: Sequence[Row], phase: int) -> float | None:
    """Return the highest validation accuracy of a phase, or None if it had no epochs."""
    return max(
        (
            line["val_accuracy"]
            for line in history
            if line["phase"] == phase and line["val_accuracy"] is not None
        ),
        default=None,
    )


def read_files(*paths: Path) -> None:
    """Read all files once, so that the first program is not slowed down by a cold page cache."""
    for path in paths:
        for file in (entry for entry in (path, *path.rglob("*")) if entry.is_file()):
            file.read_bytes()


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": median(values), "min": min(values), "max": max(values)}


def summarize_over_seeds(
    runs: Sequence[Row], values: Iterable[float | None]
) -> dict[str, float] | None:
    """Return mean, minimum and maximum over seeds, or None without values.

    Args:
        runs: runs with their seeds; runs of the same seed are averaged first.
        values: one value per run.
    """
    by_seed: dict[int, list[float]] = {}
    for run, value in zip(runs, values, strict=True):
        if value is not None:
            by_seed.setdefault(run["seed"], []).append(value)
    if not by_seed:
        return None
    means = [mean(seed_values) for seed_values in by_seed.values()]
    return {"mean": mean(means), "min": min(means), "max": max(means)}


def summarize(runs: Sequence[Row]) -> dict[str, Row]:
    """Return seconds, memory and accuracy of each program.

    For edgetl also the speed-up over and the difference in accuracy from the reference of the same
    run.
    """
    summary: dict[str, Row] = {}
    references = [run["reference"] for run in runs]
    for name in (name for name in PROGRAMS if name in runs[0]):
        rows = [run[name] for run in runs]
        pairs = list(zip(references, rows, strict=True))
        summary[name] = {
            "seconds": spread([row["seconds"] for row in rows]),
            "peak_bytes": spread([row["peak_bytes"] for row in rows]),
            "val_accuracy": summarize_over_seeds(runs, (row["val_accuracy"] for row in rows)),
        }
        if name != "reference":
            points = [
                100 * (row["val_accuracy"] - reference["val_accuracy"]) for reference, row in pairs
            ]
            summary[name] |= {
                "seconds_to_metrics": spread([row["seconds_to_metrics"] for row in rows]),
                "ratio": spread(
                    [reference["seconds"] / row["seconds"] for reference, row in pairs]
                ),
                "ratio_to_metrics": spread(
                    [reference["seconds"] / row["seconds_to_metrics"] for reference, row in pairs]
                ),
                "points": summarize_over_seeds(runs, points),
                "best_of_phase": {
                    phase: summarize_over_seeds(runs, (row["best_of_phase"][phase] for row in rows))
                    for phase in ("1", "2")
                },
            }
    return summary


def table(summary: dict[str, Row], runs: Sequence[Row]) -> str:
    """Format the summary as a text table with notes."""

    def cell(statistics: dict[str, float] | None, form: str, scale: float = 1.0) -> str:
        if statistics is None:
            return "-"
        middle, low, high = (format(value * scale, form) for value in statistics.values())
        return middle if low == high == middle else f"{middle} ({low} to {high})"

    lines: list[list[str]] = [["", *(PROGRAMS[name] for name in summary)]]

    def add_line(title: str, form: str, key: str, scale: float = 1.0) -> None:
        cells = [cell(entry.get(key), form, scale) for entry in summary.values()]
        lines.append([title, *cells])

    add_line("seconds", ".2f", "seconds")
    add_line("seconds to metrics.json", ".2f", "seconds_to_metrics")
    add_line("reference / edgetl", ".2f", "ratio")
    add_line("the same to metrics.json", ".2f", "ratio_to_metrics")
    add_line("peak memory, MiB", ".0f", "peak_bytes", 1 / 2**20)
    add_line("validation accuracy, %", ".2f", "val_accuracy", 100)
    add_line("minus reference, points", "+.2f", "points")
    for phase in ("1", "2"):
        best = [entry.get("best_of_phase", {}).get(phase) for entry in summary.values()]
        lines.append([f"best of phase {phase}, %", *(cell(value, ".2f", 100) for value in best)])
    widths = [max(len(row[column]) for row in lines) for column in range(len(lines[0]))]
    table_lines = [
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in lines
    ]
    seeds = len({run["seed"] for run in runs})
    return "\n".join(
        [
            *table_lines,
            "",
            f"Runs: {len(runs)}, seeds: {seeds}. Seconds from process start, memory and ratios: "
            "median (lowest to highest); accuracies: mean of the seeds (lowest to highest).",
            f"Memory: {PEAK}",
        ]
    )


def result(comparison: Comparison, runs: Sequence[Row]) -> Row:
    """Return the content of the JSON file, except its schema number."""
    facts = collect_device_info()
    return {
        "kind": "finetune-comparison",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {name: getattr(facts, name) for name in MACHINE},
        "data": str(comparison.data),
        "weights": str(comparison.weights),
        "edgetl": comparison.edgetl,
        "options": comparison.options,
        "peak_bytes_is": PEAK,
        "tool_peak_bytes": _maxrss_bytes(getrusage(RUSAGE_SELF)),
        "summary": summarize(runs),
        "runs": list(runs),
    }


def _parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tools.benchmarks.finetune_speed",
        description="Time `edgetl finetune` against a plain training script.",
    )
    parser.add_argument(
        "data",
        metavar="DATA",
        type=Path,
        help="folder with train/ and val/, each with a folder per class",
    )
    parser.add_argument(
        "weights", metavar="WEIGHTS", type=Path, help="weights file that both programs read"
    )
    parser.add_argument(
        "--reference",
        type=Path,
        required=True,
        metavar="PLAIN_FINETUNE.py",
        help="the plain training script",
    )
    parser.add_argument("--runs", type=int, default=3, help="number of runs; run i uses seed i [3]")
    parser.add_argument(
        "--seeds", type=int, help="number of seeds; run i uses seed i modulo SEEDS [--runs]"
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
        help='additional options of `edgetl finetune`, such as --options="--workers 2"',
    )
    parser.add_argument(
        "--edgetl",
        default=shlex.join([sys.executable, "-m", "edgetl"]),
        metavar='"..."',
        help="command to run instead of this Python's edgetl",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="RESULT.json",
        help="file for all measurements; written after every run",
    )
    options = parser.parse_args(arguments)
    if options.seeds is None:
        options.seeds = options.runs
    if not 1 <= options.seeds <= options.runs:
        parser.error(
            "--runs must be >= 1 and --seeds between 1 and --runs, "
            f"got {options.runs} and {options.seeds}"
        )
    for path in (options.data, options.weights, options.reference):
        if not path.exists():
            parser.error(f"{path} not found")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parse_arguments(arguments)
    comparison = Comparison(
        options.data,
        options.weights,
        options.reference,
        shlex.split(options.edgetl),
        shlex.split(options.options),
        options.warm,
    )
    runs: list[Row] = []
    read_files(options.data, options.weights)
    with tempfile.TemporaryDirectory(prefix="compare-finetune-") as scratch:
        for number in range(options.runs):
            run = comparison.run(number, number % options.seeds, Path(scratch))
            runs.append(run)
            times = ", ".join(
                f"{name} {run[name]['seconds']:.1f} s" for name in PROGRAMS if name in run
            )
            print(f"run {number + 1} of {options.runs}: {times}", file=sys.stderr, flush=True)
            if options.output:
                # Written after every run: an interruption must not lose hours of measurements.
                write_json(options.output, result(comparison, runs))
    print(table(summarize(runs), runs))


if __name__ == "__main__":
    main()

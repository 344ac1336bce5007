"""Run `edgetl demo` and draw it for the README, its terminal and two figures of its pages: python -m tools.repo.readme_images -o docs [--keep DIR].

With --keep a folder that `edgetl demo --keep` left is used again: its pages are drawn anew, the terminal stays as it is.
"""

from __future__ import annotations

import argparse
import os
import pty
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from rich.text import Text

from edgetl.core.artifacts.bench_json import read_run_results
from edgetl.core.artifacts.experiment import read_experiment
from edgetl.core.files import write_text
from edgetl.core.paths import ExperimentDirectory, RunDirectory
from edgetl.report.charts.compare import draw_strategy_curves
from edgetl.report.charts.latency import draw_distributions
from edgetl.report.html.text import row_names
from tools.repo.bench_image import recording, screen
from tools.repo.experiment_images import standalone

WIDTH = 104


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-o", "--output", type=Path, default=Path("docs"))
    parser.add_argument(
        "--keep", type=Path, help="where the demo is to leave, or has left, its folder"
    )
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="edgetl-readme-") as scratch:
        folder = given.keep or Path(scratch) / "parts"
        if not (folder / "comparison").exists():
            recorder = recording(WIDTH)
            recorder.print(Text.from_ansi(run_demo(folder)))
            write_text(given.output / "demo.svg", screen(recorder, "edgetl demo", "demo") + "\n")
        draw(folder, given.output)


def run_demo(folder: Path) -> str:
    """What the program prints on a terminal, with its colours; progress goes to this process's own."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "edgetl", "demo", "--keep", folder.name]
    environment = {
        **os.environ,
        "COLUMNS": str(WIDTH),
        "TERM": "xterm-256color",
        "PYTHONPATH": str(Path.cwd()),
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    process = subprocess.Popen(command, stdout=theirs, cwd=folder.parent, env=environment)
    os.close(theirs)
    printed = b""
    with suppress(OSError):  # the terminal is gone when the program has ended
        while part := os.read(ours, 65536):
            printed += part
    os.close(ours)
    if process.wait() != 0:
        sys.exit(f"edgetl demo ended with status {process.returncode}.")
    return printed.decode().replace("\r\n", "\n")


def draw(folder: Path, output: Path) -> None:
    """The two figures: accuracy over time from nothing and pretrained, and the distribution of latencies."""
    found = read_experiment(ExperimentDirectory(folder / "comparison").result)
    best = max(found.rows, key=lambda row: row.first_run.weights != "none")
    courses = draw_strategy_curves("Accuracy over time", found.rows, found.target_accuracy)
    (result,) = read_run_results(RunDirectory(found.folder / best.first_run.folder))
    (latencies,) = draw_distributions("Latency of one image", result.rows, row_names(result.rows))
    write_text(output / "demo-time.svg", standalone(courses))
    write_text(output / "demo-latency.svg", standalone(latencies))


if __name__ == "__main__":
    main()

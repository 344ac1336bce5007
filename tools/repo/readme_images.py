"""Draw the images of the README: the terminal of `edgetl demo` and two figures of its pages.

    python -m tools.repo.readme_images -o docs [--keep DIR]

With --keep, the folder of an earlier `edgetl demo --keep` is reused if it exists: the figures are
redrawn and the image of the terminal is left unchanged.
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
from tools.repo.bench_image import console_svg, recording_console
from tools.repo.experiment_images import standalone

WIDTH = 104
"""Width of the terminal, in columns."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("docs"), help="folder of the images [docs]"
    )
    parser.add_argument(
        "--keep", type=Path, help="folder of the demo; reused if it exists, else created"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="edgetl-readme-") as scratch:
        folder = arguments.keep or Path(scratch) / "parts"
        if not (folder / "comparison").exists():
            console = recording_console(WIDTH)
            console.print(Text.from_ansi(run_demo(folder)))
            svg = console_svg(console, "edgetl demo", "demo")
            write_text(arguments.output / "demo.svg", svg + "\n")
        draw(folder, arguments.output)


def run_demo(folder: Path) -> str:
    """Run `edgetl demo --keep folder` in a pseudo-terminal and return its colored output.

    Progress is printed on stderr, which is inherited.

    Raises:
        SystemExit: the demo failed.
    """
    primary, secondary = pty.openpty()
    command = [
        sys.executable,
        "-m",
        "edgetl",
        "demo",
        "--weights",
        "builtin",
        "--keep",
        folder.name,
    ]
    environment = {
        **os.environ,
        "COLUMNS": str(WIDTH),
        "TERM": "xterm-256color",
        "PYTHONPATH": str(Path.cwd()),
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    process = subprocess.Popen(command, stdout=secondary, cwd=folder.parent, env=environment)
    os.close(secondary)
    output = b""
    # Linux raises EIO when the program has closed its side of the terminal.
    with suppress(OSError):
        while chunk := os.read(primary, 65536):
            output += chunk
    os.close(primary)
    if process.wait() != 0:
        sys.exit(f"edgetl demo failed with exit status {process.returncode}.")
    return output.decode().replace("\r\n", "\n")


def draw(folder: Path, output: Path) -> None:
    """Draw two figures: accuracy over time with and without pretraining, and the latencies."""
    experiment = read_experiment(ExperimentDirectory(folder / "comparison").result)
    pretrained = max(experiment.rows, key=lambda row: row.first_run.weights != "none")
    curves = draw_strategy_curves("Accuracy over time", experiment.rows, experiment.target_accuracy)
    (result,) = read_run_results(RunDirectory(experiment.folder / pretrained.first_run.folder))
    (latencies,) = draw_distributions("Latency of one image", result.rows, row_names(result.rows))
    write_text(output / "demo-time.svg", standalone(curves))
    write_text(output / "demo-latency.svg", standalone(latencies))


if __name__ == "__main__":
    main()

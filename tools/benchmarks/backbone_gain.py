"""Measure the gain of pretrained backbones over random weights on a data set.

    python -m tools.benchmarks.backbone_gain DATA --row mobilenet_v2=imagenet --budget 60s -o DIR

Each --row is an architecture and a value of `--weights`. The head alone (a linear probe), the last
blocks and the whole model are trained for each row, and random weights for each architecture. Every
run is a separate process with a separate cache, the same time budget and the same split; --seeds
sets the number of seeds. --scratch-budget adds runs from random weights with the architecture of
the first row and a different budget. The tool runs `edgetl compare` several times; repeating the
command resumes it. The result is a Markdown table; --card FOLDER writes it into the card of
models/<architecture>-builtin.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from edgetl.core.artifacts.experiment import Experiment
from edgetl.core.artifacts.experiment_runs import StrategyResult, StrategyRun
from edgetl.core.config.compare import CompareConfig
from edgetl.core.config.finetune import FinetuneConfig
from edgetl.core.config.parsers import parse_duration
from edgetl.core.errors import ConfigError, EdgetlError
from edgetl.core.files import read_json
from edgetl.core.formatting import format_duration, format_percent
from edgetl.core.paired_tests import AccuracyDifference, compute_accuracy_difference
from edgetl.core.typed_json import parse_as
from edgetl.experiment.matrix import PlannedRun
from edgetl.experiment.progress import ExperimentProgress

STRATEGY_NAMES = {
    "scratch": "everything, from nothing",
    "head": "linear probe",
    "finetune": "head, then last blocks",
    "full": "head, then everything",
}


@dataclass(frozen=True)
class Backbone:
    """An architecture and its weights, as requested by `--row`."""

    architecture: str
    weights: str

    @property
    def name(self) -> str:
        """Name of the weights, without the folders of the machine."""
        if self.weights in ("builtin", "imagenet"):
            return self.weights
        return PurePath(self.weights).name

    @classmethod
    def parse(cls, text: str) -> Backbone:
        """Parse ARCHITECTURE=WEIGHTS.

        Raises:
            ConfigError: the text has another form, or the weights are `none`.
        """
        architecture, equals, weights = text.partition("=")
        if not (architecture and equals and weights) or weights == "none":
            raise ConfigError(
                f"--row must be ARCHITECTURE=WEIGHTS, such as mobilenet_v2=imagenet, got {text}. "
                "Random weights are always included."
            )
        return cls(architecture, weights)


@dataclass(frozen=True)
class Line:
    """A row of the table."""

    backbone: Backbone
    row: StrategyResult
    against_scratch: AccuracyDifference | None
    """Gain over random weights; None for random weights themselves."""


class _Progress(ExperimentProgress):
    """Progress that prints a line per run."""

    def on_run_end(self, run: PlannedRun, result: StrategyRun) -> None:
        """Print the accuracy and the time of a run, or its error, on stderr."""
        accuracy = format_percent(result.val_accuracy)
        message = result.failed or f"{accuracy}, {format_duration(result.seconds)}"
        print(f"{run.name}: {message}", file=sys.stderr, flush=True)


def measure(
    data: Path,
    backbones: Sequence[Backbone],
    output: Path,
    budget_s: float,
    seeds: int,
    image_size: int | None,
    device: str,
    scratch_budget_s: float | None = None,
) -> list[Line]:
    """Run the missing experiments and return the rows of the table.

    Args:
        data: data set, in a form that `edgetl finetune` accepts.
        backbones: rows to compare.
        output: folder of the experiments; existing ones are resumed.
        budget_s: time budget of each run, in seconds.
        seeds: number of seeds per strategy.
        image_size: in pixels; None uses the default of each architecture.
        device: auto, cpu or cuda.
        scratch_budget_s: time budget of additional runs of the first architecture from random
            weights, in seconds; None adds no runs.

    Raises:
        EdgetlError: see `edgetl compare`; also if a run failed.
    """
    from edgetl.experiment import compare as compare_command

    def compare(
        folder: str, architecture: str, strategies: tuple[str, ...], weights: str, seconds: float
    ) -> Experiment:
        settings = CompareConfig(
            output / folder,
            (architecture,),
            strategies,
            seeds,
            (image_size,) if image_size else (),
            budget_s=seconds,
            bench=False,
        )
        recipe = FinetuneConfig(data.absolute(), weights=weights, device=device)  # type: ignore[arg-type]
        experiment = compare_command.compare(settings, recipe, _Progress())
        _raise_if_run_failed(experiment)
        return experiment

    lines: list[Line] = []
    scratch: dict[str, StrategyResult] = {}
    for number, backbone in enumerate(backbones):
        architecture = backbone.architecture
        strategies: tuple[str, ...] = ("head", "finetune", "full")
        if architecture not in scratch:
            strategies = ("scratch", *strategies)
        folder = f"{number}-{architecture}-{backbone.name}"
        for row in compare(folder, architecture, strategies, backbone.weights, budget_s).rows:
            if row.first_run.strategy == "scratch":
                scratch[architecture] = row
                lines.append(Line(Backbone(architecture, "random"), row, None))
            else:
                lines.append(Line(backbone, row, _difference(row, scratch[architecture])))
    if scratch_budget_s is not None:
        architecture, weights = backbones[0].architecture, backbones[0].weights
        folder = f"scratch-{scratch_budget_s:g}s"
        row = compare(folder, architecture, ("scratch",), weights, scratch_budget_s).rows[0]
        difference = _difference(row, scratch[architecture])
        lines.insert(1, Line(Backbone(architecture, "random"), row, difference))
    return lines


def _raise_if_run_failed(experiment: Experiment) -> None:
    if experiment.failed_runs:
        run = experiment.failed_runs[0]
        raise ConfigError(f"{run.name} failed: {run.failed}")


def _difference(row: StrategyResult, scratch: StrategyResult) -> AccuracyDifference:
    return compute_accuracy_difference(
        [run.correct_mask for run in row.runs], [run.correct_mask for run in scratch.runs]
    )


def table(
    data: str,
    lines: Sequence[Line],
    budget_s: float,
    command: str,
    scratch_budget_s: float | None = None,
) -> str:
    """Return a section of a card as Markdown: heading, description, table and command.

    Args:
        data: name of the data set.
        lines: rows of the table; the first is random weights.
        budget_s: time budget of each run, in seconds.
        command: command that reproduces the table.
        scratch_budget_s: time budget of the second row, in seconds; None if there is no such row.
    """
    first = lines[0].row
    images = f"{first.first_run.train_images} training and {len(first.first_run.correct_mask)}"
    budget = f"{format_duration(budget_s)}, reading the images included"
    columns = (
        "architecture",
        "weights",
        "trained",
        "validation",
        "seeds",
        "over random weights, points [95%]",
        "time",
    )
    return "\n".join(
        [
            f"### {data}",
            "",
            f"{images} validation images; means of {len(first.runs)} seeds on one split; "
            f"every run had a budget of {budget}{_scratch_note(scratch_budget_s)}.",
            "",
            f"| {' | '.join(columns)} |",
            "| --- | --- | --- | ---: | ---: | ---: | ---: |",
            *(f"| {' | '.join(_cells(line))} |" for line in lines),
            "",
            f"    {command}",
        ]
    )


def _scratch_note(scratch_budget_s: float | None) -> str:
    if scratch_budget_s is None:
        return ""
    return f"; the second row is the first with {format_duration(scratch_budget_s)}"


def _cells(line: Line) -> Iterator[str]:
    row = line.row
    gain = line.against_scratch
    yield line.backbone.architecture
    yield line.backbone.name
    yield STRATEGY_NAMES[row.first_run.strategy]
    yield format_percent(row.val_accuracy)
    yield f"{format_percent(row.val_range[0])} to {format_percent(row.val_range[1])}"
    if gain is None:
        yield ""
    else:
        yield f"{100 * gain.value:+.1f} [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}]"
    yield format_duration(row.seconds)


def _parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tools.benchmarks.backbone_gain",
        description="Measure the gain of pretrained backbones over random weights.",
    )
    parser.add_argument(
        "data", metavar="DATA", type=Path, help="data set, as for `edgetl finetune`"
    )
    parser.add_argument(
        "--row",
        action="append",
        required=True,
        metavar="ARCHITECTURE=WEIGHTS",
        help="architecture and weights, repeatable",
    )
    parser.add_argument("--budget", default="60s", metavar="TIME", help="of each run [60s]")
    parser.add_argument(
        "--scratch-budget", metavar="TIME", help="of additional runs from random weights [none]"
    )
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds [3]")
    parser.add_argument("--image-size", type=int, help="pixels [default of the architecture]")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument(
        "-o", "--output", type=Path, required=True, help="folder of the experiments"
    )
    parser.add_argument(
        "--card", type=Path, help="folder of a built-in backbone, to write the table into its card"
    )
    return parser.parse_args(arguments)


def _measure_and_format(options: argparse.Namespace) -> str:
    backbones = [Backbone.parse(text) for text in options.row]
    budget_s = parse_duration(options.budget)
    scratch_budget_s = parse_duration(options.scratch_budget) if options.scratch_budget else None
    lines = measure(
        options.data,
        backbones,
        options.output,
        budget_s,
        options.seeds,
        options.image_size,
        options.device,
        scratch_budget_s,
    )
    size = f" --image-size {options.image_size}" if options.image_size else ""
    rows = " ".join(
        f"--row {backbone.architecture}={shlex.quote(backbone.name)}" for backbone in backbones
    )
    scratch = f" --scratch-budget {options.scratch_budget}" if options.scratch_budget else ""
    command = (
        f"python -m tools.benchmarks.backbone_gain {options.data.name} {rows} "
        f"--budget {options.budget}{scratch} --seeds {options.seeds}{size} -o DIR"
    )
    text = table(options.data.name, lines, budget_s, command, scratch_budget_s)
    if options.card:
        from tools.pretraining.release import RESULTS, write_card

        results = read_json(options.card / RESULTS, ConfigError, "The backbone's results")
        worth = {
            **parse_as(dict[str, str], results["worth"], "worth"),
            f"{options.data.name}{size}": text,
        }
        write_card(options.card, worth=worth)
    return text


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parse_arguments(arguments)
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    try:
        text = _measure_and_format(options)
    except EdgetlError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit("Interrupted. Repeat the command to resume.")
    print(text)


if __name__ == "__main__":
    main()

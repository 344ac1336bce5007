"""What is a backbone worth on a data set? Beside random weights and others, at equal time, as a Markdown table for its card.

    python -m tools.benchmarks.backbone_gain DATA --row mobilenet_v3_small=builtin --row mobilenet_v2=../shared/weights --budget 60s -o DIR

Each --row is an architecture and what --weights takes for it. Of each row the head alone (a linear probe), the last blocks and everything
are trained, of each architecture random weights too: every run in a process of its own, with a cache of its own, in the same time, on the
same split, with --seeds seeds. --scratch-budget trains the first row's architecture from nothing once more, in a time of its own. It is
`edgetl compare` several times over; the same command goes on where it was ended. --card FOLDER puts the table into the card of
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
from edgetl.core.config.options import parse_duration
from edgetl.core.errors import ConfigError, EdgetlError
from edgetl.core.files import read_json
from edgetl.core.formatting import format_duration, format_percent
from edgetl.core.paired_tests import AccuracyDifference, compute_accuracy_difference
from edgetl.experiment.matrix import PlannedRun

NAMES = {
    "scratch": "everything, from nothing",
    "head": "linear probe",
    "finetune": "head, then last blocks",
    "full": "head, then everything",
}


@dataclass(frozen=True)
class Backbone:
    """A row as it was asked for."""

    architecture: str
    weights: str

    @property
    def name(self) -> str:
        """Of the weights, without a machine's folders."""
        return (
            self.weights if self.weights in ("builtin", "imagenet") else PurePath(self.weights).name
        )

    @classmethod
    def parse(cls, text: str) -> Backbone:
        """ARCHITECTURE=WEIGHTS.

        Raises:
            ConfigError: anything else.
        """
        architecture, equals, weights = text.partition("=")
        if not (architecture and equals and weights) or weights == "none":
            raise ConfigError(
                f"--row {text}: write ARCHITECTURE=WEIGHTS, as in mobilenet_v2=imagenet. Random weights are added without asking."
            )
        return cls(architecture, weights)


@dataclass(frozen=True)
class Line:
    """A row of the table."""

    backbone: Backbone
    row: StrategyResult
    against_scratch: AccuracyDifference | None
    """None for scratch itself."""


class _Progress:
    """A line on standard error for every run that ended; `edgetl.experiment.progress.ExperimentProgress` is what else it may be told."""

    def on_run_end(self, run: PlannedRun, result: StrategyRun) -> None:
        """Tell it."""
        told = (
            result.failed
            or f"{format_percent(result.val_accuracy)}, {format_duration(result.seconds)}"
        )
        print(f"{run.name}: {told}", file=sys.stderr, flush=True)


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
    """Run what has not run yet and put the rows side by side.

    Args:
        budget_s: of each run, seconds.
        image_size: pixels; None takes each architecture's own.
        scratch_budget_s: of more runs of the first architecture from nothing; None is none.

    Raises:
        EdgetlError: as `edgetl compare`, or a run that failed.
    """
    from edgetl.experiment import compare as comparing
    from edgetl.experiment.progress import NullExperimentProgress

    class Watching(_Progress, NullExperimentProgress):
        pass

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
        found = comparing.compare(settings, recipe, Watching())
        _refuse_failures(found)
        return found

    lines: list[Line] = []
    scratch: dict[str, StrategyResult] = {}
    for number, backbone in enumerate(backbones):
        strategies = (
            ("head", "finetune", "full")
            if backbone.architecture in scratch
            else ("scratch", "head", "finetune", "full")
        )
        folder = f"{number}-{backbone.architecture}-{backbone.name}"
        for row in compare(
            folder, backbone.architecture, strategies, backbone.weights, budget_s
        ).rows:
            if row.first_run.strategy == "scratch":
                scratch[backbone.architecture] = row
                lines.append(Line(Backbone(backbone.architecture, "random"), row, None))
            else:
                lines.append(Line(backbone, row, _difference(row, scratch[backbone.architecture])))
    if scratch_budget_s is not None:
        architecture = backbones[0].architecture
        longer = compare(
            f"scratch-{scratch_budget_s:g}s",
            architecture,
            ("scratch",),
            backbones[0].weights,
            scratch_budget_s,
        ).rows[0]
        lines.insert(
            1,
            Line(
                Backbone(architecture, "random"), longer, _difference(longer, scratch[architecture])
            ),
        )
    return lines


def _refuse_failures(found: Experiment) -> None:
    if found.failed_runs:
        raise ConfigError(f"{found.failed_runs[0].name} failed: {found.failed_runs[0].failed}")


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
    """The Markdown of a card: heading, what was done, table, command."""
    first = lines[0].row
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
            f"{first.first_run.train_images} training and {len(first.first_run.correct_mask)} validation images; means of {len(first.runs)} seeds on "
            f"one split; every run was given {format_duration(budget_s)}, reading the images included{_longer(scratch_budget_s)}.",
            "",
            f"| {' | '.join(columns)} |",
            "| --- | --- | --- | ---: | ---: | ---: | ---: |",
            *(f"| {' | '.join(_cells(line))} |" for line in lines),
            "",
            f"    {command}",
        ]
    )


def _longer(scratch_budget_s: float | None) -> str:
    return (
        ""
        if scratch_budget_s is None
        else f"; the second row is the first in {format_duration(scratch_budget_s)}"
    )


def _cells(line: Line) -> Iterator[str]:
    row, gain = line.row, line.against_scratch
    yield line.backbone.architecture
    yield line.backbone.name
    yield NAMES[row.first_run.strategy]
    yield format_percent(row.val_accuracy)
    yield f"{format_percent(row.val_range[0])} to {format_percent(row.val_range[1])}"
    yield (
        ""
        if gain is None
        else f"{100 * gain.value:+.1f} [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}]"
    )
    yield format_duration(row.seconds)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tools.benchmarks.backbone_gain",
        description="What is a backbone worth on a data set?",
    )
    parser.add_argument("data", metavar="DATA", type=Path, help="as `edgetl finetune` takes it")
    parser.add_argument(
        "--row",
        action="append",
        required=True,
        metavar="ARCHITECTURE=WEIGHTS",
        help="may be given several times",
    )
    parser.add_argument("--budget", default="60s", metavar="TIME", help="of each run")
    parser.add_argument("--scratch-budget", metavar="TIME", help="of more runs from nothing [none]")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--image-size", type=int, help="pixels [the architecture's own]")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("-o", "--output", type=Path, required=True, help="for the experiments")
    parser.add_argument(
        "--card", type=Path, help="folder of a shipped backbone whose card takes the table"
    )
    given = parser.parse_args(arguments)
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    try:
        backbones, budget_s = (
            [Backbone.parse(text) for text in given.row],
            parse_duration(given.budget),
        )
        longer_s = parse_duration(given.scratch_budget) if given.scratch_budget else None
        lines = measure(
            given.data,
            backbones,
            given.output,
            budget_s,
            given.seeds,
            given.image_size,
            given.device,
            longer_s,
        )
        size = f" --image-size {given.image_size}" if given.image_size else ""
        rows = " ".join(f"--row {one.architecture}={shlex.quote(one.name)}" for one in backbones)
        longer = f" --scratch-budget {given.scratch_budget}" if given.scratch_budget else ""
        budgets = f"--budget {given.budget}{longer}"
        command = f"python -m tools.benchmarks.backbone_gain {given.data.name} {rows} {budgets} --seeds {given.seeds}{size} -o DIR"
        text = table(given.data.name, lines, budget_s, command, longer_s)
        if given.card:
            from tools.pretraining.release import RESULTS, write_card

            worth = read_json(given.card / RESULTS, ConfigError, "The backbone's results")["worth"]
            write_card(given.card, worth={**worth, f"{given.data.name}{size}": text})
    except EdgetlError as wrong:
        sys.exit(str(wrong))
    except KeyboardInterrupt:
        sys.exit("Interrupted; the same command goes on.")
    print(text)


if __name__ == "__main__":
    main()

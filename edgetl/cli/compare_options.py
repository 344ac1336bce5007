"""Options of `edgetl compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Data = Annotated[
    Path,
    typer.Argument(
        metavar="DATA",
        help="Folder with train/ and val/ folders of classes, or one folder of classes.",
        show_default=False,
    ),
]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        help="Experiment folder to write; an unfinished experiment in it is resumed.",
        show_default="experiments/<data>",
    ),
]
Models = Annotated[
    list[str] | None,
    typer.Option(
        help="Architectures, separated by commas; `edgetl models` lists them.",
        show_default="mobilenet_v2,resnet50",
    ),
]
Strategies = Annotated[
    list[str] | None,
    typer.Option(
        help="`scratch`: random weights. `head`: frozen backbone. `finetune`: the head, then the "
        "last blocks. `full`: the head, then all blocks. `freeze-sweep`: `finetune` with 0, 1/4, "
        "1/2, 3/4 and all of the blocks frozen.",
        show_default="scratch,head,finetune",
    ),
]
Seeds = Annotated[int, typer.Option(help="Runs per strategy, all on the same split.")]
Weights = Annotated[
    str | None,
    typer.Option(
        help="Pretrained weights, as for `edgetl finetune`.",
        show_default="imagenet",
    ),
]
ImageSize = Annotated[
    str,
    typer.Option(
        metavar="160,224",
        help="Side of the square input, in pixels.",
        show_default="the architecture's own",
    ),
]
Epochs = Annotated[int, typer.Option(help="Epochs per run, both phases together.")]
Budget = Annotated[
    str | None,
    typer.Option(
        metavar="30m",
        help="Time limit per run, instead of --epochs.",
        show_default="no limit",
    ),
]
TargetAccuracy = Annotated[
    float, typer.Option(help="Validation accuracy for which the time to reach it is reported.")
]
LatencyBudget = Annotated[
    str | None,
    typer.Option(
        metavar="5ms",
        help="Time each network on this device first and skip those with a higher p50.",
        show_default="no limit",
    ),
]
Preset = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Recipe shared by all runs.", show_default="default"),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="TOML file of options for `edgetl finetune`; options that a strategy sets are "
        "overridden.",
    ),
]
ValSplit = Annotated[
    float | None,
    typer.Option(
        help="Share of each class held out for validation if DATA has no val/.",
        show_default="0.2",
    ),
]
AllowLeaks = Annotated[
    bool,
    typer.Option(
        "--allow-leaks",
        help="Train even if images are in both train/ and val/, which inflates the accuracy.",
    ),
]
DeviceKind = Annotated[
    str | None,
    typer.Option(help="Device to train on: auto, cpu or cuda.", show_default="auto"),
]
Bench = Annotated[
    bool,
    typer.Option(
        "--bench/--no-bench", help="Export and benchmark the recommended run of each network."
    ),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Print the plan with time estimates from steps timed on this machine, and exit.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]

"""`edgetl demo`: the whole job on pictures made on the spot."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import Annotated

import typer

from edgetl.cli.console import out

MODEL, IMAGE_SIZE, EPOCHS = "resnet18", 64, 20
"""Of the small architectures the one that learns most from nothing in about a minute on two cores."""
PRETRAINED_EPOCHS = 5
TRAIN, VAL, PICTURE_SIZE, ROUNDS = 100, 20, 96, 4


def demo(
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The folder to write.", show_default="a new edgetl-demo")] = None,
    weights: Annotated[
        str,
        typer.Option(help="As in `edgetl finetune`. `none` needs no download and trains from nothing; `imagenet` shows what it costs."),
    ] = "none",
) -> None:
    """Run the whole job, offline: make pictures, fine-tune, export, bench against PyTorch, predict.

    Each step prints the command that does the same on your own images.
    """
    from edgetl.core.errors import DataError
    from edgetl.core.layout import free_name

    folder = output or free_name(Path(), "edgetl-demo")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder} exists and is not empty. Choose another place with -o.")
    from edgetl.cli.bench import bench
    from edgetl.cli.export import export
    from edgetl.cli.finetune import finetune
    from edgetl.cli.predict import predict
    from edgetl.train.pictures import PARTS, generate_parts

    started = time.perf_counter()
    data, run = folder / "data", folder / "run"
    out.rule("1  pictures", align="left")
    generate_parts(data, TRAIN, VAL, PICTURE_SIZE)
    counts = f"{TRAIN * len(PARTS)} training and {VAL * len(PARTS)} validation pictures"
    out.print(f"{counts} of {', '.join(sorted(PARTS))}: {data}", soft_wrap=True)

    epochs, finetune_epochs = (EPOCHS, 0) if weights == "none" else (PRETRAINED_EPOCHS, PRETRAINED_EPOCHS)
    _step(
        "2  fine-tune", "finetune", data, "-o", run, "--model", MODEL, "--weights", weights, "--image-size", IMAGE_SIZE,
        "--epochs", epochs, "--finetune-epochs", finetune_epochs,
    )  # fmt: skip
    finetune(data, run, model=MODEL, weights=weights, image_size=IMAGE_SIZE, epochs=epochs, finetune_epochs=finetune_epochs)

    _step("3  export", "export", run)
    export(str(run))

    _step("4  bench", "bench", run, "--rounds", ROUNDS)
    bench([str(run)], rounds=ROUNDS)

    picture = data / "val/gear/gear_0000.jpg"
    _step("5  predict", "predict", run / "bundle", picture, "--top-k", 3)
    predict(run / "bundle", [str(picture)], top_k=3)

    out.print()
    out.rule("what lies where", align="left")
    for path, what in (
        (data, "the pictures"),
        (run, "the run: weights, metrics, split"),
        (run / "plots", "curves, confusion matrix, worst mistakes"),
        (run / "bundle", "all that a device needs; copy this folder"),
        (run / "bench", "the benchmark's raw result"),
    ):
        out.print(f"  {path!s:<32} {what}", markup=False, soft_wrap=True)
    out.print(f"Done in {time.perf_counter() - started:.0f} s. On your own images: edgetl finetune DATA", markup=False)


def _step(title: str, *command: object) -> None:
    out.print()
    out.rule(title, align="left")
    out.print("$ edgetl " + shlex.join(map(str, command)), style="dim", markup=False, soft_wrap=True)

"""`edgetl finetune`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgetl.cli.console import err, out
from edgetl.core.config import Augment, Device, FinetuneConfig, Precision

if TYPE_CHECKING:
    from edgetl.core.layout import RunDirectory

MODEL, TRAINING, MACHINE = "Model", "Training", "Machine"


def finetune(
    data: Annotated[
        Path,
        typer.Argument(
            help="A folder with train/ and val/ folders of classes, or one folder of classes.", metavar="DATA", show_default=False
        ),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The run directory to write.", show_default="runs/<data>-<model>")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing run directory.")] = False,
    model: Annotated[
        str, typer.Option(help="A torchvision classification architecture; `edgetl models` lists them.", rich_help_panel=MODEL)
    ] = FinetuneConfig.model,
    weights: Annotated[
        str,
        typer.Option(
            help="imagenet (torchvision's download), none, a .safetensors or .pth file, or a folder of <architecture>.safetensors.",
            rich_help_panel=MODEL,
        ),
    ] = FinetuneConfig.weights,
    image_size: Annotated[
        int | None,
        typer.Option(help="Side of the network's square input, pixels.", show_default="the architecture's own", rich_help_panel=MODEL),
    ] = None,
    epochs: Annotated[
        int, typer.Option(help="Epochs of phase 1: the new head on the frozen backbone.", rich_help_panel=TRAINING)
    ] = FinetuneConfig.epochs,
    lr: Annotated[float, typer.Option(help="Adam's learning rate in phase 1.", rich_help_panel=TRAINING)] = FinetuneConfig.lr,
    unfreeze: Annotated[
        str,
        typer.Option(
            help="What phase 2 trains besides the head: a number of last blocks, head (none of them), all, or auto: "
            "the fewest last blocks with half of the backbone's parameters (3 of mobilenet_v2's 19).",
            rich_help_panel=TRAINING,
        ),
    ] = FinetuneConfig.unfreeze,
    finetune_epochs: Annotated[int, typer.Option(help="Epochs of phase 2.", rich_help_panel=TRAINING)] = FinetuneConfig.finetune_epochs,
    finetune_lr: Annotated[
        float, typer.Option(help="Adam's learning rate in phase 2.", rich_help_panel=TRAINING)
    ] = FinetuneConfig.finetune_lr,
    batch_size: Annotated[int, typer.Option(help="Images a step.", rich_help_panel=TRAINING)] = FinetuneConfig.batch_size,
    augment: Annotated[Augment, typer.Option(help="Strength of the augmentation of training images.", rich_help_panel=TRAINING)] = "light",
    val_split: Annotated[
        float,
        typer.Option(
            help="Share of each class held back for validation where DATA has no val/ of its own; 0 trains without validation.",
            rich_help_panel=TRAINING,
        ),
    ] = FinetuneConfig.val_split,
    seed: Annotated[
        int, typer.Option(help="Seed of the split, the head, the order of images and the augmentation.", rich_help_panel=TRAINING)
    ] = FinetuneConfig.seed,
    device: Annotated[Device, typer.Option(help="Where to train; auto takes CUDA where there is one.", rich_help_panel=MACHINE)] = "auto",
    precision: Annotated[
        Precision, typer.Option(help="Arithmetic; auto is bf16 on CUDA devices that have it, fp32 elsewhere.", rich_help_panel=MACHINE)
    ] = "auto",
    workers: Annotated[
        int | None,
        typer.Option(
            help="Processes that decode and augment; 0 works in the training process.", show_default="by cores", rich_help_panel=MACHINE
        ),
    ] = None,
) -> None:
    """Adapt a pretrained classifier to a folder of images.

    Writes a run directory: the weights of the best epoch, metrics, the split, and plots. `edgetl export RUN` is next.
    """
    config = FinetuneConfig(
        data=data,
        output=output,
        model=model,
        weights=weights,
        image_size=image_size,
        epochs=epochs,
        lr=lr,
        unfreeze=unfreeze,
        finetune_epochs=finetune_epochs,
        finetune_lr=finetune_lr,
        batch_size=batch_size,
        augment=augment,
        val_split=val_split,
        device=device,
        precision=precision,
        workers=workers,
        seed=seed,
        force=force,
    )
    from edgetl.cli.finetune_progress import open_progress
    from edgetl.train.finetune import finetune as run_finetune

    try:
        with open_progress(err) as progress:
            run = run_finetune(config, progress)
    except KeyboardInterrupt as interrupt:
        # Typer would turn it into a bare exit status and lose what it says.
        err.print(str(interrupt) or "Interrupted: nothing was kept.", style="yellow", markup=False, soft_wrap=True)
        raise typer.Exit(130) from None
    _summarise(run)


def _summarise(run: RunDirectory) -> None:
    from edgetl.core.errors import RunError
    from edgetl.core.files import read_json

    metrics = read_json(run.metrics, RunError, "The run's metrics")
    path = shown(run.path)
    out.print(f"\n{metrics['model']}, {len(metrics['classes'])} classes, best epoch {metrics['best_epoch']}", markup=False)
    out.print(_accuracy(metrics["val"]), style="bold", markup=False, soft_wrap=True)
    out.print(f"Time: {metrics['seconds']['total']:.0f} s on {metrics['device']} ({metrics['precision']})", markup=False)
    out.print(f"Run: {path}  (plots in {path / 'plots'})", markup=False, soft_wrap=True)
    out.print(f"Next: edgetl export {path}", markup=False, soft_wrap=True)


def _accuracy(val: dict[str, Any] | None) -> str:
    if val is None:
        return "Validation accuracy: unknown, there were no validation images."
    low, high = val["accuracy_ci95"]
    return f"Validation accuracy: {val['accuracy']:.1%} of {val['images']} images (95% interval {low:.1%} to {high:.1%})"


def shown(path: Path) -> Path:
    """Relative to the current folder where it lies inside."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path

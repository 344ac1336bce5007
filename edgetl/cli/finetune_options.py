"""The options of `edgetl finetune`: one for each field of FinetuneConfig, None where it was not given.

A preset and a file may set what was not given, so nothing has a default here; help shows the preset `default`'s.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from edgetl.core.config.finetune import (
    BatchNorm,
    ClassWeights,
    Device,
    FinetuneConfig,
    InputDevice,
    Precision,
    Sampling,
    Schedule,
)

_DATA_DEPENDENT_DEFAULT = "{}, by what phase 1 leaves to learn"
MODEL_PANEL, RECIPE_PANEL, DATA_PANEL, MACHINE_PANEL = (
    "Model",
    "Recipe",
    "Data and augmentation",
    "Machine",
)


def _make_option(panel: str, field: str, text: str, unset: str = "", **more: Any) -> Any:
    """An option of that panel; `unset` says what happens without it where the field's default is None."""
    default = getattr(FinetuneConfig, field)
    if default is not None and not isinstance(default, bool):
        unset = f"{default:g}" if isinstance(default, float) else str(default)
    return typer.Option(
        "--" + field.replace("_", "-"), help=text, show_default=unset, rich_help_panel=panel, **more
    )


Data = Annotated[
    Path | None,
    typer.Argument(
        help="A folder with train/ and val/ folders of classes, or one folder of classes.",
        metavar="DATA",
        show_default=False,
    ),
]
Resume = Annotated[
    Path | None,
    typer.Option(
        "--resume",
        metavar="RUN",
        help="Go on with a run that was ended, from its last checkpoint; takes nothing else.",
    ),
]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output", "-o", help="The run directory to write.", show_default="runs/<data>-<model>"
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing run directory.")]
Preset = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Recipe for what is given neither here nor in --config; `edgetl presets` lists them.",
        show_default=FinetuneConfig.preset,
    ),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="TOML file of options by name; above the preset, below options. `edgetl presets NAME` writes one. Or "
        "RUN/config.json: that run again, with what it chose by timing.",
    ),
]

Model = Annotated[
    str | None,
    _make_option(
        MODEL_PANEL,
        "model",
        "A torchvision classification architecture; `edgetl models` lists them.",
    ),
]
Weights = Annotated[
    str | None,
    _make_option(
        MODEL_PANEL,
        "weights",
        "imagenet (torchvision's download), builtin (ships with edgetl for some models), none, a .safetensors or .pth file, or a folder of "
        "<architecture>.safetensors.",
    ),
]
ImageSize = Annotated[
    int | None,
    _make_option(
        MODEL_PANEL,
        "image_size",
        "Side of the network's square input, pixels.",
        "the architecture's own",
    ),
]
HeadWidth = Annotated[
    int | None,
    _make_option(
        MODEL_PANEL,
        "head_width",
        "Width of the new head's hidden layer; 0 is a single linear layer.",
    ),
]
Dropout = Annotated[
    float | None, _make_option(MODEL_PANEL, "dropout", "Dropout before the new head.")
]

Epochs = Annotated[
    int | None,
    _make_option(RECIPE_PANEL, "epochs", "Epochs of phase 1: the new head on the frozen backbone."),
]
Lr = Annotated[float | None, _make_option(RECIPE_PANEL, "lr", "Adam's learning rate in phase 1.")]
Unfreeze = Annotated[
    str | None,
    _make_option(
        RECIPE_PANEL,
        "unfreeze",
        "What phase 2 trains besides the head: a number of last blocks, a share like 75% (the fewest last blocks with that much "
        "of the backbone's parameters: 5 of mobilenet_v2's 19), head (none of them), all, or auto (50%).",
    ),
]
FinetuneEpochs = Annotated[
    int | None,
    _make_option(
        RECIPE_PANEL,
        "finetune_epochs",
        "Epochs of phase 2.",
        _DATA_DEPENDENT_DEFAULT.format("5 to 8"),
    ),
]
FinetuneLr = Annotated[
    float | None,
    _make_option(
        RECIPE_PANEL,
        "finetune_lr",
        "Adam's learning rate in phase 2.",
        _DATA_DEPENDENT_DEFAULT.format("2e-4 to 1e-3"),
    ),
]
BatchSize = Annotated[
    str | None,
    _make_option(
        RECIPE_PANEL,
        "batch_size",
        "Images a step; auto takes as many as the GPU is fastest with, and scales learning rates by the square root of the ratio.",
        "about 32 steps an epoch, 16 to 64",
        metavar="IMAGES|auto",
    ),
]
BatchNormMode = Annotated[
    BatchNorm | None,
    _make_option(
        RECIPE_PANEL,
        "batch_norm",
        "BatchNorm of the blocks that phase 2 trains: eval keeps its statistics, train takes each batch's; auto keeps them where "
        "phase 1 left next to nothing to learn.",
    ),
]
ScheduleKind = Annotated[
    Schedule | None,
    _make_option(
        RECIPE_PANEL,
        "schedule",
        "Learning rate within a phase: constant, or down to 0 along a cosine.",
    ),
]
Warmup = Annotated[
    float | None,
    _make_option(
        RECIPE_PANEL,
        "warmup",
        "Share of a phase's steps in which the learning rate rises linearly from 0, in [0, 1).",
    ),
]
LrDecay = Annotated[
    float | None,
    _make_option(
        RECIPE_PANEL,
        "lr_decay",
        "Factor on phase 2's learning rate for each block further from the head, in (0, 1].",
    ),
]
WeightDecay = Annotated[
    float | None,
    _make_option(
        RECIPE_PANEL, "weight_decay", "Decoupled weight decay (AdamW) of all but norms and biases."
    ),
]
ClipGradient = Annotated[
    float | None,
    _make_option(
        RECIPE_PANEL, "clip_gradient", "Largest L2 norm of a step's gradient; 0 does not clip."
    ),
]
LabelSmoothing = Annotated[
    float | None,
    _make_option(
        RECIPE_PANEL, "label_smoothing", "Share of the target spread over all classes, in [0, 1)."
    ),
]
Ema = Annotated[
    float | None,
    _make_option(
        RECIPE_PANEL,
        "ema",
        "Decay of a moving average of the weights, which is then validated and kept, in [0, 1); 0 is off.",
    ),
]
Patience = Annotated[
    int | None,
    _make_option(
        RECIPE_PANEL,
        "patience",
        "Epochs without a better one after which a phase ends.",
        "all epochs are trained",
    ),
]
TargetAccuracy = Annotated[
    float | None,
    _make_option(
        RECIPE_PANEL,
        "target_accuracy",
        "Validation accuracy at which training ends, in (0, 1].",
        "all epochs are trained",
    ),
]
Budget = Annotated[
    str | None,
    typer.Option(
        "--budget",
        metavar="TIME",
        help="Time in which the whole run is to finish, as 90s, 25m or 1h30m; epochs and views are then set from measured steps.",
        show_default="no limit",
        rich_help_panel=RECIPE_PANEL,
    ),
]

Augmentation = Annotated[
    str | None,
    _make_option(
        DATA_PANEL,
        "augment",
        "Augmentation of training images: none, light, medium, strong, or a FILE, a pipeline saved by albumentations (A.save).",
        metavar="STRENGTH|FILE",
    ),
]
Views = Annotated[
    int | None,
    _make_option(
        DATA_PANEL,
        "views",
        "Views of each image that the epochs go through in turn: the image itself, then augmented ones.",
        "3 where they are cached, else a new one each epoch",
    ),
]
Mixup = Annotated[
    float | None,
    _make_option(
        DATA_PANEL,
        "mixup",
        "Alpha of mixup where training begins (pixels, or cached activations); 0 is off.",
    ),
]
Cutmix = Annotated[
    float | None,
    _make_option(
        DATA_PANEL,
        "cutmix",
        "Alpha of CutMix, at the same place; with mixup, each step takes one by chance; 0 is off.",
    ),
]
ClassWeighting = Annotated[
    ClassWeights | None,
    _make_option(
        DATA_PANEL,
        "class_weights",
        "`balanced` weights the loss by the inverse of each class's share of the images.",
    ),
]
SamplingKind = Annotated[
    Sampling | None,
    _make_option(
        DATA_PANEL,
        "sampling",
        "`balanced` draws every class equally often; an epoch stays as long.",
    ),
]
ValSplit = Annotated[
    float | None,
    _make_option(
        DATA_PANEL,
        "val_split",
        "Share of each class held back for validation where DATA has no val/ of its own; 0 trains without validation.",
    ),
]
AllowLeaks = Annotated[
    bool | None,
    _make_option(
        DATA_PANEL,
        "allow_leaks",
        "Train though images are in both train/ and val/; accuracy is then flattered.",
    ),
]
Seed = Annotated[
    int | None,
    _make_option(
        DATA_PANEL, "seed", "Seed of the head, the order of images, the augmentation and the split."
    ),
]
SplitSeed = Annotated[
    int | None,
    _make_option(
        DATA_PANEL,
        "split_seed",
        "Seed of the split alone: runs of several seeds on the same validation images.",
        "that of --seed",
    ),
]

DeviceKind = Annotated[
    Device | None,
    _make_option(MACHINE_PANEL, "device", "Where to train; auto takes CUDA where there is one."),
]
PrecisionKind = Annotated[
    Precision | None,
    _make_option(
        MACHINE_PANEL,
        "precision",
        "Arithmetic; auto is bf16 on GPUs that have it, fp16 on older ones with tensor cores, on CPUs with bf16 what is measured faster.",
    ),
]
InputDeviceKind = Annotated[
    InputDevice | None,
    _make_option(
        MACHINE_PANEL,
        "input_device",
        "Where training images are decoded and augmented; auto measures both when training on a GPU and takes the faster.",
    ),
]
Workers = Annotated[
    int | None,
    _make_option(
        MACHINE_PANEL,
        "workers",
        "Processes that decode and augment; 0 works in the training process.",
        "the cores that training leaves",
    ),
]
CacheBudget = Annotated[
    str | None,
    _make_option(
        MACHINE_PANEL,
        "cache_budget",
        "Room for activations of frozen blocks, and as much for decoded images until those are there: 500MB, 2GB; 0 caches nothing.",
        "a quarter of the free memory",
        metavar="SIZE",
    ),
]
Compile = Annotated[
    bool | None,
    typer.Option(
        "--compile/--no-compile",
        help="Compile what is trained with torch.compile.",
        show_default="compile" if FinetuneConfig.compile else "no-compile",
        rich_help_panel=MACHINE_PANEL,
    ),
]
Deterministic = Annotated[
    bool | None,
    _make_option(
        MACHINE_PANEL,
        "deterministic",
        "Decide nothing by timing or free memory, and on a GPU take only algorithms that compute the same again; says what that costs.",
    ),
]
TensorBoard = Annotated[
    bool | None,
    _make_option(
        MACHINE_PANEL, "tensorboard", "Write event files for TensorBoard into RUN/tensorboard."
    ),
]
MLflow = Annotated[
    str | None,
    _make_option(
        MACHINE_PANEL,
        "mlflow",
        "Give every epoch's figures to MLflow.",
        "none",
        metavar="FOLDER|URL",
    ),
]

"""Options of `edgetl finetune`, one per field of FinetuneConfig.

All default to None, because a preset or a config file may set them. The help shows the values of
the preset `default`.
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

_DATA_DEPENDENT_DEFAULT = "{}, depending on the result of phase 1"
MODEL_PANEL = "Model"
RECIPE_PANEL = "Recipe"
DATA_PANEL = "Data and augmentation"
MACHINE_PANEL = "Machine"


def _make_option(panel: str, field: str, text: str, unset: str = "", **more: Any) -> Any:
    """Create the option of a config field.

    `unset` describes the behavior without the option if the default of the field is None.
    """
    default = getattr(FinetuneConfig, field)
    if default is not None and not isinstance(default, bool):
        unset = f"{default:g}" if isinstance(default, float) else str(default)
    return typer.Option(
        "--" + field.replace("_", "-"),
        help=text,
        show_default=unset or False,
        rich_help_panel=panel,
        **more,
    )


Data = Annotated[
    Path | None,
    typer.Argument(
        help="Folder with train/ and val/ folders of classes, or one folder of classes.",
        metavar="DATA",
        show_default=False,
    ),
]
Resume = Annotated[
    Path | None,
    typer.Option(
        "--resume",
        metavar="RUN",
        help="Resume an interrupted run from its last checkpoint. Cannot be combined with other "
        "options.",
    ),
]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output", "-o", help="Run directory to write.", show_default="runs/<data>-<model>"
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing run directory.")]
Preset = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Recipe for options set neither here nor in --config; `edgetl presets` lists them.",
        show_default=FinetuneConfig.preset,
    ),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="TOML file of options, which override the preset; `edgetl presets NAME` prints one. "
        "Or RUN/config.json, to repeat a run with its options and its timing-based choices.",
    ),
]

Model = Annotated[
    str | None,
    _make_option(
        MODEL_PANEL,
        "model",
        "Torchvision classification architecture; `edgetl models` lists them.",
    ),
]
Weights = Annotated[
    str | None,
    _make_option(
        MODEL_PANEL,
        "weights",
        "Pretrained weights: imagenet (downloaded by torchvision), builtin (shipped with edgetl, "
        "for some models), none, a .safetensors or .pth file, or a folder of "
        "<architecture>.safetensors files.",
    ),
]
ImageSize = Annotated[
    int | None,
    _make_option(
        MODEL_PANEL,
        "image_size",
        "Side of the square input, in pixels.",
        "the architecture's own",
    ),
]
HeadWidth = Annotated[
    int | None,
    _make_option(
        MODEL_PANEL,
        "head_width",
        "Width of the hidden layer of the new head; 0 for a single linear layer.",
    ),
]
Dropout = Annotated[
    float | None, _make_option(MODEL_PANEL, "dropout", "Dropout rate before the new head.")
]

Epochs = Annotated[
    int | None,
    _make_option(RECIPE_PANEL, "epochs", "Epochs of phase 1: the new head on the frozen backbone."),
]
Lr = Annotated[float | None, _make_option(RECIPE_PANEL, "lr", "Learning rate of Adam in phase 1.")]
Unfreeze = Annotated[
    str | None,
    _make_option(
        RECIPE_PANEL,
        "unfreeze",
        "Blocks that phase 2 trains besides the head: a number of last blocks, a share such as 75% "
        "(the fewest last blocks with that share of the backbone's parameters, 5 of 19 in "
        "mobilenet_v2), head (no blocks), all, or auto (50%).",
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
        "Learning rate of Adam in phase 2.",
        _DATA_DEPENDENT_DEFAULT.format("2e-4 to 1e-3"),
    ),
]
BatchSize = Annotated[
    str | None,
    _make_option(
        RECIPE_PANEL,
        "batch_size",
        "Batch size. auto uses the size with the highest throughput on the GPU and scales the "
        "learning rates by the square root of the ratio.",
        "16 to 64, for about 32 steps per epoch",
        metavar="IMAGES|auto",
    ),
]
BatchNormMode = Annotated[
    BatchNorm | None,
    _make_option(
        RECIPE_PANEL,
        "batch_norm",
        "BatchNorm mode of the blocks that phase 2 trains: eval uses the running statistics, train "
        "the statistics of each batch. auto uses eval if phase 1 leaves little to learn.",
    ),
]
ScheduleKind = Annotated[
    Schedule | None,
    _make_option(
        RECIPE_PANEL,
        "schedule",
        "Learning rate schedule of each phase: constant, or cosine decay to 0.",
    ),
]
Warmup = Annotated[
    float | None,
    _make_option(
        RECIPE_PANEL,
        "warmup",
        "Share of the steps of each phase for linear learning rate warm-up from 0, in [0, 1).",
    ),
]
LrDecay = Annotated[
    float | None,
    _make_option(
        RECIPE_PANEL,
        "lr_decay",
        "Layer-wise learning rate decay in phase 2, per block from the head, in (0, 1].",
    ),
]
WeightDecay = Annotated[
    float | None,
    _make_option(
        RECIPE_PANEL,
        "weight_decay",
        "Decoupled weight decay (AdamW), applied to all parameters except norms and biases.",
    ),
]
ClipGradient = Annotated[
    float | None,
    _make_option(
        RECIPE_PANEL,
        "clip_gradient",
        "Clip the gradient to this L2 norm; 0 to disable.",
    ),
]
LabelSmoothing = Annotated[
    float | None,
    _make_option(RECIPE_PANEL, "label_smoothing", "Label smoothing, in [0, 1)."),
]
Ema = Annotated[
    float | None,
    _make_option(
        RECIPE_PANEL,
        "ema",
        "Decay of an exponential moving average of the weights, which is then validated and saved, "
        "in [0, 1); 0 to disable.",
    ),
]
Patience = Annotated[
    int | None,
    _make_option(
        RECIPE_PANEL,
        "patience",
        "Stop a phase after this many epochs without improvement.",
        "no early stopping",
    ),
]
TargetAccuracy = Annotated[
    float | None,
    _make_option(
        RECIPE_PANEL,
        "target_accuracy",
        "Stop training at this validation accuracy, in (0, 1].",
        "no early stopping",
    ),
]
Budget = Annotated[
    str | None,
    typer.Option(
        "--budget",
        metavar="TIME",
        help="Time limit for the run, such as 90s, 25m or 1h30m. Epochs and views are then set "
        "from measured step times.",
        show_default="no limit",
        rich_help_panel=RECIPE_PANEL,
    ),
]

Augmentation = Annotated[
    str | None,
    _make_option(
        DATA_PANEL,
        "augment",
        "Augmentation of training images: none, light, medium, strong, or a pipeline file saved by "
        "albumentations (A.save).",
        metavar="STRENGTH|FILE",
    ),
]
Views = Annotated[
    int | None,
    _make_option(
        DATA_PANEL,
        "views",
        "Number of views of each image that the epochs cycle through: the original, then augmented "
        "ones.",
        "3 if cached, otherwise a new one each epoch",
    ),
]
Mixup = Annotated[
    float | None,
    _make_option(
        DATA_PANEL,
        "mixup",
        "Mixup alpha, applied at the input of the trained blocks (pixels or cached features); 0 to "
        "disable.",
    ),
]
Cutmix = Annotated[
    float | None,
    _make_option(
        DATA_PANEL,
        "cutmix",
        "CutMix alpha, applied like --mixup; with both, each step uses one at random. 0 to "
        "disable.",
    ),
]
ClassWeighting = Annotated[
    ClassWeights | None,
    _make_option(
        DATA_PANEL,
        "class_weights",
        "Class weights of the loss: none, or balanced (inverse class frequency).",
    ),
]
SamplingKind = Annotated[
    Sampling | None,
    _make_option(
        DATA_PANEL,
        "sampling",
        "Sampling of training images: shuffled, or balanced (all classes equally often). The "
        "length of an epoch does not change.",
    ),
]
ValSplit = Annotated[
    float | None,
    _make_option(
        DATA_PANEL,
        "val_split",
        "Share of each class held out for validation if DATA has no val/; 0 to train without "
        "validation.",
    ),
]
AllowLeaks = Annotated[
    bool | None,
    _make_option(
        DATA_PANEL,
        "allow_leaks",
        "Train even if images are in both train/ and val/, which inflates the accuracy.",
    ),
]
Seed = Annotated[
    int | None,
    _make_option(
        DATA_PANEL,
        "seed",
        "Random seed of the head, the order of images, the augmentation and the split.",
    ),
]
SplitSeed = Annotated[
    int | None,
    _make_option(
        DATA_PANEL,
        "split_seed",
        "Random seed of the split only, to use the same validation images with different seeds.",
        "same as --seed",
    ),
]

DeviceKind = Annotated[
    Device | None,
    _make_option(MACHINE_PANEL, "device", "Device to train on. auto uses CUDA if available."),
]
PrecisionKind = Annotated[
    Precision | None,
    _make_option(
        MACHINE_PANEL,
        "precision",
        "Precision of training. auto uses bf16 on GPUs that support it, fp16 on older GPUs with "
        "tensor cores, and on CPUs with bf16 whichever is measured to be faster.",
    ),
]
InputDeviceKind = Annotated[
    InputDevice | None,
    _make_option(
        MACHINE_PANEL,
        "input_device",
        "Device to decode and augment training images on. auto measures both if training on a GPU "
        "and uses the faster.",
    ),
]
Workers = Annotated[
    int | None,
    _make_option(
        MACHINE_PANEL,
        "workers",
        "Number of data loading processes; 0 to load in the training process.",
        "the cores not used for training",
    ),
]
CacheBudget = Annotated[
    str | None,
    _make_option(
        MACHINE_PANEL,
        "cache_budget",
        "Memory for cached features of the frozen blocks, and as much again for decoded images "
        "until they are computed, such as 500MB or 2GB; 0 to disable caching.",
        "a quarter of the free memory",
        metavar="SIZE",
    ),
]
Compile = Annotated[
    bool | None,
    typer.Option(
        "--compile/--no-compile",
        help="Compile the trained blocks with torch.compile.",
        show_default="compile" if FinetuneConfig.compile else "no-compile",
        rich_help_panel=MACHINE_PANEL,
    ),
]
Deterministic = Annotated[
    bool | None,
    _make_option(
        MACHINE_PANEL,
        "deterministic",
        "Make no choices by timing or free memory, and use deterministic algorithms on a GPU. The "
        "slowdown is reported.",
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
        "Log the metrics of each epoch to MLflow.",
        "none",
        metavar="FOLDER|URL",
    ),
]

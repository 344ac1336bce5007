"""Configuration of `edgetl finetune`, stored in the run's config.json."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from edgetl.core.config.model_names import ModelName, name_model
from edgetl.core.config.options import (
    MAX_SEED,
    check,
    config_to_json,
    option,
    repr_config,
    validate,
)
from edgetl.core.config.parsers import abbreviate, parse_duration, parse_size
from edgetl.core.errors import ConfigError
from edgetl.core.paths import OptionalPath, RequiredPath
from edgetl.core.preprocessing import MAX_RESIZE
from edgetl.core.typed_json import parse_as

AugmentationStrength = Literal["none", "light", "medium", "strong"]
BatchNorm = Literal["auto", "eval", "train"]
ClassWeights = Literal["none", "balanced"]
Sampling = Literal["shuffled", "balanced"]
Schedule = Literal["constant", "cosine"]
Device = Literal["auto", "cpu", "cuda"]
InputDevice = Literal["auto", "cpu", "cuda"]
InterpolationChoice = Literal["auto", "bilinear", "bicubic"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
MAX_IMAGE_SIZE = MAX_RESIZE * 224 // 256
"""Largest image size, pixels; images are resized to 256/224 of it before the crop."""
MAX_HEAD_WIDTH = 16_384
"""Largest head width, four times that of VGG, the widest in torchvision (4096); wider heads would
take gigabytes without benefit."""
MAX_EPOCHS, MAX_VIEWS, MAX_WORKERS = 1_000_000, 10_000, 256
"""Limits without known use for more; a longer list of views or more processes would exhaust the
memory."""
MAX_LR = 1e30
MODEL, RECIPE, DATA, MACHINE = "Model", "Recipe", "Data and augmentation", "Machine"
"""Panels of `--help-all`."""


def parse_batch_size(text: str) -> int | Literal["auto"]:
    """Parse a batch size: `auto` or a number of images.

    Raises:
        ConfigError: The text is neither.
    """
    if text == "auto":
        return "auto"
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise ConfigError(f"must be a number of images or auto, got {text!r}.")
    return int(text)


def parse_augment(text: str) -> str | Path:
    """Parse an augmentation: a strength, or the path of an existing file.

    Raises:
        ConfigError: The text is neither.
    """
    strengths = get_args(AugmentationStrength)
    if text in strengths:
        return text
    # A text with a NUL, one too long for a file name, or a folder without permission.
    with suppress(OSError, ValueError):
        if Path(text).is_file():
            return Path(text)
    raise ConfigError(
        f"must be one of {', '.join(strengths)} or a file (a pipeline saved by albumentations), "
        f"got {abbreviate(text)}."
    )


@dataclass(frozen=True)
class FinetuneConfig:
    """Options of `edgetl finetune`; defaults are those of the preset `default`."""

    data: RequiredPath
    """Folder with train/, val/ and test/ folders of classes, or with one folder for each class."""
    output: OptionalPath = option(
        None,
        help="Run directory to write.",
        short="o",
        unset="runs/<data>-<model>",
        basic=True,
        in_files=False,
    )
    model: ModelName = option(
        "mobilenet_v2",
        help="Classification architecture; `edgetl models` lists them. Or a function that returns "
        "a model of your own, as module:function.",
        panel=MODEL,
        basic=True,
        affects_choices=True,
    )
    weights: str = option(
        "auto",
        help="Pretrained weights: imagenet (downloaded, or from the extra lite), builtin "
        "(shipped with edgetl, for some models), none, a .safetensors or .pth file, or a folder of "
        "<architecture>.safetensors files. auto is imagenet, or for a model of your own the values "
        "that its function returns.",
        panel=MODEL,
        basic=True,
    )
    image_size: int | None = option(
        None,
        help="Side of the square input, in pixels.",
        unset="the architecture's own",
        panel=MODEL,
        basic=True,
        ge=32,
        le=MAX_IMAGE_SIZE,
        unit="pixels",
        affects_choices=True,
    )
    interpolation: InterpolationChoice = option(
        "auto",
        help="Interpolation of the resize in preprocessing. auto uses the one that the model's "
        "pretrained weights were evaluated with.",
        panel=MODEL,
    )
    preset: str = option(
        "default",
        help="Recipe for options set neither here nor in --config; `edgetl presets` lists them.",
        metavar="NAME",
        basic=True,
    )

    epochs: int = option(
        10,
        help="Epochs of phase 1: the new head on the frozen backbone.",
        panel=RECIPE,
        basic=True,
        preset=True,
        ge=0,
        le=MAX_EPOCHS,
        affects_choices=True,
    )
    lr: float = option(
        2e-3, help="Learning rate of Adam in phase 1.", panel=RECIPE, preset=True, gt=0, le=MAX_LR
    )
    unfreeze: str = option(
        "auto",
        help="Blocks that phase 2 trains besides the head: a number of last blocks, a share such "
        "as 75% (the fewest last blocks with that share of the backbone's parameters, 5 of 19 in "
        "mobilenet_v2), head (no blocks), all, or auto (50%).",
        panel=RECIPE,
        preset=True,
        integer_as_text=True,
        affects_choices=True,
    )
    finetune_epochs: int | None = option(
        None,
        help="Epochs of phase 2.",
        unset="5 to 8, depending on the result of phase 1",
        panel=RECIPE,
        basic=True,
        preset=True,
        ge=0,
        le=MAX_EPOCHS,
        affects_choices=True,
    )
    """None: see edgetl.train.engine.phases."""
    finetune_lr: float | None = option(
        None,
        help="Learning rate of Adam in phase 2.",
        unset="2e-4 to 1e-3, depending on the result of phase 1",
        panel=RECIPE,
        preset=True,
        gt=0,
        le=MAX_LR,
    )
    """None: see edgetl.train.engine.phases."""
    batch_size: int | Literal["auto"] | None = option(
        None,
        help="Batch size. auto uses the size with the highest throughput on the GPU and scales "
        "the learning rates by the square root of the ratio.",
        unset="16 to 64, for about 32 steps per epoch",
        metavar="IMAGES|auto",
        panel=RECIPE,
        preset=True,
        parse=parse_batch_size,
        none_word="usual",
        ge=1,
        affects_choices=True,
    )
    """None: the power of two nearest to 32 steps an epoch; `auto`: see
    edgetl.train.engine.batch_size."""
    batch_norm: BatchNorm = option(
        "auto",
        help="BatchNorm mode of the blocks that phase 2 trains: eval uses the running statistics, "
        "train the statistics of each batch. auto uses eval if phase 1 leaves little to learn.",
        panel=RECIPE,
        preset=True,
        affects_choices=True,
    )
    """`auto`: see edgetl.train.engine.phases."""
    schedule: Schedule = option(
        "cosine",
        help="Learning rate schedule of each phase: constant, or cosine decay to 0.",
        panel=RECIPE,
        preset=True,
    )
    """Cosine decay: Loshchilov and Hutter, 2017."""
    warmup: float = option(
        0.1,
        help="Share of the steps of each phase for linear learning rate warm-up from 0, in [0, 1).",
        panel=RECIPE,
        preset=True,
        ge=0,
        lt=1,
    )
    lr_decay: float = option(
        1.0,
        help="Layer-wise learning rate decay in phase 2, per block from the head, in (0, 1].",
        panel=RECIPE,
        preset=True,
        gt=0,
        le=1,
    )
    """Discriminative fine-tuning: Howard and Ruder, 2018."""
    weight_decay: float = option(
        0.0,
        help="Decoupled weight decay (AdamW), applied to all parameters except norms and biases.",
        panel=RECIPE,
        preset=True,
        ge=0,
    )
    """Loshchilov and Hutter, 2019."""
    clip_gradient: float = option(
        0.0,
        help="Clip the gradient to this L2 norm; 0 to disable.",
        panel=RECIPE,
        preset=True,
        ge=0,
    )
    label_smoothing: float = option(
        0.0, help="Label smoothing, in [0, 1).", panel=RECIPE, preset=True, ge=0, lt=1
    )
    """Share of the target distributed over all classes (Szegedy et al., 2016)."""
    mixup: float = option(
        0.0,
        help="Mixup alpha, applied at the input of the trained blocks (pixels or cached "
        "features); 0 to disable.",
        panel=DATA,
        preset=True,
        ge=0,
    )
    """Zhang et al., 2018, for pixels; Verma et al., 2019, for features."""
    cutmix: float = option(
        0.0,
        help="CutMix alpha, applied like --mixup; with both, each step uses one at random. 0 to "
        "disable.",
        panel=DATA,
        preset=True,
        ge=0,
    )
    """Yun et al., 2019."""
    ema: float = option(
        0.0,
        help="Decay of an exponential moving average of the weights, which is then validated and "
        "saved, in [0, 1); 0 to disable.",
        panel=RECIPE,
        preset=True,
        ge=0,
        lt=1,
    )
    class_weights: ClassWeights = option(
        "none",
        help="Class weights of the loss: none, or balanced (inverse class frequency).",
        panel=DATA,
        preset=True,
    )
    sampling: Sampling = option(
        "shuffled",
        help="Sampling of training images: shuffled, or balanced (all classes equally often). The "
        "length of an epoch does not change.",
        panel=DATA,
        preset=True,
    )
    patience: int | None = option(
        None,
        help="Stop a phase after this many epochs without improvement.",
        unset="no early stopping",
        panel=RECIPE,
        ge=1,
    )
    target_accuracy: float | None = option(
        None,
        help="Stop training at this validation accuracy, in (0, 1].",
        unset="no early stopping",
        panel=RECIPE,
        gt=0,
        le=1,
    )
    budget_s: float | None = option(
        None,
        help="Time limit for the run, such as 90s, 25m or 1h30m. Epochs and views are then set "
        "from measured step times.",
        unset="no limit",
        metavar="TIME",
        panel=RECIPE,
        basic=True,
        parse=parse_duration,
        gt=0,
        affects_choices=True,
    )
    head_width: int = option(
        0,
        help="Width of the hidden layer of the new head; 0 for a single linear layer.",
        panel=MODEL,
        preset=True,
        ge=0,
        le=MAX_HEAD_WIDTH,
        affects_choices=True,
    )
    dropout: float = option(
        0.2, help="Dropout rate before the new head.", panel=MODEL, preset=True, ge=0, lt=1
    )
    augment: AugmentationStrength = option(
        "light",
        help="Augmentation of training images: none, light, medium, strong, or a pipeline file "
        "saved by albumentations (A.save).",
        metavar="STRENGTH|FILE",
        panel=DATA,
        preset=True,
        parse=parse_augment,
        path_field="augment_file",
        affects_choices=True,
    )
    augment_file: OptionalPath = option(
        None,
        help="File of a pipeline saved by albumentations (`A.save`), used instead of `augment`.",
        panel=DATA,
        command_line=False,
        affects_choices=True,
    )
    views: int | None = option(
        None,
        help="Number of views of each image that the epochs cycle through: the original, then "
        "augmented ones.",
        unset="3 if cached, otherwise a new one each epoch",
        panel=DATA,
        preset=True,
        ge=2,
        le=MAX_VIEWS,
        reason="the first is the image itself",
        affects_choices=True,
    )

    val_split: float = option(
        0.2,
        help="Share of each class held out for validation if DATA has no val/; 0 to train without "
        "validation.",
        panel=DATA,
        ge=0,
        lt=1,
    )
    test_split: float = option(
        0.0,
        help="Share of each class held out for testing if DATA has no test/. Test images are used "
        "for the test figures only, not to choose an epoch or a setting.",
        panel=DATA,
        ge=0,
        lt=1,
    )
    allow_leaks: bool = option(
        False,
        help="Train even if images are in more than one of train/, val/ and test/, which inflates "
        "the accuracy.",
        panel=DATA,
    )
    seed: int = option(
        0,
        help="Random seed of the head, the order of images, the augmentation and the split.",
        panel=DATA,
        basic=True,
        ge=0,
        le=MAX_SEED,
    )
    split_seed: int | None = option(
        None,
        help="Random seed of the split only, to use the same validation images with different "
        "seeds.",
        unset="same as --seed",
        panel=DATA,
        ge=0,
        le=MAX_SEED,
    )
    device: Device = option(
        "auto",
        help="Device to train on. auto uses CUDA if available.",
        panel=MACHINE,
        basic=True,
        affects_choices=True,
    )
    input_device: InputDevice = option(
        "auto",
        help="Device to decode and augment training images on. auto measures both if training on "
        "a GPU and uses the faster.",
        panel=MACHINE,
        affects_choices=True,
    )
    precision: Precision = option(
        "auto",
        help="Precision of training. auto uses bf16 on GPUs that support it, fp16 on older GPUs "
        "with tensor cores, and on CPUs with bf16 whichever is measured to be faster.",
        panel=MACHINE,
        affects_choices=True,
    )
    """Precision of the forward and backward passes; weights stay float32."""
    workers: int | None = option(
        None,
        help="Number of data loading processes; 0 to load in the training process.",
        unset="the cores not used for training",
        panel=MACHINE,
        ge=0,
        le=MAX_WORKERS,
    )
    cache_budget: int | None = option(
        None,
        help="Memory for cached features of the frozen blocks, and as much again for decoded "
        "images until they are computed, such as 500MB or 2GB; 0 to disable caching.",
        unset="a quarter of the free memory",
        metavar="SIZE",
        panel=MACHINE,
        parse=parse_size,
        ge=0,
        affects_choices=True,
    )
    """Bytes."""
    compile: bool = option(
        False,
        help="Compile the trained blocks with torch.compile.",
        panel=MACHINE,
        negatable=True,
        affects_choices=True,
    )
    deterministic: bool = option(
        False,
        help="Make no choices by timing or free memory, and use deterministic algorithms on a "
        "GPU. The slowdown is reported.",
        panel=MACHINE,
        affects_choices=True,
    )
    """See docs/reproducibility.md."""
    tensorboard: bool = option(
        False, help="Write event files for TensorBoard into RUN/tensorboard.", panel=MACHINE
    )
    mlflow: str | None = option(
        None,
        help="Log the metrics of each epoch to MLflow.",
        unset="none",
        metavar="FOLDER|URL",
        panel=MACHINE,
    )
    force: bool = option(
        False, help="Replace an existing run directory.", basic=True, in_files=False
    )

    __repr__ = repr_config

    def __post_init__(self) -> None:
        problem = None
        try:
            object.__setattr__(self, "model", name_model(self.model))
        except ConfigError as cause:
            problem = str(cause)
        validate(self, [problem, *self._find_contradictions()])

    def _find_contradictions(self) -> list[str | None]:
        is_valid_unfreeze = self.unfreeze in ("auto", "head", "all") or re.fullmatch(
            r"[0-9]+|[1-9][0-9]?%|100%", self.unfreeze
        )
        return [
            check(
                bool(is_valid_unfreeze),
                "{unfreeze} must be a number of blocks, a share such as 75%, `auto`, `head` or "
                f"`all`, got {self.unfreeze!r}.",
            ),
            check(
                not self.epochs == self.finetune_epochs == 0,
                "{epochs} and {finetune_epochs} are both 0: nothing would be trained.",
            ),
            check(
                max(self.val_split, self.test_split) >= 1 or self.val_split + self.test_split < 1,
                "{val_split} and {test_split} must leave images to train on, got "
                f"{self.val_split:g} and {self.test_split:g}.",
            ),
            check(
                self.class_weights == "none" or self.sampling == "shuffled",
                "{class_weights} balanced and {sampling} balanced both compensate for rare "
                "classes. Use one of the two.",
            ),
            check(
                self.input_device != "cuda" or self.device != "cpu",
                "{input_device} cuda needs {device} cuda or auto, got {device} cpu.",
            ),
            check(
                self.input_device != "cuda" or self.augment_file is None,
                "{input_device} cuda cannot run a pipeline file, whose transforms exist only for "
                "the CPU. Use {input_device} cpu, or {augment} light, medium or strong.",
            ),
            check(
                self.budget_s is None or not self.deterministic,
                "{budget_s} plans epochs from measured times, which {deterministic} excludes. "
                "Remove one of them, or set {epochs} and {finetune_epochs} instead of {budget_s}.",
            ),
        ]

    @property
    def resolved_split_seed(self) -> int:
        """Seed for the split, resolved."""
        return self.seed if self.split_seed is None else self.split_seed

    @property
    def uses_augmentation(self) -> bool:
        """Whether training images are augmented."""
        return self.augment != "none" or self.augment_file is not None

    def to_json(self) -> dict[str, Any]:
        """Return the section `config` of config.json."""
        return config_to_json(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> FinetuneConfig:
        """Parse the output of `to_json`; fields of other versions are ignored.

        Raises:
            ConfigError: Values are out of range or contradict each other.
            FieldError: A value has the wrong type.
        """
        return parse_as(cls, content, "config", extra="ignore")

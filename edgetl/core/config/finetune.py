"""Configuration of `edgetl finetune`, stored in the run's config.json."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from edgetl.core.config.options import (
    check,
    check_choice,
    check_minimum,
    check_positive,
    check_seed,
    config_to_json,
    raise_config_errors,
)
from edgetl.core.errors import ConfigError
from edgetl.core.preprocessing import MAX_RESIZE
from edgetl.core.typed_json import parse_as

AugmentationStrength = Literal["none", "light", "medium", "strong"]
BatchNorm = Literal["auto", "eval", "train"]
ClassWeights = Literal["none", "balanced"]
Sampling = Literal["shuffled", "balanced"]
Schedule = Literal["constant", "cosine"]
Device = Literal["auto", "cpu", "cuda"]
InputDevice = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
MAX_IMAGE_SIZE = MAX_RESIZE * 224 // 256
"""Largest image size, pixels; images are resized to 256/224 of it before the crop."""
MAX_HEAD_WIDTH = 16_384
"""Largest head width, four times that of VGG, the widest in torchvision (4096); wider heads would
take gigabytes without benefit."""
MAX_EPOCHS, MAX_VIEWS, MAX_WORKERS = 1_000_000, 10_000, 256
"""Limits without known use for more; a longer list of views or more processes would exhaust the
memory."""


@dataclass(frozen=True)
class FinetuneConfig:
    """Options of `edgetl finetune`; defaults are those of the preset `default`."""

    data: Path
    """Folder with train/ and val/ folders of classes, or with one folder for each class."""
    output: Path | None = None
    """Run directory to write; None chooses a new name, runs/<data>-<model>."""
    model: str = "mobilenet_v2"
    """A torchvision classification architecture."""
    weights: str = "imagenet"
    """Initial weights: `imagenet` (downloaded from torchvision), `builtin` (shipped with edgetl, no
    download), `none`, a .safetensors or weights-only .pth file, or a folder of
    <architecture>.safetensors."""
    image_size: int | None = None
    """Side of the square input, pixels; None uses the architecture's own."""
    preset: str = "default"
    """Preset for the values below that the user did not set."""

    epochs: int = 10
    """Epochs of phase 1: the new head on the frozen backbone."""
    lr: float = 2e-3
    """Adam's learning rate in phase 1."""
    unfreeze: str = "auto"
    """Blocks that phase 2 trains besides the head: a number of last blocks, the fewest last blocks
    with a share of the backbone's parameters (`75%`), `head` for none or `all`; `auto` is 50%."""
    finetune_epochs: int | None = None
    """Epochs of phase 2; None is 5 to 8, depending on the result of phase 1, see
    edgetl.train.engine.phases."""
    finetune_lr: float | None = None
    """Adam's learning rate in phase 2; None is 2e-4 to 1e-3, depending on the result of phase 1,
    see edgetl.train.engine.phases."""
    batch_size: int | Literal["auto"] | None = None
    """Images a step; None is the power of two from 16 to 64 nearest to 32 steps an epoch; `auto`
    fits it to the GPU and scales the learning rates, see edgetl.train.engine.batch_size."""
    batch_norm: BatchNorm = "auto"
    """BatchNorm mode of the blocks that phase 2 trains: `eval` keeps the running statistics,
    `train` uses batch statistics and updates them; `auto` keeps them if phase 1 left little to
    learn and they fit the images, see edgetl.train.engine.phases."""
    schedule: Schedule = "cosine"
    """Learning rate within a phase: constant, or cosine decay to 0 (Loshchilov and Hutter,
    2017)."""
    warmup: float = 0.1
    """Share of a phase's steps with a linear warm-up of the learning rate from 0."""
    lr_decay: float = 1.0
    """Factor on the learning rate of phase 2 for each block further from the head (discriminative
    fine-tuning: Howard and Ruder, 2018)."""
    weight_decay: float = 0.0
    """Decoupled weight decay (AdamW: Loshchilov and Hutter, 2019), except for norms and biases."""
    clip_gradient: float = 0.0
    """Largest L2 norm of the gradient; 0 disables clipping."""
    label_smoothing: float = 0.0
    """Share of the target distributed over all classes (Szegedy et al., 2016)."""
    mixup: float = 0.0
    """Alpha of mixup on pixels (Zhang et al., 2018) or cached features (Verma et al., 2019); 0 is
    off."""
    cutmix: float = 0.0
    """Alpha of CutMix (Yun et al., 2019) on pixels or cached features; with mixup, each step uses
    one of the two at random; 0 is off."""
    ema: float = 0.0
    """Decay of an exponential moving average of the weights, which is then validated and saved; 0
    is off."""
    class_weights: ClassWeights = "none"
    """Class weights in the loss; `balanced` is the inverse of each class's share of training
    images."""
    sampling: Sampling = "shuffled"
    """Sampling of training images; `balanced` draws all classes equally often, with epochs of the
    same length."""
    patience: int | None = None
    """Epochs without improvement after which a phase stops early; None disables early stopping."""
    target_accuracy: float | None = None
    """Validation accuracy at which training stops."""
    budget_s: float | None = None
    """Time limit of the whole run, seconds; epochs and views are then planned from measured
    steps."""
    head_width: int = 0
    """Width of the hidden layer of the new head; 0 is a single linear layer."""
    dropout: float = 0.2
    """Dropout probability before the new head."""
    augment: AugmentationStrength = "light"
    """Strength of the augmentation of training images."""
    augment_file: Path | None = None
    """File of a pipeline saved by albumentations (`A.save`), used instead of `augment`."""
    views: int | None = None
    """Number of views of each image that epochs cycle through; None is as many as the cache holds,
    or a new view every epoch without a cache."""

    val_split: float = 0.2
    """Share of each class used for validation if DATA has no val/; 0 trains without validation."""
    allow_leaks: bool = False
    """Whether to allow images of val/ that are in train/ as well; otherwise they are an error."""
    seed: int = 0
    """Seed for the head, the order of images, the augmentation and the split."""
    split_seed: int | None = None
    """Seed for the split; None is `seed`. Runs with different seeds and the same split seed are
    comparable on the same images."""
    device: Device = "auto"
    """Training device."""
    input_device: InputDevice = "auto"
    """Device that decodes and augments training images; `auto` is the faster one by measurement
    when training on a GPU, else the CPU."""
    precision: Precision = "auto"
    """Precision of the forward and backward passes; weights stay float32."""
    workers: int | None = None
    """Number of loader processes; None uses the cores that training leaves free, 0 is the training
    process itself."""
    cache_budget: int | None = None
    """Size limit of the feature cache, bytes, and of decoded images until the features are
    computed; None is a quarter of the free memory, 0 disables caching."""
    compile: bool = False
    """Whether to compile the trained part of the model with torch.compile."""
    deterministic: bool = False
    """Whether to make no choices by timing or free memory and to use only deterministic algorithms
    on a GPU; see docs/reproducibility.md."""
    tensorboard: bool = False
    """Whether to write event files for TensorBoard to the run directory."""
    mlflow: str | None = None
    """MLflow tracking folder or server to log the metrics to."""
    force: bool = False
    """Whether to replace an existing run directory."""

    def __post_init__(self) -> None:
        raise_config_errors(
            [
                *self._check_training_options(),
                *self._check_recipe_options(),
                *self._check_machine_options(),
            ]
        )

    def _check_training_options(self) -> list[str | None]:
        rates = [rate for rate in (self.lr, self.finetune_lr) if rate is not None]
        is_valid_unfreeze = self.unfreeze in ("auto", "head", "all") or re.fullmatch(
            r"[0-9]+|[1-9][0-9]?%|100%", self.unfreeze
        )
        return [
            check(
                self.image_size is None or 32 <= self.image_size <= MAX_IMAGE_SIZE,
                f"--image-size must be 32 to {MAX_IMAGE_SIZE} pixels, got {self.image_size}.",
            ),
            _check_range("--epochs", self.epochs, MAX_EPOCHS),
            _check_range("--finetune-epochs", self.finetune_epochs, MAX_EPOCHS),
            check(
                not self.epochs == self.finetune_epochs == 0,
                "--epochs and --finetune-epochs are both 0: nothing would be trained.",
            ),
            check(
                all(0 < rate <= 1e30 for rate in rates),
                f"--lr and --finetune-lr must be > 0 and finite, got {', '.join(map(str, rates))}.",
            ),
            check(
                bool(is_valid_unfreeze),
                "--unfreeze must be a number of blocks, a share such as 75%, `auto`, `head` or "
                f"`all`, got {self.unfreeze!r}.",
            ),
            check_seed("--seed", self.seed),
            check_seed("--split-seed", self.split_seed),
            check(
                self.batch_size in (None, "auto") or self._has_positive_batch_size,
                f"--batch-size must be >= 1 or auto, got {self.batch_size}.",
            ),
            check(0 <= self.val_split < 1, f"--val-split must be in [0, 1), got {self.val_split}."),
            _check_range("--head-width", self.head_width, MAX_HEAD_WIDTH),
            check_choice("--augment", self.augment, AugmentationStrength),
            check_choice("--batch-norm", self.batch_norm, BatchNorm),
            check_choice("--schedule", self.schedule, Schedule),
            check_choice("--class-weights", self.class_weights, ClassWeights),
            check_choice("--sampling", self.sampling, Sampling),
        ]

    def _check_recipe_options(self) -> list[str | None]:
        shares = {
            "--warmup": self.warmup,
            "--label-smoothing": self.label_smoothing,
            "--ema": self.ema,
            "--dropout": self.dropout,
        }
        strengths = {
            "--weight-decay": self.weight_decay,
            "--clip-gradient": self.clip_gradient,
            "--mixup": self.mixup,
            "--cutmix": self.cutmix,
        }
        return [
            *(
                check(0 <= value < 1, f"{option} must be in [0, 1), got {value}.")
                for option, value in shares.items()
            ),
            *(
                check(0 <= value < math.inf, f"{option} must be >= 0 and finite, got {value}.")
                for option, value in strengths.items()
            ),
            check(0 < self.lr_decay <= 1, f"--lr-decay must be in (0, 1], got {self.lr_decay}."),
            check_minimum("--patience", self.patience, 1),
            check(
                self.target_accuracy is None or 0 < self.target_accuracy <= 1,
                f"--target-accuracy must be in (0, 1], got {self.target_accuracy}.",
            ),
            check(
                self.class_weights == "none" or self.sampling == "shuffled", _BALANCED_TWICE_ERROR
            ),
        ]

    def _check_machine_options(self) -> list[str | None]:
        return [
            check_positive("--budget", self.budget_s, " s"),
            check(
                self.views is None or 2 <= self.views <= MAX_VIEWS,
                f"--views must be 2 to {MAX_VIEWS} (the first is the image itself), "
                f"got {self.views}.",
            ),
            _check_range("--workers", self.workers, MAX_WORKERS),
            check_minimum("--cache-budget", self.cache_budget, 0),
            check_choice("--device", self.device, Device),
            check_choice("--input-device", self.input_device, InputDevice),
            check_choice("--precision", self.precision, Precision),
            check(self.input_device != "cuda" or self.device != "cpu", _INPUT_DEVICE_ERROR),
            check(
                self.input_device != "cuda" or self.augment_file is None,
                _AUGMENT_FILE_ON_GPU_ERROR,
            ),
            check(
                self.budget_s is None or not self.deterministic, _BUDGET_WITH_DETERMINISTIC_ERROR
            ),
        ]

    @property
    def _has_positive_batch_size(self) -> bool:
        return isinstance(self.batch_size, int) and self.batch_size >= 1

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
        """Parse the output of `to_json`.

        Raises:
            ConfigError: Values are out of range or contradict each other.
            FieldError: A field is unknown, or a value has the wrong type.
        """
        return parse_as(cls, content, "config")


def _check_range(option: str, value: int | None, maximum: int) -> str | None:
    if value is not None and value > maximum:
        return f"{option} must be <= {maximum}, got {value}."
    return check_minimum(option, value, 0)


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


_INPUT_DEVICE_ERROR = "--input-device cuda needs --device cuda or auto, got --device cpu."
_AUGMENT_FILE_ON_GPU_ERROR = (
    "--input-device cuda cannot run a pipeline file, whose transforms exist only for the CPU. "
    "Use --input-device cpu, or --augment light, medium or strong."
)
_BUDGET_WITH_DETERMINISTIC_ERROR = (
    "--budget plans epochs from measured times, which --deterministic excludes. "
    "Remove one of them, or set --epochs and --finetune-epochs instead of --budget."
)
_BALANCED_TWICE_ERROR = (
    "--class-weights balanced and --sampling balanced both compensate for rare classes. "
    "Use one of the two."
)

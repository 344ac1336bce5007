"""What `edgetl finetune` is asked to do: frozen, checked as a whole, and written into the run."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from edgetl.core.config.options import check_choice, config_to_json, raise_config_errors
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
"""Pixels; images are resized to 256/224 of it before the crop."""
MAX_HEAD_WIDTH = 16_384
"""VGG's layers, the widest of torchvision's, have 4096: a wider head would take gigabytes and learn nothing more."""
MAX_EPOCHS, MAX_VIEWS, MAX_WORKERS = 1_000_000, 10_000, 256
"""No use has been seen for more, and a list of views or that many processes would fill the memory."""


@dataclass(frozen=True)
class FinetuneConfig:
    """Options of `edgetl finetune`; the values here are those of the preset `default`."""

    data: Path
    """train/ and val/ folders of classes, or one folder of classes."""
    output: Path | None = None
    """The run directory to write; None chooses a new name, runs/<data>-<model>."""
    model: str = "mobilenet_v2"
    """A torchvision classification architecture."""
    weights: str = "imagenet"
    """`imagenet` (torchvision's download), `builtin` (shipped with edgetl, no network needed), `none`, a .safetensors or weights-only .pth
    file, or a folder of <architecture>.safetensors."""
    image_size: int | None = None
    """Side of the network's square input, pixels; None takes the architecture's own."""
    preset: str = "default"
    """The preset that the values below were taken from where they were not given."""

    epochs: int = 10
    """Epochs of phase 1: the new head on the frozen backbone."""
    lr: float = 2e-3
    """Adam's learning rate in phase 1."""
    unfreeze: str = "auto"
    """What phase 2 trains besides the head: that many last blocks, the fewest last blocks with a share of the backbone's parameters
    (`75%`), `head` for none, `all` for everything; `auto` is 50%."""
    finetune_epochs: int | None = None
    """Epochs of phase 2; None takes 5 to 8 by what phase 1 left to learn, see edgetl.train.engine.phases."""
    finetune_lr: float | None = None
    """Adam's learning rate in phase 2; None takes 2e-4 to 1e-3 by what phase 1 left to learn, see edgetl.train.engine.phases."""
    batch_size: int | Literal["auto"] | None = None
    """Images a step; None is the power of two that comes nearest to 32 steps an epoch, 16 to 64; `auto` fits it to the GPU, with learning
    rates scaled, see edgetl.train.engine.batch_size."""
    batch_norm: BatchNorm = "auto"
    """BatchNorm of the blocks that phase 2 trains: `eval` keeps its statistics, `train` takes each batch's and moves them; `auto` keeps
    them where phase 1 left next to nothing to learn and they fit the images, see edgetl.train.engine.phases."""
    schedule: Schedule = "cosine"
    """Learning rate within a phase: constant, or down to 0 along a cosine (Loshchilov and Hutter, 2017)."""
    warmup: float = 0.1
    """Share of a phase's steps in which the learning rate rises linearly from 0."""
    lr_decay: float = 1.0
    """Factor on phase 2's learning rate for each block further from the head (discriminative rates: Howard and Ruder, 2018)."""
    weight_decay: float = 0.0
    """Decoupled weight decay (AdamW: Loshchilov and Hutter, 2019) of everything but norms and biases."""
    clip_gradient: float = 0.0
    """Largest L2 norm of a step's gradient; 0 does not clip."""
    label_smoothing: float = 0.0
    """Share of the target spread over all classes (Szegedy et al., 2016)."""
    mixup: float = 0.0
    """Alpha of mixup (Zhang et al., 2018) where training begins: pixels, or the cached activations (Verma et al., 2019); 0 is off."""
    cutmix: float = 0.0
    """Alpha of CutMix (Yun et al., 2019), at the same place; with mixup as well, each step takes one of the two by chance."""
    ema: float = 0.0
    """Decay of an exponential moving average of the weights, which is then what is validated and kept; 0 is off."""
    class_weights: ClassWeights = "none"
    """`balanced` weights the loss by the inverse of each class's share of the training images."""
    sampling: Sampling = "shuffled"
    """`balanced` draws every class equally often; an epoch stays as long."""
    patience: int | None = None
    """Epochs without a better one after which a phase ends; None trains them all."""
    target_accuracy: float | None = None
    """Validation accuracy at which training ends."""
    budget_s: float | None = None
    """Seconds in which the whole run is to finish; epochs and views are then set from measured steps."""
    head_width: int = 0
    """Width of the new head's hidden layer; 0 is a single linear layer."""
    dropout: float = 0.2
    """Dropout before the new head."""
    augment: AugmentationStrength = "light"
    """Strength of the augmentation of training images."""
    augment_file: Path | None = None
    """A pipeline saved by albumentations (`A.save`), instead of `augment`."""
    views: int | None = None
    """Augmented views of each image that epochs go through in turn; None takes what the cache holds, a new one each epoch without it."""

    val_split: float = 0.2
    """Share of each class held back for validation where DATA has no val/ of its own; 0 trains without validation."""
    allow_leaks: bool = False
    """Train though images of DATA's own val/ are in its train/ as well; without it that is refused."""
    seed: int = 0
    """Seed of the head, the order of images, the augmentation, and the split."""
    split_seed: int | None = None
    """Seed of the split alone; None takes `seed`: with several seeds and one split, runs are compared on the same images."""
    device: Device = "auto"
    """Where to train."""
    input_device: InputDevice = "auto"
    """Where training images are decoded and augmented: `auto` takes what is measured faster where training is on a GPU, else the CPU."""
    precision: Precision = "auto"
    """Arithmetic of the forward and backward passes; weights stay float32."""
    workers: int | None = None
    """Processes that decode and augment; None takes the cores that training leaves free, 0 works in the training process."""
    cache_budget: int | None = None
    """Bytes for activations of the frozen blocks, and as many for decoded images until the activations are there; None is a quarter of the
    free memory, 0 caches nothing."""
    compile: bool = False
    """Compile what is trained with torch.compile."""
    deterministic: bool = False
    """Decide nothing by timing or free memory, and on a GPU take only algorithms that compute the same again; docs/reproducibility.md."""
    tensorboard: bool = False
    """Write event files for TensorBoard into the run directory."""
    mlflow: str | None = None
    """A folder or a server of MLflow to give the figures to."""
    force: bool = False
    """Replace an existing run directory."""

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
        blocks = self.unfreeze in ("auto", "head", "all") or re.fullmatch(
            r"[0-9]+|[1-9][0-9]?%|100%", self.unfreeze
        )
        return [
            None
            if self.image_size is None or 32 <= self.image_size <= MAX_IMAGE_SIZE
            else f"--image-size is 32 to {MAX_IMAGE_SIZE} pixels, not {self.image_size}.",
            _check_range("--epochs", self.epochs, MAX_EPOCHS),
            _check_range("--finetune-epochs", self.finetune_epochs, MAX_EPOCHS),
            "--epochs and --finetune-epochs are both 0: nothing would be trained."
            if self.epochs == self.finetune_epochs == 0
            else None,
            None
            if all(0 < rate <= 1e30 for rate in rates)
            else "--lr and --finetune-lr are above 0 and finite.",
            None
            if blocks
            else f"--unfreeze takes a number of blocks, a share like 75%, `auto`, `head` or `all`, not {self.unfreeze!r}.",
            None if 0 <= self.seed < 2**63 else f"--seed lies in [0, 2^63), not {self.seed}.",
            None
            if 0 <= (self.split_seed or 0) < 2**63
            else f"--split-seed lies in [0, 2^63), not {self.split_seed}.",
            None
            if self.batch_size in (None, "auto") or self._has_positive_batch_size
            else _BATCH_SIZE_ERROR.format(self.batch_size),
            None
            if 0 <= self.val_split < 1
            else f"--val-split lies in [0, 1), not {self.val_split}.",
            _check_range("--head-width", self.head_width, MAX_HEAD_WIDTH),
            check_choice("--augment", self.augment, AugmentationStrength),
            check_choice("--batch-norm", self.batch_norm, BatchNorm),
            check_choice("--schedule", self.schedule, Schedule),
            check_choice("--class-weights", self.class_weights, ClassWeights),
            check_choice("--sampling", self.sampling, Sampling),
        ]

    def _check_recipe_options(self) -> list[str | None]:
        below_one = {
            "warmup": "--warmup",
            "label_smoothing": "--label-smoothing",
            "ema": "--ema",
            "dropout": "--dropout",
        }
        not_negative = {
            "weight_decay": "--weight-decay", "clip_gradient": "--clip-gradient", "mixup": "--mixup", "cutmix": "--cutmix"
        }  # fmt: skip
        values = {name: getattr(self, name) for name in (*below_one, *not_negative)}
        return [
            *(
                None if 0 <= values[name] < 1 else f"{option} lies in [0, 1), not {values[name]}."
                for name, option in below_one.items()
            ),
            *(
                None
                if 0 <= values[name] < math.inf
                else f"{option} is finite and not negative, not {values[name]}."
                for name, option in not_negative.items()
            ),
            None if 0 < self.lr_decay <= 1 else f"--lr-decay lies in (0, 1], not {self.lr_decay}.",
            None
            if self.patience is None or self.patience >= 1
            else f"--patience is at least 1 epoch, not {self.patience}.",
            None
            if self.target_accuracy is None or 0 < self.target_accuracy <= 1
            else f"--target-accuracy lies in (0, 1], not {self.target_accuracy}.",
            None
            if self.class_weights == "none" or self.sampling == "shuffled"
            else _BALANCED_TWICE_ERROR,
        ]

    def _check_machine_options(self) -> list[str | None]:
        return [
            None
            if self.budget_s is None or 0 < self.budget_s < math.inf
            else f"--budget is above 0 and finite, not {self.budget_s} s.",
            None
            if self.views is None or 2 <= self.views <= MAX_VIEWS
            else f"--views is 2 (the first is the image itself) to {MAX_VIEWS}, not {self.views}.",
            _check_range("--workers", self.workers, MAX_WORKERS),
            None
            if self.cache_budget is None or self.cache_budget >= 0
            else f"--cache-budget is not negative, not {self.cache_budget}.",
            check_choice("--device", self.device, Device),
            check_choice("--input-device", self.input_device, InputDevice),
            check_choice("--precision", self.precision, Precision),
            None if self.input_device != "cuda" or self.device != "cpu" else _INPUT_DEVICE_ERROR,
            None
            if self.input_device != "cuda" or self.augment_file is None
            else _AUGMENT_FILE_ON_GPU_ERROR,
            None
            if self.budget_s is None or not self.deterministic
            else _BUDGET_WITH_DETERMINISTIC_ERROR,
        ]

    @property
    def _has_positive_batch_size(self) -> bool:
        return isinstance(self.batch_size, int) and self.batch_size >= 1

    @property
    def resolved_split_seed(self) -> int:
        """The seed that the split is drawn with."""
        return self.seed if self.split_seed is None else self.split_seed

    @property
    def uses_augmentation(self) -> bool:
        """Whether training images differ from what evaluation sees."""
        return self.augment != "none" or self.augment_file is not None

    def to_json(self) -> dict[str, Any]:
        """As it stands in config.json."""
        return config_to_json(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> FinetuneConfig:
        """The inverse of `to_json`.

        Raises:
            ConfigError: values that contradict each other.
            FieldError: an unknown field, or a value of another type.
        """
        return parse_as(cls, content, "config")


def _check_range(option: str, value: int | None, most: int) -> str | None:
    if value is None or 0 <= value <= most:
        return None
    return (
        f"{option} is not negative, not {value}."
        if value < 0
        else f"{option} is at most {most}, not {value}."
    )


def parse_batch_size(text: str) -> int | Literal["auto"]:
    """Read `auto` or a number of images.

    Raises:
        ConfigError: anything else.
    """
    if text == "auto":
        return "auto"
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise ConfigError(f"takes a number of images, or auto, not {text!r}.")
    return int(text)


_BATCH_SIZE_ERROR = "--batch-size is at least 1, or auto, not {}."
_INPUT_DEVICE_ERROR = "--input-device cuda needs --device cuda or auto, got --device cpu."
_AUGMENT_FILE_ON_GPU_ERROR = (
    "--input-device cuda cannot run a pipeline file: its transforms are known on the CPU only. "
    "Take --input-device cpu, or --augment light, medium or strong."
)
_BUDGET_WITH_DETERMINISTIC_ERROR = (
    "--budget sets epochs from measured times, and --deterministic measures nothing. "
    "Leave one out, or give --epochs and --finetune-epochs."
)
_BALANCED_TWICE_ERROR = "--class-weights balanced and --sampling balanced both make up for rare classes. Take one of the two."

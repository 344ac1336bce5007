"""Phases of a recipe: which part of the model is trained, for how long, at which rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor, nn

from edgetl.core.config.finetune import FinetuneConfig
from edgetl.core.errors import ConfigError
from edgetl.train.common.precision import ComputeConfig
from edgetl.train.features.batches import BatchSource
from edgetl.train.features.partition import wrap_channels_last


@dataclass(frozen=True)
class Phase:
    """A stretch of epochs with one set of trainable parameters."""

    number: int
    epochs: int
    lr: float
    unfreeze: int | str
    """Number of trainable blocks, or `head` or `all`."""
    freeze_statistics: bool
    """Whether BatchNorm statistics of trainable blocks stay fixed."""


@dataclass(frozen=True)
class TrainablePhase:
    """A phase with its batches and the module to train."""

    phase: Phase
    batch_source: BatchSource
    module: nn.Module
    """(float32 values, ...) to logits; made of the model's own modules."""
    compute_config: ComputeConfig
    expected_epoch_s: float = 0.0
    """Expected seconds per epoch; 0 if not measured."""
    measurement_key: Mapping[str, object] = field(default_factory=dict)
    """Everything that the fastest way to compute a step depends on."""

    @property
    def forward(self) -> Callable[..., Tensor]:
        """The module, called with its inputs in channels-last memory format."""
        return wrap_channels_last(self.module)


_TARGET_STEPS_PER_EPOCH = 32
_MIN_BATCH_SIZE, _MAX_BATCH_SIZE = 16, 64
_HIGH_ERROR, _LOW_ERROR = 0.2, 0.02
"""Training errors after phase 1: a fully new domain at or above, a familiar one at or below."""
_MAX_FAMILIAR_SHIFT = 0.15
"""Largest shift of BatchNorm statistics of a familiar domain, in nats.

Measured with MobileNetV2: pets 0.03, flowers and waste 0.07; steel 0.38, magnetic tiles 0.55.
"""
_LR_RANGE, _EPOCH_RANGE = (2e-4, 1e-3), (5, 8)


def default_batch_size(images: int) -> int:
    """Return the power of two nearest to 32 steps per epoch, between 16 and 64.

    A small data set needs many steps more than large batches.
    """
    nearest = 1 << round(math.log2(max(1.0, images / _TARGET_STEPS_PER_EPOCH)))
    return min(_MAX_BATCH_SIZE, max(_MIN_BATCH_SIZE, nearest))


def plan_phases(
    config: FinetuneConfig, unfreeze: int | str, batch_size: int, lr_scale: float = 1.0
) -> list[Phase]:
    """Return the phases of a configuration.

    With `--weights none` nothing is pretrained, and a single phase trains everything. Settings of
    phase 2 that the configuration leaves open get middle values until `resolve_phase` sets them.

    Args:
        config: the configuration.
        unfreeze: trainable blocks of phase 2.
        batch_size: images per step.
        lr_scale: factor on all learning rates.

    Raises:
        ConfigError: if everything is trained with batches of one image.
    """
    finetune_epochs = config.finetune_epochs
    if finetune_epochs is None:
        finetune_epochs = sum(_EPOCH_RANGE) // 2
    if config.weights == "none":
        if batch_size < 2:
            raise ConfigError(
                f"{{batch_size}} must be >= 2 with {{weights}} none, got {batch_size}: "
                "BatchNorm statistics need more than one image.",
                FinetuneConfig,
            )
        epochs = config.epochs + finetune_epochs
        return [Phase(1, epochs, config.lr * lr_scale, "all", freeze_statistics=False)]
    freeze_statistics = config.batch_norm == "eval" or batch_size < 2
    finetune_lr = config.finetune_lr or math.sqrt(_LR_RANGE[0] * _LR_RANGE[1])
    phases = [
        Phase(1, config.epochs, config.lr * lr_scale, "head", True),
        Phase(2, finetune_epochs, lr_scale * finetune_lr, unfreeze, freeze_statistics),
    ]
    return [phase for phase in phases if phase.epochs]


def resolve_phase(
    phase: Phase,
    config: FinetuneConfig,
    train_accuracy: float | None,
    shift: Callable[[], float],
    lr_scale: float = 1.0,
) -> Phase:
    """Set what the configuration leaves open of phase 2, from the training error of phase 1.

    If the frozen features leave 20% of the training images or more wrong, the images are unlike
    those of pretraining: 8 epochs at 1e-3. If they leave none wrong, large updates of the backbone
    can only do harm: 5 epochs at 2e-4. In between, both are interpolated. BatchNorm statistics
    stay fixed if at most 2% of the images are wrong and the statistics already fit them. The
    experiments are in docs/decisions/005-default-recipe.md.

    Args:
        phase: the phase; any but phase 2 is returned unchanged.
        config: the configuration.
        train_accuracy: accuracy of phase 1's last epoch; None without a phase 1: no change.
        shift: measures how far BatchNorm statistics are from the images; see
            `domain_shift.batch_norm_shift`.
        lr_scale: factor on the learning rate that is set here.
    """
    if phase.number != 2 or train_accuracy is None or config.mixup or config.cutmix:
        # Accuracy on mixed images is low even for a perfect model, so it says nothing.
        return phase
    error = 1 - train_accuracy
    relative_error = min(1.0, error / _HIGH_ERROR)
    epochs, lr = phase.epochs, phase.lr
    if config.finetune_epochs is None:
        epochs = round(_EPOCH_RANGE[0] + relative_error * (_EPOCH_RANGE[1] - _EPOCH_RANGE[0]))
    if config.finetune_lr is None:
        lr = lr_scale * max(_LR_RANGE[0], relative_error * _LR_RANGE[1])
    freeze_statistics = phase.freeze_statistics or (
        config.batch_norm == "auto" and error <= _LOW_ERROR and shift() <= _MAX_FAMILIAR_SHIFT
    )
    return replace(phase, epochs=epochs, lr=lr, freeze_statistics=freeze_statistics)

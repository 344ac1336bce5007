"""The phases of a recipe: which part of the network is trained, for how long, how fast."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from edgetl.core.config.finetune import FinetuneConfig
from edgetl.core.errors import ConfigError


@dataclass(frozen=True)
class Phase:
    """A stretch of epochs with the same trained parameters."""

    number: int
    epochs: int
    lr: float
    unfreeze: int | str
    freeze_statistics: bool


_TARGET_STEPS_PER_EPOCH = 32
_MIN_BATCH_SIZE, _MAX_BATCH_SIZE = 16, 64
_HIGH_ERROR, _LOW_ERROR = 0.2, 0.02
"""Shares of training images that phase 1 leaves wrong."""
_MAX_FAMILIAR_SHIFT = 0.15
"""Shift of BatchNorm's statistics, in nats: pets 0.03, flowers and waste 0.07; steel 0.38 and magnetic tiles 0.55 (MobileNetV2)."""
_LR_RANGE, _EPOCH_RANGE = (2e-4, 1e-3), (5, 8)


def default_batch_size(images: int) -> int:
    """The power of two that comes nearest to 32 steps an epoch, 16 to 64: a small set needs its steps more than large batches."""
    return min(
        _MAX_BATCH_SIZE,
        max(_MIN_BATCH_SIZE, 1 << round(math.log2(max(1.0, images / _TARGET_STEPS_PER_EPOCH)))),
    )


def plan_phases(
    config: FinetuneConfig, unfreeze: int | str, batch_size: int, lr_scale: float = 1.0
) -> list[Phase]:
    """The phases of a configuration; with `--weights none` there is nothing pretrained to freeze, and one phase trains everything.

    What the configuration leaves open of phase 2 is a middle value until `settle` decides it.

    Args:
        lr_scale: factor on all learning rates.
    """
    tail_epochs = (
        sum(_EPOCH_RANGE) // 2 if config.finetune_epochs is None else config.finetune_epochs
    )
    if config.weights == "none":
        if batch_size < 2:
            raise ConfigError(
                "--weights none trains BatchNorm statistics, and a batch of one image has none. Take --batch-size 2 or more."
            )
        return [
            Phase(
                1, config.epochs + tail_epochs, config.lr * lr_scale, "all", freeze_statistics=False
            )
        ]
    freeze_statistics = config.batch_norm == "eval" or batch_size < 2
    phases = [
        Phase(1, config.epochs, config.lr * lr_scale, "head", True),
        Phase(
            2,
            tail_epochs,
            lr_scale * (config.finetune_lr or math.sqrt(_LR_RANGE[0] * _LR_RANGE[1])),
            unfreeze,
            freeze_statistics,
        ),
    ]
    return [phase for phase in phases if phase.epochs]


def resolve_phase(
    phase: Phase,
    config: FinetuneConfig,
    train_accuracy: float | None,
    shift: Callable[[], float],
    lr_scale: float = 1.0,
) -> Phase:
    """Phase 2 with what the configuration leaves open, decided by what phase 1 has left to learn.

    Where the frozen features leave a fifth of the training images wrong or more, the images are unlike those that the backbone knows: 8
    epochs at 1e-3. Where they leave nothing, moving the backbone far can only lose: 5 epochs at 2e-4. In between in proportion. BatchNorm's
    statistics stay where one image in fifty is wrong or fewer and they fit the images already. How that was found is in
    docs/decisions/005-default-recipe.md.

    Args:
        train_accuracy: of phase 1's last epoch; None without a phase 1, where nothing is changed.
        shift: measures how far BatchNorm's statistics are from the images; see `familiarity.statistics_shift`.
        lr_scale: factor on the learning rate that is decided here.
    """
    if phase.number != 2 or train_accuracy is None or config.mixup or config.cutmix:
        # Images mixed with others are answered wrongly by the best of networks: their accuracy says nothing.
        return phase
    wrong = 1 - train_accuracy
    left = min(1.0, wrong / _HIGH_ERROR)
    return replace(
        phase,
        epochs=round(_EPOCH_RANGE[0] + left * (_EPOCH_RANGE[1] - _EPOCH_RANGE[0]))
        if config.finetune_epochs is None
        else phase.epochs,
        lr=lr_scale * max(_LR_RANGE[0], left * _LR_RANGE[1])
        if config.finetune_lr is None
        else phase.lr,
        freeze_statistics=phase.freeze_statistics
        or (config.batch_norm == "auto" and wrong <= _LOW_ERROR and shift() <= _MAX_FAMILIAR_SHIFT),
    )

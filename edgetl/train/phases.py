"""The phases of a recipe: which part of the network is trained, for how long, how fast."""

from __future__ import annotations

from dataclasses import dataclass

from edgetl.core.errors import ConfigError
from edgetl.core.finetuning import FinetuneConfig


@dataclass(frozen=True)
class Phase:
    """A stretch of epochs with the same trained parameters."""

    number: int
    epochs: int
    lr: float
    unfreeze: int | str
    freeze_statistics: bool


def plan_phases(config: FinetuneConfig, unfreeze: int | str) -> list[Phase]:
    """The phases of a configuration; with `--weights none` there is nothing pretrained to freeze, and one phase trains everything."""
    if config.weights == "none":
        if config.batch_size < 2:
            raise ConfigError("--weights none trains BatchNorm statistics, and a batch of one image has none. Take --batch-size 2 or more.")
        return [Phase(1, config.epochs + config.finetune_epochs, config.lr, "all", freeze_statistics=False)]
    freeze_statistics = config.batch_norm == "eval" or config.batch_size < 2
    phases = [
        Phase(1, config.epochs, config.lr, "head", True),
        Phase(2, config.finetune_epochs, config.finetune_lr, unfreeze, freeze_statistics),
    ]
    return [phase for phase in phases if phase.epochs]

"""Optimization: parameter groups, learning rates, loss, mixup and CutMix, averaged weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgetl.core.config.finetune import FinetuneConfig
from edgetl.train.common.precision import Tensors, copy_to_device
from edgetl.train.model.factory import AdaptedModel


def make_optimizer(adapted: AdaptedModel, config: FinetuneConfig, lr: float) -> torch.optim.Adam:
    """Create Adam, or AdamW with weight decay, over the trainable parameters.

    There is one group for each learning rate, with and without weight decay.
    """
    depths = _parameter_depths(adapted)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in adapted.model.named_parameters():
        if parameter.requires_grad:
            # Vectors are biases and the scales and shifts of norms, which should not decay to 0.
            decay = config.weight_decay if parameter.dim() > 1 else 0.0
            parameter_lr = lr * config.lr_decay ** depths.get(name, 0)
            groups.setdefault((parameter_lr, decay), []).append(parameter)
    parameter_groups = [
        {"params": parameters, "lr": group_lr, "weight_decay": decay}
        for (group_lr, decay), parameters in groups.items()
    ]
    optimizer_class = torch.optim.AdamW if config.weight_decay else torch.optim.Adam
    # Fused: one kernel for all parameters. Many small ones take 10% of a step on a CPU.
    return optimizer_class(parameter_groups, lr=lr, weight_decay=0.0, fused=True)


def _parameter_depths(adapted: AdaptedModel) -> dict[str, int]:
    """Return the number of blocks from each parameter to the head.

    The stem counts as one block before the first.
    """
    depths: dict[str, int] = {}
    for name, _ in adapted.model.named_parameters():
        block_indices = [
            index
            for index, block in enumerate(adapted.blocks)
            for path in block.module_paths
            if name == path or name.startswith(f"{path}.")
        ]
        if block_indices:
            depths[name] = len(adapted.blocks) - block_indices[0]
        elif not name.startswith(f"{adapted.classifier_layer.path}."):
            depths[name] = len(adapted.blocks) + 1
    return depths


class LrSchedule:
    """Learning rate schedule of a phase: linear warm-up, then constant or a cosine to 0."""

    def __init__(
        self, optimizer: torch.optim.Optimizer, config: FinetuneConfig, steps: int
    ) -> None:
        self._optimizer = optimizer
        self._base_lrs = [group["lr"] for group in optimizer.param_groups]
        self._uses_cosine = config.schedule == "cosine"
        self._total_steps = max(1, steps)
        self._warmup_steps = round(config.warmup * self._total_steps)
        self.next_step = 0
        """Index of the next step, counted from 0."""

    def factor(self, step: int) -> float:
        """Return the factor on the base learning rates at a step, counted from 0."""
        if step < self._warmup_steps:
            return (step + 1) / self._warmup_steps
        if not self._uses_cosine:
            return 1.0
        cosine_steps = max(1, self._total_steps - self._warmup_steps)
        fraction = (step - self._warmup_steps) / cosine_steps
        return 0.5 * (1 + math.cos(math.pi * min(1.0, fraction)))

    def advance(self) -> None:
        """Set the learning rates of the next step."""
        factor = self.factor(self.next_step)
        for group, base_lr in zip(self._optimizer.param_groups, self._base_lrs, strict=True):
            group["lr"] = base_lr * factor
        self.next_step += 1


@dataclass(frozen=True)
class MixedBatch:
    """Batch whose images may be mixed in pairs."""

    values: Tensors
    targets: Tensor
    partner_targets: Tensor | None = None
    """Targets of the second image of each pair; None if nothing was mixed."""
    target_share: Tensor | None = None
    """Share of `targets` in each image, float32 [batch]; the rest is of `partner_targets`."""


class Mixup:
    """mixup, and CutMix for values with spatial dimensions.

    It has its own generator, so that enabling it changes no other random number.
    """

    def __init__(self, config: FinetuneConfig, phase: int) -> None:
        self._mixup_alpha, self._cutmix_alpha = config.mixup, config.cutmix
        self._generator = np.random.default_rng([config.seed, phase, 1])

    @property
    def generator_state(self) -> dict[str, Any]:
        """State of the generator, for a checkpoint."""
        return dict(self._generator.bit_generator.state)

    @generator_state.setter
    def generator_state(self, state: dict[str, Any]) -> None:
        self._generator.bit_generator.state = state

    def __call__(self, values: Tensors, targets: Tensor) -> MixedBatch:
        """Mix each image with another one of the batch, with a single share for the batch."""
        is_spatial = all(value.dim() == 4 and min(value.shape[2:]) > 1 for value in values)
        if not (self._mixup_alpha or (self._cutmix_alpha and is_spatial)) or len(targets) < 2:
            return MixedBatch(values, targets)
        uses_cutmix = (
            self._cutmix_alpha > 0
            and is_spatial
            and (not self._mixup_alpha or bool(self._generator.integers(2)))
        )
        alpha = self._cutmix_alpha if uses_cutmix else self._mixup_alpha
        share = float(self._generator.beta(alpha, alpha))
        partner = copy_to_device(
            torch.from_numpy(self._generator.permutation(len(targets))), targets.device
        )
        if uses_cutmix:
            values, share = self._apply_cutmix(values, partner, share)
        else:
            values = tuple(share * value + (1 - share) * value[partner] for value in values)
        return MixedBatch(
            values,
            targets,
            targets[partner],
            torch.full((len(targets),), share, device=targets.device),
        )

    def _apply_cutmix(
        self, values: Tensors, partner: Tensor, share: float
    ) -> tuple[Tensors, float]:
        # One box in relative coordinates for all values: the feature maps of an image differ only
        # in resolution.
        side = math.sqrt(1 - share)
        center = self._generator.random(2)
        low, high = np.clip(center - side / 2, 0, 1), np.clip(center + side / 2, 0, 1)
        pasted, remaining_share = [], 1.0
        for value in values:
            height, width = value.shape[2:]
            top, bottom = round(low[0] * height), round(high[0] * height)
            left, right = round(low[1] * width), round(high[1] * width)
            value = value.clone()
            value[:, :, top:bottom, left:right] = value[partner, :, top:bottom, left:right]
            pasted.append(value)
            remaining_share = 1 - (bottom - top) * (right - left) / (height * width)
        return tuple(pasted), remaining_share


class Loss:
    """Cross-entropy with smoothed, mixed and weighted targets."""

    def __init__(
        self, config: FinetuneConfig, labels: Tensor, classes: int, device: torch.device
    ) -> None:
        self.device = device
        self._label_smoothing = config.label_smoothing
        self._class_weights: Tensor | None = None
        if config.class_weights == "balanced":
            counts = torch.bincount(labels, minlength=classes).clamp(min=1)
            self._class_weights = copy_to_device(len(labels) / (classes * counts.float()), device)

    def __call__(self, logits: Tensor, mixed: MixedBatch) -> tuple[Tensor, Tensor]:
        """Return the sum of the losses and the sum of the images' weights.

        Their quotient is the mean loss, weighted by class if the configuration asks for it.
        """

        def cross_entropy(targets: Tensor) -> Tensor:
            return F.cross_entropy(
                logits,
                targets,
                self._class_weights,
                label_smoothing=self._label_smoothing,
                reduction="none",
            )

        def mix(function: Callable[[Tensor], Tensor]) -> Tensor:
            values = function(mixed.targets)
            if mixed.partner_targets is None or mixed.target_share is None:
                return values
            partner_values = function(mixed.partner_targets)
            return mixed.target_share * values + (1 - mixed.target_share) * partner_values

        losses = mix(cross_entropy)
        weights = self._class_weights
        if weights is None:
            return losses.sum(), losses.new_full((), len(losses))
        return losses.sum(), mix(lambda targets: weights[targets]).sum()


def running_stats(model: nn.Module) -> list[Tensor]:
    """Return the statistics that every batch updates in the current modes of the modules."""
    training_modules = [module for module in model.modules() if module.training]
    return [
        buffer
        for module in training_modules
        for buffer in module.buffers(recurse=False)
        if buffer.is_floating_point()
    ]


class ModelEma:
    """Exponential moving average of trainable parameters and their running statistics.

    Polyak and Juditsky, "Acceleration of Stochastic Approximation by Averaging" (1992).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._decay = decay
        self.num_updates = 0
        """Number of steps in the average."""
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._model_tensors = [*trainable, *running_stats(model)]
        self.average = [tensor.detach().clone() for tensor in self._model_tensors]
        self._swap_buffers = [torch.empty_like(tensor) for tensor in self.average]

    @torch.no_grad()
    def restore(self, average: Sequence[Tensor], num_updates: int) -> None:
        """Restore a saved average."""
        torch._foreach_copy_(self.average, list(average))
        self.num_updates = num_updates

    @torch.no_grad()
    def update(self) -> None:
        """Update the average after a step.

        The decay grows with the number of steps, so that the first weights soon lose their effect.
        """
        self.num_updates += 1
        weight = 1 - min(self._decay, (1 + self.num_updates) / (10 + self.num_updates))
        torch._foreach_lerp_(
            self.average, [tensor.detach() for tensor in self._model_tensors], weight
        )

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Use the averaged weights in the model inside the block."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        # Copied, not exchanged: the optimizer and CUDA graphs use the live tensors' addresses.
        live = [tensor.detach() for tensor in self._model_tensors]
        torch._foreach_copy_(self._swap_buffers, live)
        torch._foreach_copy_(live, self.average)
        self.average, self._swap_buffers = self._swap_buffers, self.average

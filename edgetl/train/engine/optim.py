"""Steps of training: parameter groups, learning rates, loss, mixing of images, averaged weights."""

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
    """Adam, or AdamW with weight decay, over what requires gradients: a group for each rate, and for what does not decay."""
    depth = _parameter_depths(adapted)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in adapted.model.named_parameters():
        if parameter.requires_grad:
            # Vectors are biases, scales and shifts of norms: decay would pull them to where they mean nothing.
            decay = config.weight_decay if parameter.dim() > 1 else 0.0
            groups.setdefault((lr * config.lr_decay ** depth.get(name, 0), decay), []).append(
                parameter
            )
    listed = [
        {"params": members, "lr": rate, "weight_decay": decay}
        for (rate, decay), members in groups.items()
    ]
    kind = torch.optim.AdamW if config.weight_decay else torch.optim.Adam
    # One kernel for all parameters: a tenth of a CPU's step otherwise goes to many small ones.
    return kind(listed, lr=lr, weight_decay=0.0, fused=True)


def _parameter_depths(adapted: AdaptedModel) -> dict[str, int]:
    # How many blocks lie between a parameter and the head; the stem counts as one more than the first block.
    depth: dict[str, int] = {}
    for name, _ in adapted.model.named_parameters():
        inside = [
            at
            for at, block in enumerate(adapted.blocks)
            for path in block.module_paths
            if name == path or name.startswith(f"{path}.")
        ]
        if inside:
            depth[name] = len(adapted.blocks) - inside[0]
        elif not name.startswith(f"{adapted.classifier_layer.path}."):
            depth[name] = len(adapted.blocks) + 1
    return depth


class LrSchedule:
    """The learning rate of every step of a phase: a linear rise, then constant or a cosine down to 0."""

    def __init__(
        self, optimiser: torch.optim.Optimizer, config: FinetuneConfig, steps: int
    ) -> None:
        self._optimizer = optimiser
        self._base_lrs = [group["lr"] for group in optimiser.param_groups]
        self._uses_cosine = config.schedule == "cosine"
        self._total_steps = max(1, steps)
        self._warmup_steps = round(config.warmup * self._total_steps)
        self.next_step = 0
        """The next one, counted from 0."""

    def factor(self, step: int) -> float:
        """Of the phase's rate, at a step counted from 0."""
        if step < self._warmup_steps:
            return (step + 1) / self._warmup_steps
        if not self._uses_cosine:
            return 1.0
        done = (step - self._warmup_steps) / max(1, self._total_steps - self._warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

    def advance(self) -> None:
        """Set the rates of the next step."""
        factor = self.factor(self.next_step)
        for group, base in zip(self._optimizer.param_groups, self._base_lrs, strict=True):
            group["lr"] = base * factor
        self.next_step += 1


@dataclass(frozen=True)
class MixedBatch:
    """A batch in which images may be mixed in pairs."""

    values: Tensors
    targets: Tensor
    partner_targets: Tensor | None = None
    """Targets of the images that were mixed in; None where nothing was."""
    target_share: Tensor | None = None
    """Of `targets` in each image, float32 [batch]; the rest is `partners`'."""


class Mixup:
    """mixup, and CutMix where values have a place to cut; its own generator, so that switching them on changes no other number."""

    def __init__(self, config: FinetuneConfig, phase: int) -> None:
        self._mixup_alpha, self._cutmix_alpha = config.mixup, config.cutmix
        self._generator = np.random.default_rng([config.seed, phase, 1])

    @property
    def generator_state(self) -> dict[str, Any]:
        """Of the generator, for a checkpoint."""
        return dict(self._generator.bit_generator.state)

    @generator_state.setter
    def generator_state(self, state: dict[str, Any]) -> None:
        self._generator.bit_generator.state = state

    def __call__(self, values: Tensors, targets: Tensor) -> MixedBatch:
        """Mix each image with another one of the batch, by one share for the batch."""
        spatial = all(value.dim() == 4 and min(value.shape[2:]) > 1 for value in values)
        if not (self._mixup_alpha or (self._cutmix_alpha and spatial)) or len(targets) < 2:
            return MixedBatch(values, targets)
        cut = (
            self._cutmix_alpha > 0
            and spatial
            and (not self._mixup_alpha or bool(self._generator.integers(2)))
        )
        alpha = self._cutmix_alpha if cut else self._mixup_alpha
        share = float(self._generator.beta(alpha, alpha))
        partner = copy_to_device(
            torch.from_numpy(self._generator.permutation(len(targets))), targets.device
        )
        if cut:
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
        # One box in relative coordinates for all values: feature maps of one image differ in size, not in place.
        side = math.sqrt(1 - share)
        centre = self._generator.random(2)
        low, high = np.clip(centre - side / 2, 0, 1), np.clip(centre + side / 2, 0, 1)
        pasted, kept = [], 1.0
        for value in values:
            height, width = value.shape[2:]
            top, bottom = round(low[0] * height), round(high[0] * height)
            left, right = round(low[1] * width), round(high[1] * width)
            value = value.clone()
            value[:, :, top:bottom, left:right] = value[partner, :, top:bottom, left:right]
            pasted.append(value)
            kept = 1 - (bottom - top) * (right - left) / (height * width)
        return tuple(pasted), kept


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
        """(sum over the batch, sum of the images' weights): their quotient is the mean, weighted by class where that was asked for."""

        def each(targets: Tensor) -> Tensor:
            return F.cross_entropy(
                logits,
                targets,
                self._class_weights,
                label_smoothing=self._label_smoothing,
                reduction="none",
            )

        def mix(figure: Callable[[Tensor], Tensor]) -> Tensor:
            own = figure(mixed.targets)
            if mixed.partner_targets is None or mixed.target_share is None:
                return own
            return mixed.target_share * own + (1 - mixed.target_share) * figure(
                mixed.partner_targets
            )

        losses, weights = mix(each), self._class_weights
        if weights is None:
            return losses.sum(), losses.new_full((), len(losses))
        return losses.sum(), mix(lambda targets: weights[targets]).sum()


def running_stats(network: nn.Module) -> list[Tensor]:
    """Statistics that move with every batch, with the modes that are set now."""
    training = [module for module in network.modules() if module.training]
    return [
        buffer
        for module in training
        for buffer in module.buffers(recurse=False)
        if buffer.is_floating_point()
    ]


class ModelEma:
    """Exponential moving average of trained parameters and of the buffers that move with them (Polyak and Juditsky, 1992)."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        self._decay = decay
        self.num_updates = 0
        """That were averaged."""
        trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
        self._model_tensors = [*trained, *running_stats(network)]
        self.average = [tensor.detach().clone() for tensor in self._model_tensors]
        self._swap_buffers = [torch.empty_like(tensor) for tensor in self.average]

    @torch.no_grad()
    def restore(self, average: Sequence[Tensor], steps: int) -> None:
        """Go on with an average that was saved."""
        torch._foreach_copy_(self.average, list(average))
        self.num_updates = steps

    @torch.no_grad()
    def update(self) -> None:
        """After a step. The decay rises with the number of steps, so that the start is forgotten soon."""
        self.num_updates += 1
        weight = 1 - min(self._decay, (1 + self.num_updates) / (10 + self.num_updates))
        torch._foreach_lerp_(
            self.average, [tensor.detach() for tensor in self._model_tensors], weight
        )

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """The network has the average's weights inside the block."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        # Copied, not exchanged: the optimizer and captured CUDA graphs hold the live tensors' addresses.
        live = [tensor.detach() for tensor in self._model_tensors]
        torch._foreach_copy_(self._swap_buffers, live)
        torch._foreach_copy_(live, self.average)
        self.average, self._swap_buffers = self._swap_buffers, self.average

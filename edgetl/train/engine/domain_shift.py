"""How far images are from those that a backbone was trained on, read off its BatchNorm layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn

NUM_IMAGES = 128
"""That tell enough: each gives every channel dozens of values."""


@torch.no_grad()
def batch_norm_shift(
    network: nn.Module,
    forward: Callable[..., Tensor],
    batches: Iterable[tuple[Sequence[Tensor], Tensor]],
) -> float:
    """Divergence of what reaches BatchNorm from what it has seen in pretraining; 0.0 where no BatchNorm is trained.

    For each channel the Kullback-Leibler divergence between two normal distributions, the channel's mean and variance on these images
    against the layer's running statistics, in nats; the median over the channels of a layer, the mean over the layers. That these
    statistics carry the domain is shown by Li et al., "Revisiting Batch Normalization For Practical Domain Adaptation" (2016).

    Args:
        network: left in evaluation mode.
        forward: runs those of its layers that are looked at.
        batches: ((float32 values, ...), labels), as many as it takes for IMAGES images.
    """
    network.eval()
    layers = [
        module
        for module in network.modules()
        if isinstance(module, nn.BatchNorm2d) and _is_trained(module)
    ]
    if not layers:
        return 0.0
    sums: dict[nn.Module, Tensor] = {}
    hooks = [
        layer.register_forward_pre_hook(partial(_accumulate_moments, sums)) for layer in layers
    ]
    try:
        seen = 0
        for values, labels in batches:
            forward(*values)
            seen += len(labels)
            if seen >= NUM_IMAGES:
                break
    finally:
        for hook in hooks:
            hook.remove()
    # A compiled forward may not call hooks: then nothing is known, and statistics move, as they do for unfamiliar images.
    return mean(_kl_divergence(layer, found) for layer, found in sums.items()) if sums else math.inf


def _is_trained(layer: nn.BatchNorm2d) -> bool:
    return (
        layer.running_mean is not None and layer.weight is not None and layer.weight.requires_grad
    )


def _accumulate_moments(
    sums: dict[nn.Module, Tensor], layer: nn.Module, given: tuple[Any, ...]
) -> None:
    value: Tensor = given[0].double()
    count = torch.full_like(value[0, :, 0, 0], value.numel() / value.shape[1])
    found = torch.stack([count, value.sum((0, 2, 3)), value.square().sum((0, 2, 3))])
    sums[layer] = sums[layer] + found if layer in sums else found


def _kl_divergence(layer: nn.Module, sums: Tensor) -> float:
    assert isinstance(layer, nn.BatchNorm2d)
    assert layer.running_mean is not None
    assert layer.running_var is not None
    count, total, squares = sums
    known = layer.running_var.double() + layer.eps
    center = total / count
    spread = (squares / count - center.square()).clamp(min=0) + layer.eps
    ratio = spread / known
    divergences = 0.5 * (
        ratio + (center - layer.running_mean.double()).square() / known - 1 - ratio.log()
    )
    return float(divergences.median())

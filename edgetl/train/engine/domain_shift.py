"""Domain shift between images and a backbone's pretraining data, measured at BatchNorm layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn

NUM_IMAGES = 128
"""Number of images to sample; each yields dozens of values per channel."""


@torch.no_grad()
def batch_norm_shift(
    model: nn.Module,
    forward: Callable[..., Tensor],
    batches: Iterable[tuple[Sequence[Tensor], Tensor]],
) -> float:
    """Return the divergence of BatchNorm inputs from the pretrained running statistics, in nats.

    For each channel it is the Kullback-Leibler divergence between two normal distributions: the
    channel's mean and variance on these images against the layer's running statistics. Returned is
    the mean over the layers of the median over a layer's channels. Li et al., "Revisiting Batch
    Normalization For Practical Domain Adaptation" (2016), show that these statistics carry the
    domain.

    Args:
        model: the model; left in evaluation mode.
        forward: runs the layers that are measured.
        batches: ((float32 values, ...), labels); read until `NUM_IMAGES` images are sampled.

    Returns:
        0.0 if no BatchNorm layer is trainable; infinity if `forward` does not call hooks.
    """
    model.eval()
    layers = [
        module
        for module in model.modules()
        if isinstance(module, nn.BatchNorm2d) and _is_trainable(module)
    ]
    if not layers:
        return 0.0
    sums: dict[nn.Module, Tensor] = {}
    hooks = [
        layer.register_forward_pre_hook(partial(_accumulate_moments, sums)) for layer in layers
    ]
    try:
        num_images = 0
        for values, labels in batches:
            forward(*values)
            num_images += len(labels)
            if num_images >= NUM_IMAGES:
                break
    finally:
        for hook in hooks:
            hook.remove()
    if not sums:
        # A compiled forward may not call hooks. The images then count as unfamiliar.
        return math.inf
    return mean(_kl_divergence(layer, moments) for layer, moments in sums.items())


def _is_trainable(layer: nn.BatchNorm2d) -> bool:
    return (
        layer.running_mean is not None and layer.weight is not None and layer.weight.requires_grad
    )


def _accumulate_moments(
    sums: dict[nn.Module, Tensor], layer: nn.Module, inputs: tuple[Any, ...]
) -> None:
    value: Tensor = inputs[0].double()
    count = torch.full_like(value[0, :, 0, 0], value.numel() / value.shape[1])
    moments = torch.stack([count, value.sum((0, 2, 3)), value.square().sum((0, 2, 3))])
    sums[layer] = sums[layer] + moments if layer in sums else moments


def _kl_divergence(layer: nn.Module, sums: Tensor) -> float:
    assert isinstance(layer, nn.BatchNorm2d)
    assert layer.running_mean is not None
    assert layer.running_var is not None
    count, total, squares = sums
    running_variance = layer.running_var.double() + layer.eps
    mean_value = total / count
    variance = (squares / count - mean_value.square()).clamp(min=0) + layer.eps
    ratio = variance / running_variance
    distance = (mean_value - layer.running_mean.double()).square() / running_variance
    divergences = 0.5 * (ratio + distance - 1 - ratio.log())
    return float(divergences.median())

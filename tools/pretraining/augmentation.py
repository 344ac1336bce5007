"""Random augmentation of a batch on its device: crop, flip, rotation, brightness and color."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from edgetl.core.preprocessing import Preprocessing

_GRAY = (0.299, 0.587, 0.114)


def random_views(
    images: Tensor,
    side: int,
    least_crop: float,
    preprocessing: Preprocessing,
    generator: torch.Generator,
) -> Tensor:
    """Return a random view of each image, normalized float32 [batch, 3, side, side].

    Crops as in Szegedy et al. (2015), flips, rotations of up to 15 degrees, and changes of
    brightness, contrast and saturation; a tenth of the views is gray.

    Args:
        images: uint8 [batch, height, width, 3].
        side: side of the views, pixels.
        least_crop: smallest share of an image's area in a view.
        preprocessing: mean and standard deviation of the model's input.
        generator: generator on the CPU, so that the views are the same on every device.
    """
    count, device = len(images), images.device

    def uniform(low: float, high: float) -> Tensor:
        return torch.empty(count).uniform_(low, high, generator=generator)

    # The order of the draws is fixed: another order gives other views for the same seed.
    area = uniform(least_crop, 1)
    ratio = torch.exp(0.5 * uniform(math.log(3 / 4), math.log(4 / 3)))
    width = (area.sqrt() * ratio).clamp(max=1)
    height = (area.sqrt() / ratio).clamp(max=1)
    x = uniform(-1, 1) * (1 - width)
    y = uniform(-1, 1) * (1 - height)
    angle = uniform(-math.pi / 12, math.pi / 12)
    flip = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
    rows = [
        width * angle.cos() * flip,
        -height * angle.sin(),
        x,
        width * angle.sin() * flip,
        height * angle.cos(),
        y,
    ]
    transforms = torch.stack(rows, 1).view(count, 2, 3).to(device)
    pixels = images.permute(0, 3, 1, 2).float().div_(255)
    grid = F.affine_grid(transforms, [count, 3, side, side], align_corners=False)
    views = F.grid_sample(
        pixels, grid, mode="bilinear", padding_mode="reflection", align_corners=False
    )
    brightness, contrast, saturation = (
        uniform(0.6, 1.4).view(-1, 1, 1, 1).to(device) for _ in range(3)
    )
    saturation = torch.where(uniform(0, 1).view(-1, 1, 1, 1).to(device) < 0.1, 0.0, saturation)
    gray = (views * torch.tensor(_GRAY, device=device).view(1, 3, 1, 1)).sum(1, keepdim=True)
    views = gray + (views - gray) * saturation
    mean_gray = gray.mean((1, 2, 3), keepdim=True)
    views = ((mean_gray + (views - mean_gray) * contrast) * brightness).clamp_(0, 1)
    return normalize(views, preprocessing)


def normalize(pixels: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Normalize [batch, 3, side, side] in [0, 1] by mean and standard deviation, channels last."""
    mean, std = (
        torch.tensor(values, device=pixels.device).view(1, 3, 1, 1)
        for values in (preprocessing.mean, preprocessing.std)
    )
    return ((pixels - mean) / std).contiguous(memory_format=torch.channels_last)

"""Random views of a batch, on whatever device it lies: crops, flips, small turns, light and colour."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from edgetl.core.preprocessing import Preprocessing

_GREY = (0.299, 0.587, 0.114)


def random_views(
    images: Tensor,
    side: int,
    least_crop: float,
    preprocessing: Preprocessing,
    generator: torch.Generator,
) -> Tensor:
    """A view of each image, normalised float32 [batch, 3, side, side].

    Crops as in Szegedy et al. (2015), flips, turns of up to 15 degrees, brightness, contrast, saturation; a tenth has no colour at all.

    Args:
        images: uint8 [batch, height, width, 3].
        generator: on the CPU, so that the views are the same on every device.
    """
    count, device = len(images), images.device

    def each(low: float, high: float) -> Tensor:
        return torch.empty(count).uniform_(low, high, generator=generator)

    area, ratio = each(least_crop, 1), torch.exp(0.5 * each(math.log(3 / 4), math.log(4 / 3)))
    width, height = (area.sqrt() * ratio).clamp(max=1), (area.sqrt() / ratio).clamp(max=1)
    x, y = each(-1, 1) * (1 - width), each(-1, 1) * (1 - height)
    angle, flip = each(-math.pi / 12, math.pi / 12), torch.where(each(0, 1) < 0.5, -1.0, 1.0)
    rows = [
        width * angle.cos() * flip,
        -height * angle.sin(),
        x,
        width * angle.sin() * flip,
        height * angle.cos(),
        y,
    ]
    boxes = torch.stack(rows, 1).view(count, 2, 3).to(device)
    pixels = images.permute(0, 3, 1, 2).float().div_(255)
    grid = F.affine_grid(boxes, [count, 3, side, side], align_corners=False)
    seen = F.grid_sample(
        pixels, grid, mode="bilinear", padding_mode="reflection", align_corners=False
    )
    brightness, contrast, saturation = (
        each(0.6, 1.4).view(-1, 1, 1, 1).to(device) for _ in range(3)
    )
    saturation = torch.where(each(0, 1).view(-1, 1, 1, 1).to(device) < 0.1, 0.0, saturation)
    grey = (seen * torch.tensor(_GREY, device=device).view(1, 3, 1, 1)).sum(1, keepdim=True)
    seen = grey + (seen - grey) * saturation
    middle = grey.mean((1, 2, 3), keepdim=True)
    seen = ((middle + (seen - middle) * contrast) * brightness).clamp_(0, 1)
    return normalised(seen, preprocessing)


def normalised(pixels: Tensor, preprocessing: Preprocessing) -> Tensor:
    """[batch, 3, side, side] in [0, 1] as the network takes it, channels last."""
    mean, std = (
        torch.tensor(values, device=pixels.device).view(1, 3, 1, 1)
        for values in (preprocessing.mean, preprocessing.std)
    )
    return ((pixels - mean) / std).contiguous(memory_format=torch.channels_last)

"""Augmented views computed on the device, a batch at a time, as albumentations and OpenCV compute them on the CPU.

Each step gives integer grey levels, as the CPU's uint8 images do between transforms, with OpenCV's and
albucore's own rounding. What the device needs besides the images goes there in one copy a batch, and
nothing is read back, so the host never waits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from edgetl.train.common.precision import copy_to_device
from edgetl.train.data.view_parameters import ViewParameters

_LUMINANCE = (0.299, 0.587, 0.114)
"""Weights of R, G and B (ITU-R BT.601)."""
_RESIZE_BATCH = 16
"""Images whose resize weights exist at the same time: 2 x 4 bytes x side x length each."""


@torch.no_grad()
def augment(images: Sequence[Tensor], parameters: Sequence[ViewParameters], side: int) -> Tensor:
    """Compute a batch of views; a view does not depend on what else is in the batch.

    Args:
        images: uint8 [3, height, width] each, of any size, on one device.
        parameters: of the view wanted of each image.
        side: pixels.

    Returns:
        uint8 [batch, side, side, 3] on the images' device.
    """
    device = images[0].device
    upload = _Upload()
    steps = [_plan_crops(upload, images, parameters, side)]
    steps += _plan_colors(upload, parameters)
    for matrices in (
        [view.affine for view in parameters],
        [view.perspective for view in parameters],
    ):
        steps += _plan_warp(upload, matrices, side)
    steps += _plan_blur(upload, parameters)
    steps += _plan_noise(upload, parameters)
    steps += _plan_gray(upload, parameters)
    steps += _plan_holes(upload, parameters, side)
    upload.send(device)
    # A 16-bit autocast around the training step must not reach the pixels.
    with torch.autocast(device.type, enabled=False):
        pixels = torch.empty(len(images), 3, side, side, device=device)
        for step in steps:
            step(pixels)
        return pixels.to(torch.uint8).permute(0, 2, 3, 1).contiguous()


_Step = Callable[[Tensor], None]
"""Changes float32 [batch, 3, side, side] of integer values in [0, 255] in place."""


class _Upload:
    """Small arrays that go to the device in one copy from pinned memory."""

    def __init__(self) -> None:
        self._arrays: list[NDArray[np.float32]] = []
        self._device_arrays: list[Tensor] = []

    def add(self, array: NDArray[np.generic] | Sequence[float]) -> int:
        """Add an array; returns its number for `get`. Integers must be below 2^24."""
        self._arrays.append(np.ascontiguousarray(array, np.float32))
        return len(self._arrays) - 1

    def send(self, device: torch.device) -> None:
        """Start the copy."""
        flat = torch.from_numpy(np.concatenate([array.ravel() for array in self._arrays]))
        parts = torch.split(copy_to_device(flat, device), [array.size for array in self._arrays])
        self._device_arrays = [
            part.view(array.shape) for part, array in zip(parts, self._arrays, strict=True)
        ]

    def get(self, number: int) -> Tensor:
        """float32, of the array's shape."""
        return self._device_arrays[number]


class _ImageSubset:
    """The images of a batch that a step changes, chosen on the host."""

    def __init__(self, upload: _Upload, rows: Sequence[int]) -> None:
        self._upload = upload
        self._row_handle = upload.add(rows)

    def apply(self, pixels: Tensor, function: Callable[[Tensor], Tensor]) -> None:
        """Replace these images by the function's values for them."""
        rows = self._upload.get(self._row_handle).long()
        pixels.index_copy_(0, rows, function(pixels.index_select(0, rows)))


def _plan_crops(
    upload: _Upload, images: Sequence[Tensor], parameters: Sequence[ViewParameters], side: int
) -> _Step:
    plans = [_plan_resize(view, side) for view in parameters]
    parts = []
    for at in range(0, len(images), _RESIZE_BATCH):
        axes = zip(*plans[at : at + _RESIZE_BATCH], strict=True)
        # Aligned alike whatever else is in the batch, since a matrix's alignment may decide its kernel.
        parts.append(
            [
                (upload.add(np.stack(ends)), _align_length(max(end[1].max() for end in ends)))
                for ends in axes
            ]
        )

    def crop(pixels: Tensor) -> None:
        for part, axes in enumerate(parts):
            across, down = (
                _resize_weights(upload.get(bounds), longest) for bounds, longest in axes
            )
            first = part * _RESIZE_BATCH
            for at in range(len(across)):
                left, top, right, bottom = parameters[first + at].crop
                region = images[first + at][:, top:bottom, left:right].float()
                narrowed = torch.matmul(region, across[at, :, : right - left].T)
                torch.matmul(down[at, :, : bottom - top], narrowed, out=pixels[first + at])
        pixels.round_().clamp_(0, 255)

    return crop


def _plan_resize(
    view: ViewParameters, side: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Where each pixel of the result lies in the crop, across and down: float64 [2, side] each.

    The two rows are the ends of the stretch that the pixel averages; where they are the same, it is
    interpolated between the centers of the pixels beside that place (pixel n has its center at n).
    """
    left, top, right, bottom = view.crop
    lengths = np.array([right - left, bottom - top])
    # As RandomResizedCrop chooses between INTER_LINEAR and INTER_AREA; OpenCV averages areas only where
    # no axis grows, and otherwise interpolates from a pixel's corner.
    if not (lengths > side).any():
        axes = [_linear_positions(length, side) for length in lengths]
    elif (lengths >= side).all():
        axes = [
            np.stack([np.arange(side), np.arange(1, side + 1)]) * (length / side)
            for length in lengths
        ]
    else:
        axes = [_corner_positions(length, side) for length in lengths]
    across, down = axes
    return (across[:, ::-1] if view.flip else across), down


def _align_length(last: float) -> int:
    return 16 * (int(last) // 16 + 1)


def _linear_positions(length: int, side: int) -> NDArray[np.float64]:
    places = (np.arange(side) + 0.5) * (length / side) - 0.5
    return np.stack([places, places]).clip(0, length - 1)


def _corner_positions(length: int, side: int) -> NDArray[np.float64]:
    # In doubles with the reciprocal, as OpenCV does: where a product should be whole, its rounding
    # decides which pixel is taken.
    inverse = side / length
    corners = np.floor(np.arange(side) * (1 / inverse))
    fractions = (np.arange(1, side + 1) - (corners + 1) * inverse).astype(np.float32)
    fractions = np.where(fractions <= 0, 0, fractions - np.floor(fractions))
    places = (corners + fractions).clip(0, length - 1)
    return np.stack([places, places])


def _resize_weights(ends: Tensor, longest: int) -> Tensor:
    """Weights of source pixels for each pixel of the result along one axis.

    Args:
        ends: float32 [images, 2, side], see `_plan_resize`.
        longest: source pixels to give weights for.

    Returns:
        float32 [images, side, longest].
    """
    low, high = ends[:, 0, :, None], ends[:, 1, :, None]
    source = torch.arange(longest, device=ends.device, dtype=torch.float32)
    overlap = (torch.minimum(source + 1, high) - torch.maximum(source, low)).clamp_(min=0)
    linear = (1 - (source - low).abs_()).clamp_(min=0)
    return torch.where(high > low, overlap / (high - low), linear)


def _plan_colors(upload: _Upload, parameters: Sequence[ViewParameters]) -> list[_Step]:
    steps: list[_Step] = []
    for place in range(max(len(view.color) for view in parameters)):
        chosen = [
            (row, *view.color[place])
            for row, view in enumerate(parameters)
            if place < len(view.color)
        ]
        for operation, function in (
            ("brightness", _adjust_brightness),
            ("contrast", _adjust_contrast),
            ("saturation", _adjust_saturation),
            ("hue", _adjust_hue),
        ):
            # albumentations leaves the image alone at these factors, before any rounding.
            neutral = 0.0 if operation == "hue" else 1.0
            rows = [
                (row, factor)
                for row, name, factor in chosen
                if name == operation and factor != neutral
            ]
            if rows:
                steps.append(_color_step(upload, rows, function))
    return steps


def _color_step(
    upload: _Upload, rows: Sequence[tuple[int, float]], function: Callable[[Tensor, Tensor], Tensor]
) -> _Step:
    images = _ImageSubset(upload, [row for row, _ in rows])
    factors = upload.add([factor for _, factor in rows])
    return lambda pixels: images.apply(
        pixels, lambda chosen: function(chosen, upload.get(factors)[:, None, None, None])
    )


def _to_luminance(pixels: Tensor) -> Tensor:
    """Integer grey levels [batch, 1, height, width], as cv2.COLOR_RGB2GRAY gives."""
    red, green, blue = _LUMINANCE
    return (red * pixels[:, 0:1] + green * pixels[:, 1:2] + blue * pixels[:, 2:3]).round_()


def _adjust_brightness(pixels: Tensor, factor: Tensor) -> Tensor:
    return (pixels * factor).clamp_(0, 255).floor_()


def _adjust_contrast(pixels: Tensor, factor: Tensor) -> Tensor:
    mean = _to_luminance(pixels).mean(dim=(1, 2, 3), keepdim=True)
    return (pixels * factor + mean * (1 - factor)).clamp_(0, 255).floor_()


def _adjust_saturation(pixels: Tensor, factor: Tensor) -> Tensor:
    return (pixels * factor + _to_luminance(pixels) * (1 - factor)).round_().clamp_(0, 255)


def _adjust_hue(pixels: Tensor, factor: Tensor) -> Tensor:
    # As OpenCV's 8-bit HSV: hue in steps of two degrees, saturation in 255 steps.
    red, green, blue = pixels.unbind(1)
    value = pixels.amax(1)
    chroma = value - pixels.amin(1)
    divisor = chroma.clamp(min=1)
    hue = torch.where(
        value == red,
        (green - blue) / divisor,
        torch.where(value == green, (blue - red) / divisor + 2, (red - green) / divisor + 4),
    )
    hue = (30 * hue + 0.5).floor_()
    hue = torch.where(hue < 0, hue + 180, hue)
    saturation = (255 * chroma / value.clamp(min=1)).round_()
    # The table of turned hues is cut to whole steps after it was turned in integers and doubles.
    hue = torch.remainder(hue + 180 * factor[:, 0], 180).floor_()
    sector = hue / 30
    # Each channel falls with its distance from its own hue (Smith, 1978).
    shades = [(sector + shift).remainder(6) for shift in (5.0, 3.0, 1.0)]
    shares = [torch.minimum(shade, 4 - shade).clamp_(0, 1) for shade in shades]
    channels = [value - value * saturation / 255 * share for share in shares]
    return torch.stack(channels, dim=1).floor_().clamp_(0, 255)


def _plan_warp(
    upload: _Upload, matrices: Sequence[NDArray[np.float64] | None], side: int
) -> list[_Step]:
    chosen = [
        (row, matrix)
        for row, matrix in enumerate(matrices)
        if matrix is not None and not np.array_equal(matrix, np.eye(3))
    ]
    if not chosen:
        return []
    images = _ImageSubset(upload, [row for row, _ in chosen])
    inverses = upload.add(np.stack([np.linalg.inv(matrix) for _, matrix in chosen]))

    def warp(pixels: Tensor) -> Tensor:
        inverse = upload.get(inverses)
        places = torch.arange(side, device=pixels.device, dtype=torch.float32)
        y, x = torch.meshgrid(places, places, indexing="ij")
        x, y, depth = (
            inverse[:, at, 0, None, None] * x
            + inverse[:, at, 1, None, None] * y
            + inverse[:, at, 2, None, None]
            for at in range(3)
        )
        source = torch.stack([x / depth, y / depth], dim=-1)
        # With aligned corners a reflection is one about the centers of the outermost pixels: BORDER_REFLECT_101.
        grid = source * (2 / (side - 1)) - 1
        return (
            functional.grid_sample(pixels, grid, "bilinear", "reflection", align_corners=True)
            .round_()
            .clamp_(0, 255)
        )

    return [lambda pixels: images.apply(pixels, warp)]


def _plan_blur(upload: _Upload, parameters: Sequence[ViewParameters]) -> list[_Step]:
    chosen = [
        (row, view.blur)
        for row, view in enumerate(parameters)
        if view.blur is not None and len(view.blur) > 1
    ]
    if not chosen:
        return []
    reach = max(len(kernel) for _, kernel in chosen) // 2
    images = _ImageSubset(upload, [row for row, _ in chosen])
    kernels = upload.add(
        np.stack([np.pad(kernel, reach - len(kernel) // 2) for _, kernel in chosen])
    )

    def blur(pixels: Tensor) -> Tensor:
        images_in, channels, height, width = pixels.shape
        kernel = upload.get(kernels).repeat_interleave(channels, dim=0)[:, None]
        padded = functional.pad(pixels, (reach,) * 4, mode="reflect").view(
            1, images_in * channels, height + 2 * reach, width + 2 * reach
        )
        across = functional.conv2d(padded, kernel[:, :, None, :], groups=images_in * channels)
        down = functional.conv2d(across, kernel[:, :, :, None], groups=images_in * channels)
        return down.view(pixels.shape).round_().clamp_(0, 255)

    return [lambda pixels: images.apply(pixels, blur)]


def _plan_noise(upload: _Upload, parameters: Sequence[ViewParameters]) -> list[_Step]:
    chosen = [(row, *view.noise) for row, view in enumerate(parameters) if view.noise is not None]
    if not chosen:
        return []
    images = _ImageSubset(upload, [row for row, _, _ in chosen])
    deviations = upload.add([deviation for _, deviation, _ in chosen])

    def add_noise(pixels: Tensor) -> Tensor:
        noise = torch.empty_like(pixels)
        for row, (_, _, seed) in enumerate(chosen):
            # A generator of its own for each view: what else is in the batch changes nothing.
            generator = torch.Generator(pixels.device).manual_seed(seed)
            noise[row].normal_(generator=generator)
        # albucore cuts the noise to integers toward zero.
        noise.mul_(upload.get(deviations)[:, None, None, None]).trunc_()
        return noise.add_(pixels).clamp_(0, 255)

    return [lambda pixels: images.apply(pixels, add_noise)]


def _plan_gray(upload: _Upload, parameters: Sequence[ViewParameters]) -> list[_Step]:
    chosen = [row for row, view in enumerate(parameters) if view.gray]
    if not chosen:
        return []
    images = _ImageSubset(upload, chosen)
    return [
        lambda pixels: images.apply(
            pixels, lambda colored: _to_luminance(colored).expand_as(colored)
        )
    ]


def _plan_holes(upload: _Upload, parameters: Sequence[ViewParameters], side: int) -> list[_Step]:
    chosen = [(row, hole) for row, view in enumerate(parameters) for hole in view.holes]
    if not chosen:
        return []
    rows = sorted({row for row, _ in chosen})
    most = max(len(view.holes) for view in parameters)
    images = _ImageSubset(upload, rows)
    # Rows without as many holes as others are filled up with empty rectangles.
    boxes = upload.add(
        np.stack(
            [
                np.pad(parameters[row].holes, ((0, most - len(parameters[row].holes)), (0, 0)))
                for row in rows
            ]
        )
    )

    def fill(pixels: Tensor) -> Tensor:
        left, top, right, bottom = (edge[..., None] for edge in upload.get(boxes).unbind(-1))
        places = torch.arange(side, device=pixels.device, dtype=torch.float32)
        inside_x = (places >= left) & (places < right)
        inside_y = (places >= top) & (places < bottom)
        covered = (inside_y[..., :, None] & inside_x[..., None, :]).any(dim=1, keepdim=True)
        return pixels.masked_fill(covered, 0)

    return [lambda pixels: images.apply(pixels, fill)]

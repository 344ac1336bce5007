"""Augmentation of batches on the device, equal to albumentations and OpenCV on the CPU.

Each step returns integer gray levels, like the CPU's uint8 images between transforms, with the
rounding of OpenCV and albucore. Everything but the images is uploaded in one copy per batch, and
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
"""Images whose resize weights are in memory together: 2 x 4 bytes x side x length each."""


@torch.no_grad()
def augment(images: Sequence[Tensor], parameters: Sequence[ViewParameters], side: int) -> Tensor:
    """Compute a batch of views; a view does not depend on the rest of the batch.

    Args:
        images: uint8 [3, height, width] each, of any size, on one device.
        parameters: parameters of the view of each image.
        side: side of the views in pixels.

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
    # A 16-bit autocast of the training step must not apply to the pixels.
    with torch.autocast(device.type, enabled=False):
        pixels = torch.empty(len(images), 3, side, side, device=device)
        for step in steps:
            step(pixels)
        return pixels.to(torch.uint8).permute(0, 2, 3, 1).contiguous()


_Step = Callable[[Tensor], None]
"""In-place change of float32 [batch, 3, side, side] with integer values in [0, 255]."""


class _Upload:
    """Upload of small arrays to the device in one copy from pinned memory."""

    def __init__(self) -> None:
        self._arrays: list[NDArray[np.float32]] = []
        self._device_arrays: list[Tensor] = []

    def add(self, array: NDArray[np.generic] | Sequence[float]) -> int:
        """Add an array and return its number for `get`; integers must be below 2^24."""
        self._arrays.append(np.ascontiguousarray(array, np.float32))
        return len(self._arrays) - 1

    def send(self, device: torch.device) -> None:
        """Start the copy."""
        flat = torch.from_numpy(np.concatenate([array.ravel() for array in self._arrays]))
        chunks = torch.split(copy_to_device(flat, device), [array.size for array in self._arrays])
        self._device_arrays = [
            chunk.view(array.shape) for chunk, array in zip(chunks, self._arrays, strict=True)
        ]

    def get(self, number: int) -> Tensor:
        """Return an array on the device as float32."""
        return self._device_arrays[number]


class _ImageSubset:
    """Images of a batch that a step changes, selected on the host."""

    def __init__(self, upload: _Upload, rows: Sequence[int]) -> None:
        self._upload = upload
        self._row_handle = upload.add(rows)

    def apply(self, pixels: Tensor, function: Callable[[Tensor], Tensor]) -> None:
        """Replace these images by the output of the function."""
        rows = self._upload.get(self._row_handle).long()
        pixels.index_copy_(0, rows, function(pixels.index_select(0, rows)))


def _plan_crops(
    upload: _Upload, images: Sequence[Tensor], parameters: Sequence[ViewParameters], side: int
) -> _Step:
    bounds_by_image = [_plan_resize(view, side) for view in parameters]
    chunks = []
    for start in range(0, len(images), _RESIZE_BATCH):
        axes = zip(*bounds_by_image[start : start + _RESIZE_BATCH], strict=True)
        # Lengths are padded to multiples of 16, so that the alignment of a matrix, which may
        # select its kernel, does not depend on the rest of the batch.
        chunks.append(
            [
                (upload.add(np.stack(bounds)), _align_length(max(high.max() for _, high in bounds)))
                for bounds in axes
            ]
        )

    def crop(pixels: Tensor) -> None:
        for chunk, axes in enumerate(chunks):
            horizontal, vertical = (
                _resize_weights(upload.get(handle), length) for handle, length in axes
            )
            for row in range(len(horizontal)):
                image = chunk * _RESIZE_BATCH + row
                left, top, right, bottom = parameters[image].crop
                region = images[image][:, top:bottom, left:right].float()
                narrowed = torch.matmul(region, horizontal[row, :, : right - left].T)
                torch.matmul(vertical[row, :, : bottom - top], narrowed, out=pixels[image])
        pixels.round_().clamp_(0, 255)

    return crop


def _plan_resize(
    view: ViewParameters, side: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the source range of each output pixel in the crop, horizontal and vertical.

    Each is float64 [2, side]: the two ends of the range that the pixel averages. If they are equal,
    the pixel is interpolated between the centers of the neighboring source pixels (pixel n has its
    center at n).
    """
    left, top, right, bottom = view.crop
    lengths = np.array([right - left, bottom - top])
    # RandomResizedCrop chooses between INTER_LINEAR and INTER_AREA like this. OpenCV averages areas
    # only if no axis grows, and otherwise interpolates from the corner of a pixel.
    if not (lengths > side).any():
        axes = [_linear_positions(length, side) for length in lengths]
    elif (lengths >= side).all():
        axes = [
            np.stack([np.arange(side), np.arange(1, side + 1)]) * (length / side)
            for length in lengths
        ]
    else:
        axes = [_corner_positions(length, side) for length in lengths]
    horizontal, vertical = axes
    return (horizontal[:, ::-1] if view.flip else horizontal), vertical


def _align_length(last: float) -> int:
    return 16 * (int(last) // 16 + 1)


def _linear_positions(length: int, side: int) -> NDArray[np.float64]:
    positions = (np.arange(side) + 0.5) * (length / side) - 0.5
    return np.stack([positions, positions]).clip(0, length - 1)


def _corner_positions(length: int, side: int) -> NDArray[np.float64]:
    # Computed in doubles with the reciprocal, as in OpenCV: if a product should be an integer, its
    # rounding decides which pixel is used.
    inverse = side / length
    corners = np.floor(np.arange(side) * (1 / inverse))
    fractions = (np.arange(1, side + 1) - (corners + 1) * inverse).astype(np.float32)
    fractions = np.where(fractions <= 0, 0, fractions - np.floor(fractions))
    positions = (corners + fractions).clip(0, length - 1)
    return np.stack([positions, positions])


def _resize_weights(bounds: Tensor, length: int) -> Tensor:
    """Return the weights of the source pixels for each output pixel along one axis.

    Args:
        bounds: float32 [images, 2, side], see `_plan_resize`.
        length: number of source pixels.

    Returns:
        float32 [images, side, length].
    """
    low, high = bounds[:, 0, :, None], bounds[:, 1, :, None]
    source = torch.arange(length, device=bounds.device, dtype=torch.float32)
    overlap = (torch.minimum(source + 1, high) - torch.maximum(source, low)).clamp_(min=0)
    linear = (1 - (source - low).abs_()).clamp_(min=0)
    return torch.where(high > low, overlap / (high - low), linear)


def _plan_colors(upload: _Upload, parameters: Sequence[ViewParameters]) -> list[_Step]:
    steps: list[_Step] = []
    for position in range(max(len(view.color) for view in parameters)):
        operations = [
            (row, *view.color[position])
            for row, view in enumerate(parameters)
            if position < len(view.color)
        ]
        for operation, function in (
            ("brightness", _adjust_brightness),
            ("contrast", _adjust_contrast),
            ("saturation", _adjust_saturation),
            ("hue", _adjust_hue),
        ):
            # albumentations does not change an image with these factors, before any rounding.
            neutral = 0.0 if operation == "hue" else 1.0
            rows = [
                (row, factor)
                for row, name, factor in operations
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
        pixels, lambda subset: function(subset, upload.get(factors)[:, None, None, None])
    )


def _to_luminance(pixels: Tensor) -> Tensor:
    """Return integer gray levels [batch, 1, height, width], as cv2.COLOR_RGB2GRAY."""
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
    # OpenCV's 8-bit HSV has hues in steps of two degrees and saturations in 255 steps.
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
    # The CPU rotates a table of integer hues in doubles and truncates the result.
    hue = torch.remainder(hue + 180 * factor[:, 0], 180).floor_()
    sector = hue / 30
    # Each channel decreases with the distance from its own hue (Smith, 1978).
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
        positions = torch.arange(side, device=pixels.device, dtype=torch.float32)
        y, x = torch.meshgrid(positions, positions, indexing="ij")
        x, y, depth = (
            inverse[:, axis, 0, None, None] * x
            + inverse[:, axis, 1, None, None] * y
            + inverse[:, axis, 2, None, None]
            for axis in range(3)
        )
        source = torch.stack([x / depth, y / depth], dim=-1)
        # With aligned corners, grid_sample reflects about the centers of the outermost pixels,
        # which is BORDER_REFLECT_101.
        grid = source * (2 / (side - 1)) - 1
        warped = functional.grid_sample(pixels, grid, "bilinear", "reflection", align_corners=True)
        return warped.round_().clamp_(0, 255)

    return [lambda pixels: images.apply(pixels, warp)]


def _plan_blur(upload: _Upload, parameters: Sequence[ViewParameters]) -> list[_Step]:
    chosen = [
        (row, view.blur)
        for row, view in enumerate(parameters)
        if view.blur is not None and len(view.blur) > 1
    ]
    if not chosen:
        return []
    radius = max(len(kernel) for _, kernel in chosen) // 2
    images = _ImageSubset(upload, [row for row, _ in chosen])
    kernels = upload.add(
        np.stack([np.pad(kernel, radius - len(kernel) // 2) for _, kernel in chosen])
    )

    def blur(pixels: Tensor) -> Tensor:
        batch_size, channels, height, width = pixels.shape
        kernel = upload.get(kernels).repeat_interleave(channels, dim=0)[:, None]
        planes = batch_size * channels
        padded = functional.pad(pixels, (radius,) * 4, mode="reflect").view(
            1, planes, height + 2 * radius, width + 2 * radius
        )
        horizontal = functional.conv2d(padded, kernel[:, :, None, :], groups=planes)
        blurred = functional.conv2d(horizontal, kernel[:, :, :, None], groups=planes)
        return blurred.view(pixels.shape).round_().clamp_(0, 255)

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
            # One generator per view, so that the rest of the batch has no effect.
            generator = torch.Generator(pixels.device).manual_seed(seed)
            noise[row].normal_(generator=generator)
        # albucore truncates the noise toward zero.
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
    max_holes = max(len(view.holes) for view in parameters)
    images = _ImageSubset(upload, rows)
    # Images with fewer holes are padded with empty rectangles.
    boxes = upload.add(
        np.stack(
            [
                np.pad(parameters[row].holes, ((0, max_holes - len(parameters[row].holes)), (0, 0)))
                for row in rows
            ]
        )
    )

    def fill(pixels: Tensor) -> Tensor:
        left, top, right, bottom = (edge[..., None] for edge in upload.get(boxes).unbind(-1))
        positions = torch.arange(side, device=pixels.device, dtype=torch.float32)
        inside_x = (positions >= left) & (positions < right)
        inside_y = (positions >= top) & (positions < bottom)
        covered = (inside_y[..., :, None] & inside_x[..., None, :]).any(dim=1, keepdim=True)
        return pixels.masked_fill(covered, 0)

    return [lambda pixels: images.apply(pixels, fill)]

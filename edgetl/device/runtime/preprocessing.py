"""Preprocess a decoded image for the model.

Validation, calibration, parity and device all use these functions. Up to Pillow 12 the result is
bit-identical to `Image.resize`, later versions differ by up to one grey level. The ONNX files
contain the same steps; export verifies that both produce the same pixels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgetl.core.config.export import InputKind
from edgetl.core.preprocessing import Preprocessing


def resize_and_crop(image: NDArray[np.uint8], preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Resize the shorter side and crop the center.

    Args:
        image: uint8 [height, width, 3].
        preprocessing: sizes of the resize and the crop, and the interpolation.

    Returns:
        uint8 [crop, crop, 3].
    """
    resized = _resize(image, preprocessing)
    top, left = preprocessing.compute_crop_offset(resized.height, resized.width)
    side = preprocessing.crop
    return np.asarray(resized.crop((left, top, left + side, top + side)))


def resize_around_crop(image: NDArray[np.uint8], preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Resize the shorter side and cut a square around the crop, so that all images have one shape.

    `resize_and_crop` returns the same pixels for the result as for the image, because it no longer
    needs to resize.

    Args:
        image: uint8 [height, width, 3].
        preprocessing: sizes of the resize and the crop, and the interpolation.

    Returns:
        uint8 [resize, resize, 3].
    """
    resized = _resize(image, preprocessing)
    side = preprocessing.resize
    # The square is not always centered: if a difference is odd, the crop's rounding decides.
    crop_top, crop_left = preprocessing.compute_crop_offset(resized.height, resized.width)
    square_crop_top, square_crop_left = preprocessing.compute_crop_offset(side, side)
    top, left = crop_top - square_crop_top, crop_left - square_crop_left
    return np.asarray(resized.crop((left, top, left + side, top + side)))


def _resize(image: NDArray[np.uint8], preprocessing: Preprocessing) -> Image.Image:
    height, width = preprocessing.compute_resized_size(*image.shape[:2])
    # The order of the passes affects the rounding of a fifth of the pixels. Two steps fix it: rows
    # first, as in Pillow before version 13 and in ONNX Runtime. Pillow 13 resizes the columns first
    # if that is cheaper.
    resampling = Image.Resampling[preprocessing.interpolation.upper()]
    rows = Image.fromarray(image).resize((width, image.shape[0]), resampling)
    return rows.resize((width, height), resampling)


def resize_to(image: NDArray[np.uint8], size: tuple[int, int] | None) -> NDArray[np.uint8]:
    """Resize uint8 [height, width, 3] to (height, width), ignoring the aspect ratio.

    Used for golden images of a variant of fixed size: both sides of a comparison get the result.
    The image is returned unchanged if it has that size or `size` is None.
    """
    if size is None or image.shape[:2] == size:
        return image
    return np.asarray(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BILINEAR))


def normalize(
    pixels: NDArray[np.uint8], preprocessing: Preprocessing, channels_last: bool = False
) -> NDArray[np.float32]:
    """Normalize uint8 [batch, S, S, 3] to float32 [batch, 3, S, S].

    With `channels_last`, the memory of the result is in the order [batch, S, S, 3].
    """
    mean = np.asarray(preprocessing.mean, np.float32)
    std = np.asarray(preprocessing.std, np.float32)
    if channels_last:
        batch, height, width, channels = pixels.shape
        # Whole rows: NumPy is slow in operations on the three values of one pixel.
        rows = pixels.reshape(batch, height, width * channels)
        values = _normalize(rows, np.tile(mean, width), np.tile(std, width))
        return values.reshape(pixels.shape).transpose(0, 3, 1, 2)
    # Transposing bytes first takes a quarter of the time.
    planes = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
    return _normalize(planes, mean[:, None, None], std[:, None, None])


def _normalize(
    pixels: NDArray[np.uint8], mean: NDArray[np.float32], std: NDArray[np.float32]
) -> NDArray[np.float32]:
    values = pixels.astype(np.float32)
    values /= np.float32(255)
    values -= mean
    values /= std
    return values


def preprocess(
    image: NDArray[np.uint8], preprocessing: Preprocessing, channels_last: bool = False
) -> NDArray[np.float32]:
    """Resize, crop and normalize uint8 [height, width, 3] to float32 [1, 3, crop, crop].

    With `channels_last`, the memory of the result is in the order [1, crop, crop, 3].
    """
    return normalize(resize_and_crop(image, preprocessing)[None], preprocessing, channels_last)


def to_network_input(
    batch: NDArray[Any], preprocessing: Preprocessing, channels_last: bool = False
) -> NDArray[np.float32]:
    """Preprocess uint8 [batch, height, width, 3]; return a batch of tensors unchanged."""
    if batch.dtype != np.uint8:
        return batch
    return np.concatenate([preprocess(image, preprocessing, channels_last) for image in batch])


def to_channels_last(batch: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return tensors [batch, 3, S, S] with their memory in the order [batch, S, S, 3]."""
    pixels = batch.transpose(0, 2, 3, 1)
    if not pixels.flags.c_contiguous:
        pixels = np.empty(pixels.shape, batch.dtype)
        # One channel at a time: seven times faster than a transposed copy of all three.
        for channel in range(batch.shape[1]):
            pixels[..., channel] = batch[:, channel]
    return pixels.transpose(0, 3, 1, 2)


def make_model_input(
    image: NDArray[np.uint8],
    preprocessing: Preprocessing,
    kind: InputKind,
    size: tuple[int, int] | None = None,
) -> NDArray[np.uint8] | NDArray[np.float32]:
    """Return the input of the benchmark's scope `model` for a decoded photo, a batch of one."""
    if kind == "tensor":
        return preprocess(image, preprocessing)
    return resize_to(image, size or (preprocessing.resize, preprocessing.resize))[None]

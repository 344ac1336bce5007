"""From a decoded image to the network's input: the one function behind validation, calibration, parity and device.

Up to Pillow 12 it equals `Image.resize` to the bit, since then to one grey level. The ONNX files carry the same steps inside; export
proves that both give the same pixels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgetl.core.preprocessing import Preprocessing


def resize_and_crop(image: NDArray[np.uint8], contract: Preprocessing) -> NDArray[np.uint8]:
    """uint8 [height, width, 3] to uint8 [crop, crop, 3]: resize of the shorter side, centre crop."""
    resized = _resize(image, contract)
    top, left = contract.compute_crop_offset(resized.height, resized.width)
    return np.asarray(resized.crop((left, top, left + contract.crop, top + contract.crop)))


def resize_around_crop(image: NDArray[np.uint8], contract: Preprocessing) -> NDArray[np.uint8]:
    """uint8 [height, width, 3] to uint8 [resize, resize, 3]: one shape for all photos.

    `resize_and_crop` takes the same pixels from it as from the photo, because its resize changes nothing any more.
    """
    resized, side = _resize(image, contract), contract.resize
    # Not simply the middle: of an odd difference the crop's own rounding decides.
    own_top, own_left = contract.compute_crop_offset(side, side)
    top, left = contract.compute_crop_offset(resized.height, resized.width)
    return np.asarray(
        resized.crop((left - own_left, top - own_top, left - own_left + side, top - own_top + side))
    )


def _resize(image: NDArray[np.uint8], contract: Preprocessing) -> Image.Image:
    height, width = contract.compute_resized_size(*image.shape[:2])
    # In two steps, since the order of the passes decides the rounding of a fifth of the pixels: rows first, as Pillow always did before
    # version 13 and as ONNX Runtime does. Pillow 13 takes the columns first where that is cheaper.
    rows = Image.fromarray(image).resize((width, image.shape[0]), Image.Resampling.BILINEAR)
    return rows.resize((width, height), Image.Resampling.BILINEAR)


def resize_to(image: NDArray[np.uint8], size: tuple[int, int] | None) -> NDArray[np.uint8]:
    """Resize uint8 [height, width, 3] to (height, width), whatever its shape; unchanged where it has that size, or for None.

    For reference images of a variant of fixed size: both sides of a comparison are given the result.
    """
    if size is None or image.shape[:2] == size:
        return image
    return np.asarray(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BILINEAR))


def normalize(pixels: NDArray[np.uint8], contract: Preprocessing) -> NDArray[np.float32]:
    """uint8 [batch, S, S, 3] to float32 [batch, 3, S, S]."""
    scaled = pixels.astype(np.float32) / np.float32(255)
    normalised = (scaled - np.asarray(contract.mean, np.float32)) / np.asarray(
        contract.std, np.float32
    )
    return np.ascontiguousarray(normalised.transpose(0, 3, 1, 2))


def preprocess(image: NDArray[np.uint8], contract: Preprocessing) -> NDArray[np.float32]:
    """uint8 [height, width, 3] to float32 [1, 3, crop, crop]."""
    return normalize(resize_and_crop(image, contract)[None], contract)

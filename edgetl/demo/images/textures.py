"""Frame of a part, procedural noise, and image helpers."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Plane = NDArray[np.float32]
SeedKey = tuple[int, ...]

FRAME_SIZE = 200
"""Side in pixels of the square frame that parts are built in, before the camera projects them."""
UNIT_PIXELS = 0.44 * FRAME_SIZE
"""Pixels per unit of shape coordinates, the largest distance from a part's center to its edge."""


@lru_cache(maxsize=8)
def pixel_grid(size: int) -> tuple[Plane, Plane]:
    """Return the row and column of every pixel, [size, size] each. Cached: do not modify."""
    rows = np.mgrid[0:size, 0:size][0].astype(np.float32)
    return rows, rows.T.copy()


FRAME_Y, FRAME_X = (
    (axis - np.float32((FRAME_SIZE - 1) / 2)) / np.float32(UNIT_PIXELS)
    for axis in pixel_grid(FRAME_SIZE)
)
"""Position of each pixel of the frame, in units of UNIT_PIXELS from the center: down, right."""


def as_plane(values: Any) -> Plane:
    """Return `values` as float32, typed, as OpenCV's functions are not."""
    return np.asarray(values, np.float32)


def sample_profile(profile: Plane, positions: Plane) -> Plane:
    """Sample `profile` at `positions` inside it.

    Interpolates to an eighth of the spacing, which is ten times faster than np.interp.
    """
    fine = np.interp(np.arange(8 * len(profile)) / 8, np.arange(len(profile)), profile).astype(
        np.float32
    )
    return as_plane(fine[(positions * 8).astype(np.int32)])


def smooth_noise(generator: np.random.Generator, size: int, cells: int) -> Plane:
    """Return smooth noise [size, size] of about unit variance, with `cells` patches per side."""
    return as_plane(
        cv2.resize(
            generator.standard_normal((cells + 2, cells + 2), np.float32),
            (size, size),
            interpolation=cv2.INTER_CUBIC,
        )
    )


def fine_noise(generator: np.random.Generator, size: int, sigma: float) -> Plane:
    """Return fine noise [size, size] of about unit variance, with spots `sigma` pixels wide."""
    noise = blur(generator.standard_normal((size, size), np.float32), sigma)
    return noise * np.float32(max(1.0, 2 * np.sqrt(np.pi) * sigma))


def blur(image: Plane, sigma: float) -> Plane:
    """Blur an image [height, width(, channels)] with a Gaussian of `sigma` pixels."""
    return as_plane(cv2.GaussianBlur(image, (0, 0), sigma)) if sigma > 0.15 else image


def smoothstep(values: Plane, start: float, end: float) -> Plane:
    """Map values smoothly from 0 at `start` to 1 at `end`, constant outside.

    `start` may be greater than `end`.
    """
    ramp = np.clip((values - np.float32(start)) / np.float32(end - start), 0, 1)
    return as_plane(ramp * ramp * (3 - 2 * ramp))

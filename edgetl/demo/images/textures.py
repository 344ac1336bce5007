"""The square that a part is made in, and noise to make it of."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Plane = NDArray[np.float32]
SeedKey = tuple[int, ...]

FRAME_SIZE = 200
"""Side in pixels of the square that parts are made in, before the camera sees them."""
UNIT_PIXELS = 0.44 * FRAME_SIZE
"""Pixels from a part's centre to where it ends at most: 1 in the coordinates that shapes are described in."""


@lru_cache(maxsize=8)
def pixel_grid(size: int) -> tuple[Plane, Plane]:
    """Row and column of every pixel, [size, size] each; not to be written to."""
    rows = np.mgrid[0:size, 0:size][0].astype(np.float32)
    return rows, rows.T.copy()


FRAME_Y, FRAME_X = (
    (along - np.float32((FRAME_SIZE - 1) / 2)) / np.float32(UNIT_PIXELS)
    for along in pixel_grid(FRAME_SIZE)
)
"""Where each pixel of the frame lies, in units of `UNIT` from the part's centre: down, right."""


def as_plane(values: Any) -> Plane:
    """`values` as float32: OpenCV's functions are not typed."""
    return np.asarray(values, np.float32)


def sample_profile(profile: Plane, places: Plane) -> Plane:
    """`profile` at `places`, which lie inside it: interpolated to an eighth of its spacing, ten times as fast as np.interp."""
    fine = np.interp(np.arange(8 * len(profile)) / 8, np.arange(len(profile)), profile).astype(
        np.float32
    )
    return as_plane(fine[(places * 8).astype(np.int32)])


def smooth_noise(generator: np.random.Generator, size: int, cells: int) -> Plane:
    """Smooth noise [size, size] of about unit variance; `cells` is how many patches fit along a side."""
    return as_plane(
        cv2.resize(
            generator.standard_normal((cells + 2, cells + 2), np.float32),
            (size, size),
            interpolation=cv2.INTER_CUBIC,
        )
    )


def fine_noise(generator: np.random.Generator, size: int, sigma: float) -> Plane:
    """Fine noise [size, size] of about unit variance whose spots are `sigma` pixels wide."""
    noise = blur(generator.standard_normal((size, size), np.float32), sigma)
    return noise * np.float32(max(1.0, 2 * np.sqrt(np.pi) * sigma))


def blur(image: Plane, sigma: float) -> Plane:
    """`image` [height, width] or [height, width, channels] under a Gaussian of `sigma` pixels."""
    return as_plane(cv2.GaussianBlur(image, (0, 0), sigma)) if sigma > 0.15 else image


def smoothstep(values: Plane, start: float, end: float) -> Plane:
    """0 below `start`, 1 above `end`, smooth between; the other way round where `start` is the greater."""
    ramp = np.clip((values - np.float32(start)) / np.float32(end - start), 0, 1)
    return as_plane(ramp * ramp * (3 - 2 * ramp))

"""Scalar fields on a square: noise, cells and waves, the building blocks of all images.

Each generating function takes a random generator and a side in pixels and returns float32
[side, side] in [0, 1]. Lattice noise and its sum over octaves follow Perlin (1985) and Musgrave,
with values instead of gradients on the lattice, because OpenCV interpolates those in microseconds.
Cells follow Worley (1996); spots and labyrinths imitate Turing (1952) by repeated band-pass and
threshold.
"""

from __future__ import annotations

from functools import cache
from math import cos, sin, tau
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Field = NDArray[Any]
"""Field of float32 [side, side]; OpenCV's stubs do not distinguish number types."""


@cache
def pixel_centers(side: int) -> tuple[Field, Field]:
    """Return the pixel centers x (rightwards) and y (downwards) in [-1, 1], cached, read-only."""
    steps = (np.arange(side, dtype=np.float32) + 0.5) * (2 / side) - 1
    x = np.broadcast_to(steps, (side, side)).copy()
    y = np.broadcast_to(steps[:, None], (side, side)).copy()
    x.flags.writeable = y.flags.writeable = False
    return x, y


def rescale(field: Field) -> Field:
    """Rescale a field linearly to [0, 1]."""
    low, high = float(field.min()), float(field.max())
    return (field - np.float32(low)) * np.float32(1 / max(high - low, 1e-6))


def lattice_noise(
    generator: np.random.Generator,
    side: int,
    cells: float,
    octaves: int = 4,
    gain: float = 0.5,
    stretch: float = 1.0,
) -> Field:
    """Return fractional Brownian motion: a sum of octaves of noise.

    Args:
        generator: random generator.
        side: side of the field, pixels.
        cells: lattice cells across the square in the coarsest octave.
        octaves: number of octaves, each twice as fine as the previous one.
        gain: factor from the amplitude of an octave to that of the next.
        stretch: ratio of length to width of the grains; above 1 along x.
    """
    total = np.zeros((side, side), np.float32)
    weight = 1.0
    for octave in range(octaves):
        across = cells * 2**octave
        rows = max(2, min(side, round(across + 1)))
        columns = max(2, min(side, round(across / stretch + 1)))
        values = generator.standard_normal((rows, columns), np.float32)
        total += np.float32(weight) * cv2.resize(
            values, (side, side), interpolation=cv2.INTER_CUBIC
        )
        weight *= gain
        if across >= side:
            break
    return rescale(total)


def cells(generator: np.random.Generator, side: int, count: float, kind: str) -> Field:
    """Return Worley noise: cells around random points.

    Args:
        generator: random generator.
        side: side of the field, pixels.
        count: number of points, at least 2.
        kind: `distance` to the nearest point, `flat` for a random gray per cell, or `edges`.
    """
    points = max(2, int(count))
    seeds = np.full((side, side), 255, np.uint8)
    rows, columns = generator.integers(0, side, (2, points))
    seeds[rows, columns] = 0
    distance, labels = cv2.distanceTransformWithLabels(
        seeds, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    if kind == "distance":
        return rescale(np.minimum(distance, np.float32(1.2 * side / points**0.5)))
    grays = generator.random(points + 2, np.float32)[labels]
    if kind == "flat":
        return grays
    border = cv2.morphologyEx(grays, cv2.MORPH_GRADIENT, np.ones((2, 2), np.uint8))
    return cv2.GaussianBlur((border > 0).astype(np.float32), (0, 0), 0.4 + side / 160)


def waves(generator: np.random.Generator, side: int, cycles: float, kind: str) -> Field:
    """Return a periodic pattern.

    Args:
        generator: random generator.
        side: side of the field, pixels.
        cycles: periods across the square.
        kind: parallel `bars`, `checks` of two crossed gratings, `dots` at their common maxima,
            concentric `rings`, or `bricks`.
    """
    x, y = pixel_centers(side)
    phase = generator.random(4)
    pitch = np.float32(np.pi * cycles)
    if kind == "rings":
        return 0.5 + 0.5 * np.sin(
            pitch
            * np.hypot(x - np.float32(phase[0] * 1.6 - 0.8), y - np.float32(phase[1] * 1.6 - 0.8))
        )
    angle = phase[2] * tau
    u = pitch * (x * np.float32(cos(angle)) + y * np.float32(sin(angle))) + np.float32(
        phase[0] * tau
    )
    if kind == "bars":
        return 0.5 + 0.5 * np.sin(u)
    v = pitch * (y * np.float32(cos(angle)) - x * np.float32(sin(angle))) + np.float32(
        phase[1] * tau
    )
    if kind == "bricks":
        row = np.floor(v * np.float32(1 / tau))
        along = np.mod(u * np.float32(0.5) + row * np.float32(np.pi), tau)
        across = np.mod(v, tau)
        joint = np.minimum(along, across) < 0.7
        return np.where(
            joint,
            np.float32(0.1),
            np.float32(0.55)
            + np.float32(0.4) * np.sin(row * 12.9 + np.floor(u * np.float32(0.5 / tau))),
        )
    product = np.sin(u) * np.sin(v)
    return 0.5 + 0.5 * product if kind == "checks" else np.clip(product * 3 - 1, 0, 1)


def turing(generator: np.random.Generator, side: int, cycles: float, bias: float) -> Field:
    """Return a Turing pattern: noise band-passed and thresholded three times.

    Args:
        generator: random generator.
        side: side of the field, pixels.
        cycles: features across the square.
        bias: 0 gives labyrinths, other values give spots.
    """
    inner_sigma = max(0.6, 0.19 * side / cycles)
    field = generator.standard_normal((side, side), np.float32)
    for _ in range(3):
        field = cv2.GaussianBlur(field, (0, 0), inner_sigma) - cv2.GaussianBlur(
            field, (0, 0), 1.7 * inner_sigma
        )
        field = np.tanh(field * np.float32(4 / max(float(field.std()), 1e-6)) + np.float32(bias))
    return 0.5 + 0.5 * field


def warp_field(
    field: Field, generator: np.random.Generator, amount: float, cells_across: float = 3.0
) -> Field:
    """Displace the pixels of a field by smooth noise.

    Args:
        field: field to warp.
        generator: random generator.
        amount: standard deviation of the displacement, relative to the side.
        cells_across: lattice cells of the displacement across the square.
    """
    side = len(field)
    rows = max(2, round(cells_across + 1))
    lattice = generator.standard_normal((rows, rows, 2), np.float32) * np.float32(amount * side)
    displacement = cv2.resize(lattice, (side, side), interpolation=cv2.INTER_CUBIC)
    positions = np.arange(side, dtype=np.float32)
    return cv2.remap(
        field,
        displacement[..., 0] + positions,
        displacement[..., 1] + positions[:, None],
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REFLECT,
    )


def rotate_field(field: Field, angle: float) -> Field:
    """Rotate a field about its center by an angle in radians, with reflected borders."""
    side = len(field)
    matrix = cv2.getRotationMatrix2D(
        ((side - 1) / 2, (side - 1) / 2), float(np.degrees(angle)), 1.0
    )
    return cv2.warpAffine(
        field, matrix, (side, side), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT
    )

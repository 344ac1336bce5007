"""Scalar fields on a square: the noise, cells and waves that everything drawn is made of.

Each function takes a random generator and a side in pixels and gives float32 [side, side] in [0, 1]. Lattice noise and its sum over octaves
are Perlin's (1985) and Musgrave's, with values instead of gradients on the lattice, because OpenCV interpolates those in microseconds.
Cells are Worley's (1996); spots and labyrinths imitate Turing's (1952) by repeated band-pass and threshold.
"""

from __future__ import annotations

from functools import cache
from math import cos, sin, tau
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Field = NDArray[Any]
"""float32 [side, side]; OpenCV's stubs do not tell one kind of number from another."""


@cache
def square(side: int) -> tuple[Field, Field]:
    """The pixels' centres: x (rightwards) and y (downwards) in [-1, 1]; shared, not to be changed."""
    steps = (np.arange(side, dtype=np.float32) + 0.5) * (2 / side) - 1
    x, y = (
        np.broadcast_to(steps, (side, side)).copy(),
        np.broadcast_to(steps[:, None], (side, side)).copy(),
    )
    x.flags.writeable = y.flags.writeable = False
    return x, y


def levelled(field: Field) -> Field:
    """Stretched so that the least value is 0 and the greatest 1."""
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
    """Fractional Brownian motion: octaves of noise, each twice as fine and `gain` times as strong as the one before.

    Args:
        cells: lattice cells across the square in the coarsest octave.
        stretch: how many times longer than wide the grains are; above 1 along x.
    """
    total, weight = np.zeros((side, side), np.float32), 1.0
    for octave in range(octaves):
        across = cells * 2**octave
        rows, columns = (
            max(2, min(side, round(across + 1))),
            max(2, min(side, round(across / stretch + 1))),
        )
        values = generator.standard_normal((rows, columns), np.float32)
        total += np.float32(weight) * cv2.resize(
            values, (side, side), interpolation=cv2.INTER_CUBIC
        )
        weight *= gain
        if across >= side:
            break
    return levelled(total)


def cells(generator: np.random.Generator, side: int, count: float, kind: str) -> Field:
    """Worley's cells around random points: `distance` to the nearest point, or a `flat` random grey in each cell, or its `edges`."""
    points = max(2, int(count))
    seeds = np.full((side, side), 255, np.uint8)
    at = generator.integers(0, side, (2, points))
    seeds[at[0], at[1]] = 0
    distance, labels = cv2.distanceTransformWithLabels(
        seeds, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    if kind == "distance":
        return levelled(np.minimum(distance, np.float32(1.2 * side / points**0.5)))
    greys = generator.random(points + 2, np.float32)[labels]
    if kind == "flat":
        return greys
    border = cv2.morphologyEx(greys, cv2.MORPH_GRADIENT, np.ones((2, 2), np.uint8))
    return cv2.GaussianBlur((border > 0).astype(np.float32), (0, 0), 0.4 + side / 160)


def waves(generator: np.random.Generator, side: int, cycles: float, kind: str) -> Field:
    """Gratings: parallel `bars`, `checks` of two crossed ones, `dots` where both are high, `rings` about a point, or `bricks`."""
    x, y = square(side)
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
    """Spots (bias away from 0) and labyrinths (bias 0): noise that was band-passed and thresholded three times."""
    inner = max(0.6, 0.19 * side / cycles)
    field = generator.standard_normal((side, side), np.float32)
    for _ in range(3):
        field = cv2.GaussianBlur(field, (0, 0), inner) - cv2.GaussianBlur(
            field, (0, 0), 1.7 * inner
        )
        field = np.tanh(field * np.float32(4 / max(float(field.std()), 1e-6)) + np.float32(bias))
    return 0.5 + 0.5 * field


def warped(
    field: Field, generator: np.random.Generator, amount: float, cells_across: float = 3.0
) -> Field:
    """The field as seen through an uneven pane: every pixel looked up `amount` times the side or less away."""
    side = len(field)
    rows = max(2, round(cells_across + 1))
    push = generator.standard_normal((rows, rows, 2), np.float32) * np.float32(amount * side)
    moved = cv2.resize(push, (side, side), interpolation=cv2.INTER_CUBIC)
    at = np.arange(side, dtype=np.float32)
    return cv2.remap(
        field,
        moved[..., 0] + at,
        moved[..., 1] + at[:, None],
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REFLECT,
    )


def turned(field: Field, angle: float) -> Field:
    """Rotated about the middle; what comes in from outside is mirrored."""
    side = len(field)
    matrix = cv2.getRotationMatrix2D(
        ((side - 1) / 2, (side - 1) / 2), float(np.degrees(angle)), 1.0
    )
    return cv2.warpAffine(
        field, matrix, (side, side), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT
    )

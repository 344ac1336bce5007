"""Fractals by iterated function systems: a class is a random system, an image its attractor drawn point by point.

FractalDB (Kataoka et al., 2020, arXiv:2101.08515): instances vary the system's parameters a little. Systems are sampled as in
Anderson and Farrell (2022, arXiv:2110.03091), by singular values, so that nearly every one of them is worth looking at.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from tools.pretraining.textures import (
    Image,
    Palette,
    coloured,
    draw_background,
    jittered,
    random_palette,
)

_CHAINS, _SETTLING, _DRAWN = 768, 8, 20
"""Points that wander at the same time, steps until they are on the attractor, steps that are drawn."""


@dataclass(frozen=True)
class Fractal:
    """A class."""

    linear: NDArray[np.float32]
    """[maps, 2, 2], contracting."""
    shift: NDArray[np.float32]
    """[maps, 2]."""
    chances: NDArray[np.float64]
    """Of each map at a step, by the area that it leaves."""
    colours: Palette
    by_map: bool
    """Coloured by the map that led to a point; by density otherwise."""


def random_fractal(generator: np.random.Generator) -> Fractal:
    """A system of 2 to 6 contractions whose singular values add up to what gives neither dust nor a blot."""
    maps = int(generator.integers(2, 7))
    for _ in range(200):
        values = np.sort(generator.uniform(0.05, 1, (maps, 2)), axis=1)[:, ::-1]
        values *= generator.uniform(0.5 * (5 + maps), 0.5 * (6 + maps)) / float(
            (values[:, 0] + 2 * values[:, 1]).sum()
        )
        if values.max() < 0.97:
            break
    else:
        values = np.minimum(values, 0.97)
    left, right = (
        _rotations(generator.uniform(0, 2 * np.pi, maps)),
        _rotations(generator.uniform(0, 2 * np.pi, maps)),
    )
    signs = generator.choice([-1.0, 1.0], (maps, 1, 2))
    linear = left @ (values[:, :, None] * right) * signs
    areas = np.maximum(np.abs(np.linalg.det(linear)), 0.02)
    return Fractal(
        linear=linear.astype(np.float32),
        shift=generator.uniform(-1, 1, (maps, 2)).astype(np.float32),
        chances=areas / areas.sum(),
        colours=random_palette(generator),
        by_map=bool(generator.random() < 0.5),
    )


def _rotations(angles: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.stack([np.cos(angles), -np.sin(angles), np.sin(angles), np.cos(angles)], 1).reshape(
        -1, 2, 2
    )


def draw_fractal(fractal: Fractal, generator: np.random.Generator, side: int) -> Image:
    """One image of a class, uint8 [side, side, 3]: the system a little changed, turned and moved, over some background."""
    scale = generator.uniform(0.85, 1.08, fractal.linear.shape).astype(np.float32)
    points, last = _wander(
        np.clip(fractal.linear * scale, -0.98, 0.98), fractal.shift, fractal.chances, generator
    )
    at = _placed(points, generator, side)
    inside = ((at >= 0) & (at < side)).all(1)
    flat = at[inside] @ np.array([1, side])
    counts = np.bincount(flat, minlength=side * side).astype(np.float32).reshape(side, side)
    density = np.log1p(counts)
    density /= max(float(density.max()), 1e-6)
    if fractal.by_map:
        summed = np.bincount(flat, weights=last[inside], minlength=side * side).reshape(side, side)
        tone = (summed / np.maximum(counts, 1)).astype(np.float32) / max(1, len(fractal.shift) - 1)
    else:
        tone = density
    image = coloured(tone, jittered(fractal.colours, generator))
    cover = (
        np.minimum(1, density * 6)
        if generator.random() < 0.7
        else cv2.GaussianBlur(np.minimum(1, density * 6), (3, 3), 0)
    )
    if generator.random() < 0.35:
        behind = np.full_like(image, generator.integers(0, 256, 3, dtype=np.uint8))
    else:
        behind = draw_background(generator, side)
    return cv2.blendLinear(image, behind, cover, 1 - cover)


def _wander(
    linear: NDArray[np.float32],
    shift: NDArray[np.float32],
    chances: NDArray[np.float64],
    generator: np.random.Generator,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    # The chaos game with many short chains instead of a long one: NumPy has one Python step for all of them.
    choices = np.searchsorted(
        np.cumsum(chances)[:-1], generator.random((_SETTLING + _DRAWN, _CHAINS))
    )
    x, y = generator.uniform(-1, 1, (2, _CHAINS)).astype(np.float32)
    kept = np.empty((_DRAWN, 2, _CHAINS), np.float32)
    for step, chosen in enumerate(choices):
        a, b = linear[chosen], shift[chosen]
        x, y = a[:, 0, 0] * x + a[:, 0, 1] * y + b[:, 0], a[:, 1, 0] * x + a[:, 1, 1] * y + b[:, 1]
        if step >= _SETTLING:
            kept[step - _SETTLING] = x, y
    return kept.transpose(0, 2, 1).reshape(-1, 2), choices[_SETTLING:].reshape(-1)


def _placed(
    points: NDArray[np.float32], generator: np.random.Generator, side: int
) -> NDArray[np.int64]:
    # The middle 96% fill 60 to 110% of the frame, turned by any angle; a few points far out would shrink the rest to a dot.
    angle = generator.uniform(0, 2 * np.pi)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]], np.float32)
    turned = np.nan_to_num(points @ turn.T, nan=0.0, posinf=0.0, neginf=0.0)
    ordered = np.sort(turned[::8], axis=0)
    cut = max(1, len(ordered) // 50)
    low, high = ordered[cut], ordered[-cut]
    extent = np.maximum(high - low, 1e-3)
    size = generator.uniform(0.6, 1.1) * side / max(float(extent.max()), 1e-3)
    offset = side / 2 + generator.uniform(-0.12, 0.12, 2) * side
    moved = np.clip((turned - (low + high) / 2) * size + offset, -1, side)
    return np.floor(moved).astype(np.int64)

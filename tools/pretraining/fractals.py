"""Fractals of iterated function systems: a class is a random system, an image shows its attractor.

As in FractalDB (Kataoka et al., 2020, arXiv:2101.08515), the images of a class vary the system's
parameters slightly. Systems are sampled by their singular values (Anderson and Farrell, 2022,
arXiv:2110.03091), so that nearly all of them have a recognizable shape.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from tools.pretraining.noise import Field
from tools.pretraining.textures import (
    Image,
    Palette,
    colorize,
    draw_background,
    jitter_palette,
    random_palette,
)

_CHAINS = 768
"""Points that are iterated in parallel."""
_BURN_IN_STEPS = 8
"""Steps until the points are on the attractor."""
_DRAWN_STEPS = 20
"""Steps whose points are drawn."""


@dataclass(frozen=True)
class Fractal:
    """Class of fractals: an iterated function system and its colors."""

    linear: NDArray[np.float32]
    """Linear parts of the contractions, [maps, 2, 2]."""
    shift: NDArray[np.float32]
    """Translations, [maps, 2]."""
    probabilities: NDArray[np.float64]
    """Probability of each map at a step, [maps], proportional to its area scale."""
    colors: Palette
    by_map: bool
    """True to color points by their last map, False to color them by density."""


def random_fractal(generator: np.random.Generator) -> Fractal:
    """Return a system of 2 to 6 contractions.

    The weighted sum of the singular values is limited, so that the attractor is neither scattered
    dust nor a solid blot.
    """
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
    left = _rotations(generator.uniform(0, 2 * np.pi, maps))
    right = _rotations(generator.uniform(0, 2 * np.pi, maps))
    signs = generator.choice([-1.0, 1.0], (maps, 1, 2))
    linear = left @ (values[:, :, None] * right) * signs
    areas = np.maximum(np.abs(np.linalg.det(linear)), 0.02)
    return Fractal(
        linear=linear.astype(np.float32),
        shift=generator.uniform(-1, 1, (maps, 2)).astype(np.float32),
        probabilities=areas / areas.sum(),
        colors=random_palette(generator),
        by_map=bool(generator.random() < 0.5),
    )


def _rotations(angles: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.stack([np.cos(angles), -np.sin(angles), np.sin(angles), np.cos(angles)], 1).reshape(
        -1, 2, 2
    )


def draw_fractal(fractal: Fractal, generator: np.random.Generator, side: int) -> Image:
    """Draw an image of a class, uint8 [side, side, 3].

    The system is slightly changed, rotated and moved, and drawn over a background.
    """
    scale = generator.uniform(0.85, 1.08, fractal.linear.shape).astype(np.float32)
    points, last_maps = _run_chaos_game(
        np.clip(fractal.linear * scale, -0.98, 0.98),
        fractal.shift,
        fractal.probabilities,
        generator,
    )
    pixels = _to_pixels(points, generator, side)
    inside = ((pixels >= 0) & (pixels < side)).all(1)
    indices = pixels[inside] @ np.array([1, side])
    counts = np.bincount(indices, minlength=side * side).astype(np.float32).reshape(side, side)
    density = np.log1p(counts)
    density /= max(float(density.max()), 1e-6)
    if fractal.by_map:
        sums = np.bincount(indices, weights=last_maps[inside], minlength=side * side)
        mean_maps = sums.reshape(side, side) / np.maximum(counts, 1)
        tone = mean_maps.astype(np.float32) / max(1, len(fractal.shift) - 1)
    else:
        tone = density
    image = colorize(tone, jitter_palette(fractal.colors, generator))
    opacity: Field = np.minimum(1, density * 6)
    if generator.random() >= 0.7:
        opacity = cv2.GaussianBlur(opacity, (3, 3), 0)
    if generator.random() < 0.35:
        background = np.full_like(image, generator.integers(0, 256, 3, dtype=np.uint8))
    else:
        background = draw_background(generator, side)
    return cv2.blendLinear(image, background, opacity, 1 - opacity)


def _run_chaos_game(
    linear: NDArray[np.float32],
    shift: NDArray[np.float32],
    probabilities: NDArray[np.float64],
    generator: np.random.Generator,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    # Run many short chains of the chaos game instead of a long one, to vectorize over the chains.
    choices = np.searchsorted(
        np.cumsum(probabilities)[:-1], generator.random((_BURN_IN_STEPS + _DRAWN_STEPS, _CHAINS))
    )
    x, y = generator.uniform(-1, 1, (2, _CHAINS)).astype(np.float32)
    points = np.empty((_DRAWN_STEPS, 2, _CHAINS), np.float32)
    for step, maps in enumerate(choices):
        a, b = linear[maps], shift[maps]
        x, y = a[:, 0, 0] * x + a[:, 0, 1] * y + b[:, 0], a[:, 1, 0] * x + a[:, 1, 1] * y + b[:, 1]
        if step >= _BURN_IN_STEPS:
            points[step - _BURN_IN_STEPS] = x, y
    return points.transpose(0, 2, 1).reshape(-1, 2), choices[_BURN_IN_STEPS:].reshape(-1)


def _to_pixels(
    points: NDArray[np.float32], generator: np.random.Generator, side: int
) -> NDArray[np.int64]:
    # Scale the middle 96% of the points to 60 to 110% of the frame, rotated by a random angle:
    # scaling all of them would shrink the shape to a dot if a few points are far out.
    angle = generator.uniform(0, 2 * np.pi)
    rotation = np.array(
        [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]], np.float32
    )
    rotated = np.nan_to_num(points @ rotation.T, nan=0.0, posinf=0.0, neginf=0.0)
    ordered = np.sort(rotated[::8], axis=0)
    margin = max(1, len(ordered) // 50)
    low, high = ordered[margin], ordered[-margin]
    extent = np.maximum(high - low, 1e-3)
    size = generator.uniform(0.6, 1.1) * side / max(float(extent.max()), 1e-3)
    offset = side / 2 + generator.uniform(-0.12, 0.12, 2) * side
    moved = np.clip((rotated - (low + high) / 2) * size + offset, -1, side)
    return np.floor(moved).astype(np.int64)

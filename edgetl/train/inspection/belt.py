"""The conveyor belt under the parts: ribbed, woven, studded or plain, worn and dirty."""

from __future__ import annotations

import math

import numpy as np

from edgetl.train.inspection.textures import Plane, clouds, grain, grid, looked_up, plane, step

COLOURS = ((0.07, 0.07, 0.08), (0.14, 0.15, 0.16), (0.06, 0.17, 0.12), (0.09, 0.15, 0.25))
"""Black, anthracite, green and blue: reflectance."""


def belt(generator: np.random.Generator, size: int, direction: float) -> Plane:
    """Reflectance [size, size, 3] of a belt that runs along `direction` (radians)."""
    rows, columns = grid(size)
    along = columns * np.float32(math.cos(direction)) + rows * np.float32(math.sin(direction))
    across = rows * np.float32(math.cos(direction)) - columns * np.float32(math.sin(direction))
    pitch = 2 * math.pi / generator.uniform(0.02, 0.1) / size
    first, second = (
        np.sin(along * np.float32(pitch)),
        np.sin(across * np.float32(pitch * generator.uniform(0.7, 1.4))),
    )
    pattern = (first, second, first * second, step(first * second, 0.3, 0.8), np.zeros_like(first))[
        generator.integers(5)
    ]
    strips = generator.standard_normal(size).astype(np.float32)
    streaks = looked_up(strips, (across + np.float32(1.5 * size)) * np.float32(0.3))
    spots = step(clouds(generator, size, int(generator.integers(6, 20))), 1.4, 2.2)
    shade = (
        1
        + generator.uniform(0, 0.12) * pattern
        + generator.uniform(0.02, 0.07) * clouds(generator, size, 4)
        + generator.uniform(0, 0.06) * streaks
        + generator.uniform(0.02, 0.07) * grain(generator, size, generator.uniform(0.3, 1))
        + generator.uniform(-0.15, 0.15) * spots
    )
    colour = np.array(COLOURS[generator.integers(len(COLOURS))]) * generator.uniform(
        0.75, 1.25
    ) + generator.uniform(-0.01, 0.02, 3)
    return np.clip(plane(shade)[..., None] * colour.astype(np.float32), 0.005, 1)

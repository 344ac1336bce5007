"""What goes wrong with a part: each function gives the surface with one defect more."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import cv2
import numpy as np

from edgetl.demo.images.surface import Surface
from edgetl.demo.images.textures import (
    FRAME_SIZE,
    Plane,
    as_plane,
    blur,
    pixel_grid,
    smooth_noise,
    smoothstep,
)

STAIN_COLORS = ((0.50, 0.24, 0.09), (0.12, 0.09, 0.06), (0.52, 0.38, 0.14), (0.14, 0.20, 0.34))
"""Rust, oil, varnish, marking ink."""
DefectFunction = Callable[[Surface, np.random.Generator, float], Surface]


def add_scratches(surface: Surface, generator: np.random.Generator, strength: float) -> Surface:
    """A few strokes through the surface, bent a little, deeper here than there; where they are cut the metal is bare."""
    groove = np.zeros((FRAME_SIZE, FRAME_SIZE), np.float32)
    centre = _sample_point(surface, generator, 6)
    angle, length = generator.uniform(0, 2 * math.pi), generator.uniform(80, 170)
    width = generator.uniform(0.65, 1.2)
    for _ in range(int(generator.choice([2, 4, 6, 8]))):
        along = np.linspace(-0.5, 0.5, 24) * length * generator.uniform(0.6, 1)
        bend = generator.uniform(-0.1, 0.1) * length * (2 * along / length) ** 2 + np.cumsum(
            generator.normal(0, 0.25, 24)
        )
        turn = angle + generator.normal(0, 0.25)
        start = centre + generator.normal(0, 12, 2)
        x = start[0] + along * math.cos(turn) - bend * math.sin(turn)
        y = start[1] + along * math.sin(turn) + bend * math.cos(turn)
        points = np.round(np.stack([x, y], 1) * 16).astype(np.int32)
        pressure = np.clip(
            np.sin(np.linspace(0.15, math.pi - 0.1, 23)) * generator.uniform(0.6, 1)
            + generator.normal(0, 0.15, 23),
            0.15,
            1,
        )
        stroke = np.zeros((FRAME_SIZE, FRAME_SIZE), np.uint8)
        for begin, end, force in zip(points[:-1], points[1:], pressure, strict=True):
            cv2.line(stroke, begin.tolist(), end.tolist(), float(force * 255), 1, cv2.LINE_AA, 4)
        groove = np.maximum(groove, as_plane(stroke) / np.float32(255))
    groove = blur(groove, width) * np.float32(1.6)
    bare = np.clip(groove * np.float32(0.5 * strength), 0, 0.8) * np.float32(
        generator.choice([1.0, 1.0, 1.0, -0.9])
    )
    tone = np.clip(surface.reflectance * (1 + bare[..., None]), 0, 1)
    return replace(
        surface, height=surface.height - groove * np.float32(0.9 * strength), reflectance=tone
    )


def add_dents(surface: Surface, generator: np.random.Generator, strength: float) -> Surface:
    """One to three blows' hollows, longer than wide, each with a rim thrown up around it."""
    height, ragged = surface.height, 1 + np.float32(0.12) * smooth_noise(generator, FRAME_SIZE, 12)
    for _ in range(int(generator.integers(1, 4))):
        radius = generator.uniform(11, 24)
        place = _sample_point(surface, generator, 0.75 * radius)
        distance = as_plane(
            _elliptical_distance(place, generator.uniform(0, math.pi), generator.uniform(1, 1.7))
            * ragged
            / radius
        )
        hollow = np.exp(-(distance**2) * np.float32(2)) - np.float32(0.25) * np.exp(
            -((distance - np.float32(1.25)) ** 2) * np.float32(9)
        )
        height = height - as_plane(hollow) * np.float32(strength * 0.28 * radius)
    return replace(surface, height=height)


def add_stain(surface: Surface, generator: np.random.Generator, strength: float) -> Surface:
    """A liquid's ragged patch, sometimes with drops beside it, darker where it dried last; it takes the shine away."""
    colour = np.array(STAIN_COLORS[generator.integers(len(STAIN_COLORS))], np.float32) * np.float32(
        generator.uniform(0.7, 1.3)
    )
    centre, patch = (
        _sample_point(surface, generator, 8),
        np.zeros((FRAME_SIZE, FRAME_SIZE), np.float32),
    )
    ragged = smooth_noise(generator, FRAME_SIZE, 10) * np.float32(0.22) + smooth_noise(
        generator, FRAME_SIZE, 28
    ) * np.float32(0.1)
    soft, rim = generator.uniform(0.06, 0.3), generator.uniform(0, 0.8)
    for number in range(int(generator.choice([1, 1, 2, 4]))):
        radius = generator.uniform(26, 50) if number == 0 else generator.uniform(5, 12)
        place = centre if number == 0 else as_plane(centre + generator.normal(0, 32, 2))
        distance = (
            _elliptical_distance(place, generator.uniform(0, math.pi), generator.uniform(1, 2))
            / np.float32(radius)
            + ragged
        )
        drop = smoothstep(distance, 1 + soft, 1 - soft)
        dried = np.exp(-((distance - np.float32(0.92)) ** 2) * np.float32(60)) * np.float32(rim)
        patch = np.maximum(patch, np.minimum(drop * (np.float32(0.7) + dried), 1))
    patch = patch * (1 + np.float32(0.15) * smooth_noise(generator, FRAME_SIZE, 16))
    share = np.clip(patch * np.float32(0.45 * strength), 0, 0.85)[..., None]
    tone = (
        surface.reflectance * (1 - share)
        + colour * surface.reflectance.mean(axis=2, keepdims=True) * np.float32(1.2) * share
    )
    return replace(surface, reflectance=as_plane(tone), gloss=surface.gloss * (1 - share[..., 0]))


SURFACE_DEFECTS: dict[str, DefectFunction] = {
    "dented": add_dents,
    "scratched": add_scratches,
    "stained": add_stain,
}
"""Class name to what does it. `missing_hole` is no matter of the surface: the part is made without."""


def _sample_point(surface: Surface, generator: np.random.Generator, margin: float) -> Plane:
    """A point of the part (column, row), at least `margin` pixels inside, or as far inside as there is."""
    inside = surface.edge_distance()
    rows, columns = np.nonzero(inside >= min(margin, float(inside.max()) * 0.9))
    number = generator.integers(len(rows))
    return as_plane([columns[number], rows[number]])


def _elliptical_distance(place: Plane, angle: float, stretch: float) -> Plane:
    """Pixels from `place`, counted `stretch` times slower along `angle`: an ellipse's radius."""
    rows, columns = pixel_grid(FRAME_SIZE)
    x, y = columns - place[0], rows - place[1]
    along = (x * np.float32(math.cos(angle)) + y * np.float32(math.sin(angle))) / np.float32(
        stretch
    )
    return as_plane(
        np.hypot(along, y * np.float32(math.cos(angle)) - x * np.float32(math.sin(angle)))
    )

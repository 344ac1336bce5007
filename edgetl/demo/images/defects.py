"""Surface defects of parts. Each function returns the surface with one defect added."""

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
"""RGB reflectance of rust, oil, varnish and marking ink."""
DefectFunction = Callable[[Surface, np.random.Generator, float], Surface]


def add_scratches(surface: Surface, generator: np.random.Generator, strength: float) -> Surface:
    """Add a few slightly bent scratches of varying depth that expose bare metal."""
    groove = np.zeros((FRAME_SIZE, FRAME_SIZE), np.float32)
    center = _sample_point(surface, generator, 6)
    angle = generator.uniform(0, 2 * math.pi)
    length = generator.uniform(80, 170)
    width = generator.uniform(0.65, 1.2)
    for _ in range(int(generator.choice([2, 4, 6, 8]))):
        along = np.linspace(-0.5, 0.5, 24) * length * generator.uniform(0.6, 1)
        bend = generator.uniform(-0.1, 0.1) * length * (2 * along / length) ** 2 + np.cumsum(
            generator.normal(0, 0.25, 24)
        )
        stroke_angle = angle + generator.normal(0, 0.25)
        middle = center + generator.normal(0, 12, 2)
        x = middle[0] + along * math.cos(stroke_angle) - bend * math.sin(stroke_angle)
        y = middle[1] + along * math.sin(stroke_angle) + bend * math.cos(stroke_angle)
        points = np.round(np.stack([x, y], 1) * 16).astype(np.int32)
        pressure = np.clip(
            np.sin(np.linspace(0.15, math.pi - 0.1, 23)) * generator.uniform(0.6, 1)
            + generator.normal(0, 0.15, 23),
            0.15,
            1,
        )
        stroke = np.zeros((FRAME_SIZE, FRAME_SIZE), np.uint8)
        for start, end, force in zip(points[:-1], points[1:], pressure, strict=True):
            cv2.line(stroke, start.tolist(), end.tolist(), float(force * 255), 1, cv2.LINE_AA, 4)
        groove = np.maximum(groove, as_plane(stroke) / np.float32(255))
    groove = blur(groove, width) * np.float32(1.6)
    brightening = np.clip(groove * np.float32(0.5 * strength), 0, 0.8) * np.float32(
        generator.choice([1.0, 1.0, 1.0, -0.9])
    )
    return replace(
        surface,
        height=surface.height - groove * np.float32(0.9 * strength),
        reflectance=np.clip(surface.reflectance * (1 + brightening[..., None]), 0, 1),
    )


def add_dents(surface: Surface, generator: np.random.Generator, strength: float) -> Surface:
    """Add one to three elongated dents, each with a raised rim."""
    height = surface.height
    raggedness = 1 + np.float32(0.12) * smooth_noise(generator, FRAME_SIZE, 12)
    for _ in range(int(generator.integers(1, 4))):
        radius = generator.uniform(11, 24)
        center = _sample_point(surface, generator, 0.75 * radius)
        distance = as_plane(
            _elliptical_distance(center, generator.uniform(0, math.pi), generator.uniform(1, 1.7))
            * raggedness
            / radius
        )
        hollow = np.exp(-(distance**2) * np.float32(2)) - np.float32(0.25) * np.exp(
            -((distance - np.float32(1.25)) ** 2) * np.float32(9)
        )
        height = height - as_plane(hollow) * np.float32(strength * 0.28 * radius)
    return replace(surface, height=height)


def add_stain(surface: Surface, generator: np.random.Generator, strength: float) -> Surface:
    """Add a dull, ragged stain with a darker rim, sometimes with drops around it."""
    color = np.array(STAIN_COLORS[generator.integers(len(STAIN_COLORS))], np.float32) * np.float32(
        generator.uniform(0.7, 1.3)
    )
    center = _sample_point(surface, generator, 8)
    patch = np.zeros((FRAME_SIZE, FRAME_SIZE), np.float32)
    raggedness = smooth_noise(generator, FRAME_SIZE, 10) * np.float32(0.22) + smooth_noise(
        generator, FRAME_SIZE, 28
    ) * np.float32(0.1)
    softness = generator.uniform(0.06, 0.3)
    rim_strength = generator.uniform(0, 0.8)
    for index in range(int(generator.choice([1, 1, 2, 4]))):
        radius = generator.uniform(26, 50) if index == 0 else generator.uniform(5, 12)
        drop_center = center if index == 0 else as_plane(center + generator.normal(0, 32, 2))
        angle = generator.uniform(0, math.pi)
        stretch = generator.uniform(1, 2)
        distance = (
            _elliptical_distance(drop_center, angle, stretch) / np.float32(radius) + raggedness
        )
        drop = smoothstep(distance, 1 + softness, 1 - softness)
        rim = np.exp(-((distance - np.float32(0.92)) ** 2) * np.float32(60))
        rim = rim * np.float32(rim_strength)
        patch = np.maximum(patch, np.minimum(drop * (np.float32(0.7) + rim), 1))
    patch = patch * (1 + np.float32(0.15) * smooth_noise(generator, FRAME_SIZE, 16))
    share = np.clip(patch * np.float32(0.45 * strength), 0, 0.85)[..., None]
    reflectance = (
        surface.reflectance * (1 - share)
        + color * surface.reflectance.mean(axis=2, keepdims=True) * np.float32(1.2) * share
    )
    return replace(
        surface, reflectance=as_plane(reflectance), gloss=surface.gloss * (1 - share[..., 0])
    )


SURFACE_DEFECTS: dict[str, DefectFunction] = {
    "dented": add_dents,
    "scratched": add_scratches,
    "stained": add_stain,
}
"""Defect functions by class. `missing_hole` is not a surface defect but a part without the hole."""


def _sample_point(surface: Surface, generator: np.random.Generator, margin: float) -> Plane:
    """Sample a point (column, row) at least `margin` pixels inside the part, if it is that wide."""
    distance = surface.edge_distance()
    rows, columns = np.nonzero(distance >= min(margin, float(distance.max()) * 0.9))
    index = generator.integers(len(rows))
    return as_plane([columns[index], rows[index]])


def _elliptical_distance(center: Plane, angle: float, stretch: float) -> Plane:
    """Return the distance to `center` in pixels, divided by `stretch` along `angle`."""
    rows, columns = pixel_grid(FRAME_SIZE)
    x, y = columns - center[0], rows - center[1]
    along = (x * np.float32(math.cos(angle)) + y * np.float32(math.sin(angle))) / np.float32(
        stretch
    )
    return as_plane(
        np.hypot(along, y * np.float32(math.cos(angle)) - x * np.float32(math.sin(angle)))
    )

"""Surface of a part: relief, metal and tool marks."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from edgetl.demo.images.shapes import PartShape
from edgetl.demo.images.textures import (
    FRAME_SIZE,
    FRAME_X,
    FRAME_Y,
    UNIT_PIXELS,
    Plane,
    as_plane,
    blur,
    fine_noise,
    sample_profile,
    smooth_noise,
    smoothstep,
)

METAL_COLORS = ((0.60, 0.61, 0.63), (0.74, 0.75, 0.77), (0.70, 0.57, 0.34), (0.44, 0.44, 0.46))
"""RGB reflectance of steel, aluminium, brass and oxidised steel."""
SEAT_DEPTH = 1.2
"""Depth of a screw seat, in pixels."""
TRACE_PROFILE_LENGTH = 512
"""Samples of the tool mark profile, more than the frame can show."""


@dataclass(frozen=True)
class Surface:
    """Surface of a part as input of shading. All planes are [FRAME, FRAME]."""

    metal_mask: Plane
    """Share of metal in each pixel, 0 to 1."""
    height: Plane
    """Height in pixels."""
    reflectance: Plane
    """RGB reflectance [FRAME, FRAME, 3], 0 to 1."""
    gloss: Plane
    """Strength of highlights, 0 to 1."""
    trace_direction: tuple[Plane, Plane]
    """Unit vectors across the tool marks: right, down."""
    roughness: tuple[float, float]
    """Spread of slopes along and across the tool marks; small values are mirror-like."""

    def edge_distance(self) -> Plane:
        """Return the distance of each pixel to the nearest edge, in pixels."""
        return _edge_distance(self.metal_mask)


@dataclass(frozen=True)
class Metal:
    """Material of a part, which is the same with and without a defect."""

    reflectance: Plane
    marks: Plane
    """Height of tool marks and engraving, in pixels."""
    boss_height: Plane
    """Height of a boss or recess around the bore; ignored for parts without a bore."""
    chamfer_width: float
    """Width of chamfered edges, in pixels."""
    gloss: float
    seat_brightening: float
    """Relative brightening of screw seats."""
    trace_direction: tuple[Plane, Plane]
    roughness: tuple[float, float]

    def make_surface(self, shape: PartShape, missing: int | None = None) -> Surface:
        """Return the surface of a part of this metal, without the hole of index `missing`."""
        mask = shape.metal_mask(missing)
        edge = np.minimum(_edge_distance(mask), np.float32(self.chamfer_width)) * np.float32(0.9)
        height = blur(edge + self.boss_height if shape.center_bores else edge, 0.7) + self.marks
        seats = shape.seat_mask()
        height = height * (1 - seats) - blur(seats, 0.6) * np.float32(SEAT_DEPTH)
        if missing is not None:
            x, y, _ = shape.holes[missing]
            height -= smoothstep(np.hypot(FRAME_X - x, FRAME_Y - y), 0.05, 0.01)
        return Surface(
            mask,
            height,
            self.reflectance * (1 + self.seat_brightening * seats)[..., None],
            np.full_like(mask, self.gloss),
            self.trace_direction,
            self.roughness,
        )


def sample_metal(generator: np.random.Generator) -> Metal:
    """Sample a metal with a random finish, sometimes engraved."""
    traces, trace_shade, trace_direction = _sample_traces(generator)
    shade = (
        np.float32(1)
        + generator.uniform(0.01, 0.05) * smooth_noise(generator, FRAME_SIZE, 3)
        + generator.uniform(0.005, 0.02) * trace_shade
    )
    color = np.array(METAL_COLORS[generator.integers(len(METAL_COLORS))])
    color = color * generator.uniform(0.88, 1.12) + generator.uniform(-0.02, 0.02, 3)
    marks = traces * generator.uniform(0.005, 0.035) + fine_noise(
        generator, FRAME_SIZE, generator.uniform(0.5, 1.1)
    ) * generator.uniform(0.005, 0.03)
    engraving = _sample_engraving(generator)
    roughness_along = float(generator.uniform(0.08, 0.25))
    shade = as_plane(shade * (1 - generator.uniform(0.1, 0.35) * engraving))
    return Metal(
        shade[..., None] * color.astype(np.float32),
        as_plane(marks - engraving * generator.uniform(0.3, 0.9)),
        _sample_boss(generator),
        float(generator.uniform(1, 4)),
        float(generator.uniform(0.3, 1)),
        float(generator.uniform(0.2, 0.4)),
        trace_direction,
        (roughness_along, roughness_along * float(generator.uniform(1, 4) if traces.any() else 1)),
    )


def _edge_distance(mask: Plane) -> Plane:
    return as_plane(cv2.distanceTransform((mask > 0.5).astype(np.uint8), cv2.DIST_L2, 3))


def _sample_traces(generator: np.random.Generator) -> tuple[Plane, Plane, tuple[Plane, Plane]]:
    """Sample tool marks: rings, arcs or straight lines, or none if the part was blasted.

    All are circles around a point at a random distance.

    Returns:
        Height, shade, and unit vectors across the marks.
    """
    distance = generator.choice([0.0, generator.uniform(1.2, 3), 40.0])
    angle = generator.uniform(0, 2 * math.pi)
    right, down = (
        FRAME_X - np.float32(distance * math.cos(angle)),
        FRAME_Y - np.float32(distance * math.sin(angle)),
    )
    radius = np.hypot(right, down) + np.float32(1e-3)
    pitch = generator.uniform(0.8, 2.5)
    profile = np.convolve(
        generator.standard_normal(TRACE_PROFILE_LENGTH), (0.25, 0.5, 0.25), "same"
    ).astype(np.float32)
    if generator.random() < 0.4:
        profile += np.sin(
            np.arange(TRACE_PROFILE_LENGTH, dtype=np.float32)
            * np.float32(generator.uniform(0.6, 1.6))
        )
    positions = (radius - radius.min()) * np.float32(UNIT_PIXELS / pitch)
    height = sample_profile(profile, positions) * (
        1 + np.float32(0.4) * smooth_noise(generator, FRAME_SIZE, 8)
    )
    if generator.random() < 0.2:
        height = np.zeros_like(height)
    return (
        height,
        height + smooth_noise(generator, FRAME_SIZE, 24) * np.float32(0.5),
        (right / radius, down / radius),
    )


def _sample_engraving(generator: np.random.Generator) -> Plane:
    """Sample a serial number or none. Edges on a surface must not imply a defect."""
    if generator.random() > 0.1:
        return np.zeros_like(FRAME_Y)
    image = np.zeros((FRAME_SIZE, FRAME_SIZE), np.uint8)
    x, y = (
        (generator.uniform((-0.75, -0.75), (0.1, 0.75)) * UNIT_PIXELS + FRAME_SIZE / 2)
        .astype(int)
        .tolist()
    )
    number = int(generator.integers(100, 9999))
    scale = generator.uniform(0.3, 0.5)
    cv2.putText(
        image,
        f"{'ABCDEFHK'[number % 8]}{number}",
        (x, y),
        cv2.FONT_HERSHEY_SIMPLEX,
        scale,
        255,
        1,
        cv2.LINE_AA,
    )
    return blur(as_plane(image) / np.float32(255), 0.5)


def _sample_boss(generator: np.random.Generator) -> Plane:
    """Sample a boss or a turned recess around the center, or none."""
    kind = generator.random()
    radius = generator.uniform(0.3, 0.8)
    height = generator.uniform(0.8, 2.2)
    if kind >= 0.12:
        return np.zeros_like(FRAME_Y)
    disc = smoothstep(np.hypot(FRAME_Y, FRAME_X), radius + 0.015, radius - 0.015)
    return as_plane(disc * (height if kind < 0.06 else -height))

"""The surface of a part: its relief, the metal that it is made of, and the traces of the tool that made it."""

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
"""Steel, aluminium, brass and oxidised steel: red, green and blue reflectance."""


SEAT_DEPTH = 1.2
"""Of a screw's seat, in pixels."""
TRACE_PROFILE_LENGTH = 512
"""More than fit between the nearest and the farthest point of the frame."""


@dataclass(frozen=True)
class Surface:
    """What the light falls on. All planes are [FRAME, FRAME]."""

    metal_mask: Plane
    """Where there is metal, 0 to 1."""
    height: Plane
    """In pixels."""
    reflectance: Plane
    """Reflectance [FRAME, FRAME, 3], 0 to 1."""
    gloss: Plane
    """How much of a highlight is seen, 0 to 1."""
    trace_direction: tuple[Plane, Plane]
    """Unit vectors across the tool's traces: right, down."""
    roughness: tuple[float, float]
    """Spread of slopes along the traces and across them: small is a mirror."""

    def edge_distance(self) -> Plane:
        """Pixels to the nearest edge."""
        return _edge_distance(self.metal_mask)


@dataclass(frozen=True)
class Metal:
    """What is the same for a part and for the same part with a defect."""

    reflectance: Plane
    marks: Plane
    """Height of the tool's traces and of engraving, in pixels."""
    boss_height: Plane
    """Height of a boss or a recess about the bore; parts without a bore have none."""
    chamfer_width: float
    """Width of broken edges in pixels."""
    gloss: float
    seat_brightening: float
    """How much lighter the seats of screws are."""
    trace_direction: tuple[Plane, Plane]
    roughness: tuple[float, float]

    def make_surface(self, blank: PartShape, missing: int | None = None) -> Surface:
        """`blank` made of this metal, without the hole of number `missing`."""
        cover = blank.metal_mask(missing)
        edge = np.minimum(_edge_distance(cover), np.float32(self.chamfer_width)) * np.float32(0.9)
        height = blur(edge + self.boss_height if blank.center_bores else edge, 0.7) + self.marks
        seats = blank.seat_mask()
        height = height * (1 - seats) - blur(seats, 0.6) * np.float32(SEAT_DEPTH)
        if missing is not None:
            height -= smoothstep(
                np.hypot(FRAME_X - blank.holes[missing][0], FRAME_Y - blank.holes[missing][1]),
                0.05,
                0.01,
            )
        return Surface(
            cover,
            height,
            self.reflectance * (1 + self.seat_brightening * seats)[..., None],
            np.full_like(cover, self.gloss),
            self.trace_direction,
            self.roughness,
        )


def sample_metal(generator: np.random.Generator) -> Metal:
    """Any metal with any finish; some are engraved."""
    traces, spread, lay = _sample_traces(generator)
    uneven = (
        np.float32(1)
        + generator.uniform(0.01, 0.05) * smooth_noise(generator, FRAME_SIZE, 3)
        + generator.uniform(0.005, 0.02) * spread
    )
    tint = np.array(METAL_COLORS[generator.integers(len(METAL_COLORS))]) * generator.uniform(
        0.88, 1.12
    ) + generator.uniform(-0.02, 0.02, 3)
    marks = traces * generator.uniform(0.005, 0.035) + fine_noise(
        generator, FRAME_SIZE, generator.uniform(0.5, 1.1)
    ) * generator.uniform(0.005, 0.03)
    engraving = _sample_engraving(generator)
    spread_along = float(generator.uniform(0.08, 0.25))
    tone = as_plane(uneven * (1 - generator.uniform(0.1, 0.35) * engraving))[
        ..., None
    ] * tint.astype(np.float32)
    return Metal(
        tone,
        as_plane(marks - engraving * generator.uniform(0.3, 0.9)),
        _sample_boss(generator),
        float(generator.uniform(1, 4)),
        float(generator.uniform(0.3, 1)),
        float(generator.uniform(0.2, 0.4)),
        lay,
        (spread_along, spread_along * float(generator.uniform(1, 4) if traces.any() else 1)),
    )


def _edge_distance(cover: Plane) -> Plane:
    return as_plane(cv2.distanceTransform((cover > 0.5).astype(np.uint8), cv2.DIST_L2, 3))


def _sample_traces(generator: np.random.Generator) -> tuple[Plane, Plane, tuple[Plane, Plane]]:
    """Rings, arcs or straight strokes, all circles about a point that is near or far; none where it was blasted: height, shade, lay."""
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
    places = (radius - radius.min()) * np.float32(UNIT_PIXELS / pitch)
    lively = sample_profile(profile, places) * (
        1 + np.float32(0.4) * smooth_noise(generator, FRAME_SIZE, 8)
    )
    if generator.random() < 0.2:
        lively = np.zeros_like(lively)
    return (
        lively,
        lively + smooth_noise(generator, FRAME_SIZE, 24) * np.float32(0.5),
        (right / radius, down / radius),
    )


def _sample_engraving(generator: np.random.Generator) -> Plane:
    """A serial number somewhere: edges on a surface are no defect."""
    if generator.random() > 0.1:
        return np.zeros_like(FRAME_Y)
    image = np.zeros((FRAME_SIZE, FRAME_SIZE), np.uint8)
    x, y = (
        (generator.uniform((-0.75, -0.75), (0.1, 0.75)) * UNIT_PIXELS + FRAME_SIZE / 2)
        .astype(int)
        .tolist()
    )
    digits, scale = int(generator.integers(100, 9999)), generator.uniform(0.3, 0.5)
    cv2.putText(
        image,
        f"{'ABCDEFHK'[digits % 8]}{digits}",
        (x, y),
        cv2.FONT_HERSHEY_SIMPLEX,
        scale,
        255,
        1,
        cv2.LINE_AA,
    )
    return blur(as_plane(image) / np.float32(255), 0.5)


def _sample_boss(generator: np.random.Generator) -> Plane:
    """A boss or a turned recess about the centre, or nothing."""
    kind, radius, height = (
        generator.random(),
        generator.uniform(0.3, 0.8),
        generator.uniform(0.8, 2.2),
    )
    if kind >= 0.12:
        return np.zeros_like(FRAME_Y)
    disc = smoothstep(np.hypot(FRAME_Y, FRAME_X), radius + 0.015, radius - 0.015)
    return as_plane(disc * (height if kind < 0.06 else -height))

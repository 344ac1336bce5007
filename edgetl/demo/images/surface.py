"""The surface of a part: its relief, the metal that it is made of, and the traces of the tool that made it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from edgetl.demo.images.shapes import Blank
from edgetl.demo.images.textures import (
    COLUMNS,
    FRAME,
    ROWS,
    UNIT,
    Plane,
    blur,
    clouds,
    grain,
    looked_up,
    plane,
    step,
)

METALS = ((0.60, 0.61, 0.63), (0.74, 0.75, 0.77), (0.70, 0.57, 0.34), (0.44, 0.44, 0.46))
"""Steel, aluminium, brass and oxidised steel: red, green and blue reflectance."""


SEAT_DEPTH = 1.2
"""Of a screw's seat, in pixels."""
TRACES = 512
"""More than fit between the nearest and the farthest point of the frame."""


@dataclass(frozen=True)
class Surface:
    """What the light falls on. All planes are [FRAME, FRAME]."""

    cover: Plane
    """Where there is metal, 0 to 1."""
    height: Plane
    """In pixels."""
    tone: Plane
    """Reflectance [FRAME, FRAME, 3], 0 to 1."""
    gloss: Plane
    """How much of a highlight is seen, 0 to 1."""
    lay: tuple[Plane, Plane]
    """Unit vectors across the tool's traces: right, down."""
    roughness: tuple[float, float]
    """Spread of slopes along the traces and across them: small is a mirror."""

    def inside(self) -> Plane:
        """Pixels to the nearest edge."""
        return _inside(self.cover)


@dataclass(frozen=True)
class Metal:
    """What is the same for a part and for the same part with a defect."""

    tone: Plane
    marks: Plane
    """Height of the tool's traces and of engraving, in pixels."""
    raised: Plane
    """Height of a boss or a recess about the bore; parts without a bore have none."""
    chamfer: float
    """Width of broken edges in pixels."""
    gloss: float
    faced: float
    """How much lighter the seats of screws are."""
    lay: tuple[Plane, Plane]
    roughness: tuple[float, float]

    def surface(self, blank: Blank, missing: int | None = None) -> Surface:
        """`blank` made of this metal, without the hole of number `missing`."""
        cover = blank.cover(missing)
        edge = np.minimum(_inside(cover), np.float32(self.chamfer)) * np.float32(0.9)
        height = blur(edge + self.raised if blank.bores else edge, 0.7) + self.marks
        seats = blank.seats()
        height = height * (1 - seats) - blur(seats, 0.6) * np.float32(SEAT_DEPTH)
        if missing is not None:
            height -= step(
                np.hypot(COLUMNS - blank.holes[missing][0], ROWS - blank.holes[missing][1]),
                0.05,
                0.01,
            )
        return Surface(
            cover,
            height,
            self.tone * (1 + self.faced * seats)[..., None],
            np.full_like(cover, self.gloss),
            self.lay,
            self.roughness,
        )


def metal(generator: np.random.Generator) -> Metal:
    """Any metal with any finish; some are engraved."""
    traces, spread, lay = _traces(generator)
    uneven = (
        np.float32(1)
        + generator.uniform(0.01, 0.05) * clouds(generator, FRAME, 3)
        + generator.uniform(0.005, 0.02) * spread
    )
    tint = np.array(METALS[generator.integers(len(METALS))]) * generator.uniform(
        0.88, 1.12
    ) + generator.uniform(-0.02, 0.02, 3)
    marks = traces * generator.uniform(0.005, 0.035) + grain(
        generator, FRAME, generator.uniform(0.5, 1.1)
    ) * generator.uniform(0.005, 0.03)
    engraving = _engraving(generator)
    spread_along = float(generator.uniform(0.08, 0.25))
    tone = plane(uneven * (1 - generator.uniform(0.1, 0.35) * engraving))[..., None] * tint.astype(
        np.float32
    )
    return Metal(
        tone,
        plane(marks - engraving * generator.uniform(0.3, 0.9)),
        _raised(generator),
        float(generator.uniform(1, 4)),
        float(generator.uniform(0.3, 1)),
        float(generator.uniform(0.2, 0.4)),
        lay,
        (spread_along, spread_along * float(generator.uniform(1, 4) if traces.any() else 1)),
    )


def _inside(cover: Plane) -> Plane:
    return plane(cv2.distanceTransform((cover > 0.5).astype(np.uint8), cv2.DIST_L2, 3))


def _traces(generator: np.random.Generator) -> tuple[Plane, Plane, tuple[Plane, Plane]]:
    """Rings, arcs or straight strokes, all circles about a point that is near or far; none where it was blasted: height, shade, lay."""
    distance = generator.choice([0.0, generator.uniform(1.2, 3), 40.0])
    angle = generator.uniform(0, 2 * math.pi)
    right, down = (
        COLUMNS - np.float32(distance * math.cos(angle)),
        ROWS - np.float32(distance * math.sin(angle)),
    )
    radius = np.hypot(right, down) + np.float32(1e-3)
    pitch = generator.uniform(0.8, 2.5)
    profile = np.convolve(generator.standard_normal(TRACES), (0.25, 0.5, 0.25), "same").astype(
        np.float32
    )
    if generator.random() < 0.4:
        profile += np.sin(
            np.arange(TRACES, dtype=np.float32) * np.float32(generator.uniform(0.6, 1.6))
        )
    places = (radius - radius.min()) * np.float32(UNIT / pitch)
    lively = looked_up(profile, places) * (1 + np.float32(0.4) * clouds(generator, FRAME, 8))
    if generator.random() < 0.2:
        lively = np.zeros_like(lively)
    return (
        lively,
        lively + clouds(generator, FRAME, 24) * np.float32(0.5),
        (right / radius, down / radius),
    )


def _engraving(generator: np.random.Generator) -> Plane:
    """A serial number somewhere: edges on a surface are no defect."""
    if generator.random() > 0.1:
        return np.zeros_like(ROWS)
    image = np.zeros((FRAME, FRAME), np.uint8)
    x, y = (generator.uniform((-0.75, -0.75), (0.1, 0.75)) * UNIT + FRAME / 2).astype(int).tolist()
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
    return blur(plane(image) / np.float32(255), 0.5)


def _raised(generator: np.random.Generator) -> Plane:
    """A boss or a turned recess about the centre, or nothing."""
    kind, radius, height = (
        generator.random(),
        generator.uniform(0.3, 0.8),
        generator.uniform(0.8, 2.2),
    )
    if kind >= 0.12:
        return np.zeros_like(ROWS)
    disc = step(np.hypot(ROWS, COLUMNS), radius + 0.015, radius - 0.015)
    return plane(disc * (height if kind < 0.06 else -height))

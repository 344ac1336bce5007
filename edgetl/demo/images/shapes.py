"""Shapes of machined parts with regular hole patterns, so that a missing hole is visible."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from edgetl.demo.images.textures import FRAME_SIZE, UNIT_PIXELS, Plane, as_plane, blur

Circle = tuple[float, float, float]
"""Center (x, y) and radius, in units of UNIT_PIXELS from the center of the frame."""
SEAT_RADIUS_RATIO = 1.6
"""Ratio of the radius of a screw seat to that of its hole."""
Points = list[tuple[float, float]]


@dataclass(frozen=True)
class PartShape:
    """Shape of a part: outline, bores and holes."""

    outline: Points
    center_bores: tuple[Circle, ...]
    """Openings in the center, which are never missing."""
    holes: tuple[Circle, ...]
    """Regular pattern of holes, one of which may be missing."""
    corner_radius: float = 3.0
    """Radius of rounded corners, in pixels."""

    def metal_mask(self, missing: int | None = None) -> Plane:
        """Return the share of metal in each pixel [FRAME, FRAME], without the hole `missing`."""
        image = np.zeros((FRAME_SIZE, FRAME_SIZE), np.uint8)
        cv2.fillPoly(image, [_to_fixed_point(self.outline)], 255, cv2.LINE_AA, 4)
        soft = blur(as_plane(image) / np.float32(255), self.corner_radius)
        image = (np.clip((soft - 0.5) * (2 * self.corner_radius) + 0.5, 0, 1) * 255).astype(
            np.uint8
        )
        for circle in (
            *self.center_bores,
            *(hole for index, hole in enumerate(self.holes) if index != missing),
        ):
            _draw_circle(image, circle, 0)
        return as_plane(image) / np.float32(255)

    def seat_mask(self) -> Plane:
        """Return the mask [FRAME, FRAME] of screw seats, 0 to 1.

        Every hole of the pattern has a seat, also a missing one.
        """
        image = np.zeros((FRAME_SIZE, FRAME_SIZE), np.uint8)
        for x, y, radius in self.holes:
            _draw_circle(image, (x, y, SEAT_RADIUS_RATIO * radius), 255)
        return as_plane(image) / np.float32(255)


def sample_shape(generator: np.random.Generator) -> PartShape:
    """Sample a part of a random shape."""
    return SHAPES[generator.integers(len(SHAPES))](generator)


def _to_fixed_point(points: Points) -> NDArray[np.int32]:
    return np.round((np.array(points) * UNIT_PIXELS + (FRAME_SIZE - 1) / 2) * 16).astype(np.int32)


def _draw_circle(image: NDArray[np.uint8], circle: Circle, value: int) -> None:
    x, y = _to_fixed_point([circle[:2]])[0]
    cv2.circle(
        image, (int(x), int(y)), round(circle[2] * UNIT_PIXELS * 16), value, -1, cv2.LINE_AA, 4
    )


def _points_on_circle(count: int, radius: float) -> Points:
    angles = [2 * math.pi * index / count for index in range(count)]
    return [(radius * math.cos(angle), radius * math.sin(angle)) for angle in angles]


def _circles_at(points: Points, radius: float) -> tuple[Circle, ...]:
    return tuple((x, y, radius) for x, y in points)


def _flange(generator: np.random.Generator) -> PartShape:
    radius = generator.uniform(0.85, 1.0)
    bore = generator.uniform(0.18, 0.36)
    holes = _circles_at(
        _points_on_circle(
            int(generator.integers(4, 8)), (radius + bore) * generator.uniform(0.5, 0.56)
        ),
        generator.uniform(0.095, 0.125),
    )
    return PartShape(_points_on_circle(96, radius), ((0, 0, bore),), holes)


def _gear(generator: np.random.Generator) -> PartShape:
    radius = generator.uniform(0.9, 1.0)
    teeth = int(generator.integers(16, 31))
    depth = generator.uniform(0.85, 0.91)
    outline = [
        (radius * reach * math.cos(angle), radius * reach * math.sin(angle))
        for tooth in range(teeth)
        for offset, reach in ((0.0, depth), (0.2, 1.0), (0.5, 1.0), (0.7, depth))
        for angle in [2 * math.pi * (tooth + offset) / teeth]
    ]
    holes = _circles_at(
        _points_on_circle(int(generator.integers(3, 7)), generator.uniform(0.5, 0.56)),
        generator.uniform(0.1, 0.14),
    )
    return PartShape(outline, ((0, 0, generator.uniform(0.15, 0.28)),), holes, corner_radius=1.0)


def _plate(generator: np.random.Generator) -> PartShape:
    width, height = 0.92, generator.uniform(0.55, 0.9)
    inset = generator.uniform(0.2, 0.26)
    x, y = width - inset, height - inset
    holes = [(-x, -y), (x, -y), (x, y), (-x, y)]
    if generator.random() < 0.4:
        holes += [(0, -y), (0, y)]
    bore = generator.uniform(0.14, 0.26) if generator.random() < 0.6 else 0.0
    outline = [(-width, -height), (width, -height), (width, height), (-width, height)]
    return PartShape(
        outline,
        ((0, 0, bore),) if bore else (),
        _circles_at(holes, generator.uniform(0.095, 0.13)),
        corner_radius=generator.uniform(2, 10),
    )


def _polygon(generator: np.random.Generator) -> PartShape:
    corners = int(generator.choice([5, 6, 7]))
    bore = generator.uniform(0.18, 0.34)
    holes = _circles_at(
        _points_on_circle(corners, generator.uniform(0.62, 0.68)), generator.uniform(0.095, 0.125)
    )
    return PartShape(
        _points_on_circle(corners, 0.98),
        ((0, 0, bore),),
        holes,
        corner_radius=generator.uniform(2, 6),
    )


def _bracket(generator: np.random.Generator) -> PartShape:
    end, width = 0.8, generator.uniform(0.52, 0.66)
    inner, middle = -end + width, -end + width / 2
    outline = [(-end, -end), (end, -end), (end, inner), (inner, inner), (inner, end), (-end, end)]
    last = end - generator.uniform(0.18, 0.22)
    first = last - generator.uniform(0.5, 0.6)
    holes = [(first, middle), (last, middle), (middle, first), (middle, last)]
    return PartShape(
        outline,
        (),
        _circles_at(holes, generator.uniform(0.1, 0.14)),
        corner_radius=generator.uniform(2, 7),
    )


def _strap(generator: np.random.Generator) -> PartShape:
    width = generator.uniform(0.3, 0.42)
    hole_count = 4
    ends = [*_points_on_circle(48, width)]
    reach = 0.97 - width
    outline = [(x + reach, y) for x, y in ends if x >= 0 and y <= 0] + [
        (x + reach, y) for x, y in ends if x > 0 and y > 0
    ]
    outline = sorted(outline, key=lambda point: math.atan2(point[1], point[0] - reach))
    outline += [(-x, -y) for x, y in outline]
    holes = [(float(x), 0.0) for x in np.linspace(-reach, reach, hole_count)]
    return PartShape(
        outline, (), _circles_at(holes, width * generator.uniform(0.36, 0.48)), corner_radius=1.0
    )


def _lobes(generator: np.random.Generator) -> PartShape:
    count = int(generator.integers(2, 5))
    lobe = generator.uniform(0.2, 0.27)
    disc = generator.uniform(0.52, 0.62)
    centers = _points_on_circle(count, 0.97 - lobe)
    points = [(x + dx, y + dy) for x, y in centers for dx, dy in _points_on_circle(32, lobe)]
    points += _points_on_circle(48, disc)
    hull = cv2.convexHull(np.array(points, np.float32))[:, 0]
    return PartShape(
        [(float(x), float(y)) for x, y in hull],
        ((0, 0, disc * generator.uniform(0.4, 0.62)),),
        _circles_at(centers, lobe * generator.uniform(0.42, 0.56)),
        generator.uniform(1, 4),
    )


SHAPES: tuple[Callable[[np.random.Generator], PartShape], ...] = (
    _bracket,
    _flange,
    _gear,
    _lobes,
    _plate,
    _polygon,
    _strap,
)

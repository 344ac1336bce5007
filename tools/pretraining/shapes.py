"""Rendered shapes: a class is a silhouette or a body of parts with its relief and materials; an image shows it in some light.

After Visual Atoms (Takashima et al., 2023, arXiv:2303.01112), whose outlines are sums of waves around a circle, with what photographs add:
relief, light, shadow, texture and things in front of each other. Bodies (blobs joined by a plan, as limbs are) bend from image to image.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from tools.pretraining.noise import Field, square
from tools.pretraining.textures import (
    Image,
    Palette,
    Pattern,
    colorize,
    draw_background,
    draw_pattern,
    jitter_palette,
    random_palette,
    random_pattern,
)

_PROFILES = ("dome", "cone", "plate", "ring", "waves")


@dataclass(frozen=True)
class Solid:
    """A class: one outline, r(angle) = 1 + sum of waves, and how its surface rises towards the middle."""

    orders: NDArray[np.float32]
    amplitudes: NDArray[np.float32]
    phases: NDArray[np.float32]
    corner: float
    """0 is a wave's smooth outline; towards 1 its crests become points, as of stars and petals."""
    aspect: float
    profile: str
    material: Pattern
    colors: Palette
    heart: Palette | None
    """Another color in the middle, as flowers have."""
    copies: int


@dataclass(frozen=True)
class Body:
    """A class: ellipsoids on a plan, each joined to an earlier one."""

    joined: tuple[int, ...]
    """The earlier part of each part; the first one's is itself."""
    angles: NDArray[np.float32]
    reach: NDArray[np.float32]
    sizes: NDArray[np.float32]
    """[parts, 2], half axes."""
    tilt: NDArray[np.float32]
    material: Pattern
    colors: Palette
    marks: Pattern


def random_solid(generator: np.random.Generator) -> Solid:
    """A class."""
    waves = int(generator.integers(1, 4))
    return Solid(
        orders=generator.integers(2, 13, waves).astype(np.float32),
        amplitudes=(generator.uniform(0.05, 0.5, waves) / waves).astype(np.float32),
        phases=generator.uniform(0, 2 * np.pi, waves).astype(np.float32),
        corner=float(generator.choice([0.0, 0.5, 0.9])),
        aspect=float(generator.choice([1.0, 1.0, 0.7, 0.45])),
        profile=str(generator.choice(_PROFILES)),
        material=random_pattern(generator, coarsest=3.0),
        colors=random_palette(generator),
        heart=random_palette(generator) if generator.random() < 0.35 else None,
        copies=int(generator.choice([1, 1, 1, 2, 4])),
    )


def random_body(generator: np.random.Generator) -> Body:
    """A class."""
    parts = int(generator.integers(3, 8))
    sizes = generator.uniform(0.08, 0.26, (parts, 2))
    sizes[0] = generator.uniform(0.25, 0.42, 2)
    return Body(
        joined=(0, *(int(generator.integers(0, max(1, min(2, part)))) for part in range(1, parts))),
        angles=generator.uniform(0, 2 * np.pi, parts).astype(np.float32),
        reach=generator.uniform(0.7, 1.15, parts).astype(np.float32),
        sizes=sizes.astype(np.float32),
        tilt=generator.uniform(0, np.pi, parts).astype(np.float32),
        material=random_pattern(
            generator, ("hair", "noise", "hair", "turing", "bars", "flat"), 4.0, 28.0
        ),
        colors=random_palette(generator),
        marks=random_pattern(generator, ("noise", "flat", "turing", "bars"), 1.5, 6.0),
    )


def solid_height(solid: Solid, generator: np.random.Generator, side: int, radius: float) -> Field:
    """Height above the ground, 0 outside, of the solid somewhere in the frame, rotate_field and seen a little from the side."""
    x, y = square(side)
    angle, shrink = generator.uniform(0, 2 * np.pi), generator.uniform(0.75, 1.0) * solid.aspect
    middle = generator.uniform(-0.9, 0.9, 2) * max(0.15, 1 - radius)
    dx, dy = x - np.float32(middle[0]), y - np.float32(middle[1])
    u = (dx * np.float32(np.cos(angle)) + dy * np.float32(np.sin(angle))) * np.float32(1 / radius)
    v = (dy * np.float32(np.cos(angle)) - dx * np.float32(np.sin(angle))) * np.float32(
        1 / (radius * shrink)
    )
    around = cv2.phase(u, v)
    outline = np.ones_like(around)
    amplitudes = solid.amplitudes * generator.uniform(0.8, 1.2, len(solid.amplitudes)).astype(
        np.float32
    )
    for order, amplitude, phase in zip(solid.orders, amplitudes, solid.phases, strict=True):
        wave = np.cos(order * around + phase)
        if solid.corner:
            wave = (1 - np.float32(solid.corner)) * wave + np.float32(solid.corner) * (
                1 - 2 * np.abs(wave)
            )
        outline += amplitude * wave
    inward = np.clip(1 - cv2.magnitude(u, v) / np.maximum(outline, np.float32(0.15)), 0, 1)
    return _surface_height(inward, solid.profile, float(solid.orders[0]), around) * np.float32(radius)


def _surface_height(inward: Field, profile: str, order: float, around: Field) -> Field:
    if profile == "dome":
        return np.sqrt(inward * (2 - inward))
    if profile == "cone":
        return inward * np.float32(1.2)
    if profile == "plate":
        return np.minimum(inward * 5, 1) * np.float32(0.35)
    if profile == "ring":
        return np.sqrt(np.clip(1 - np.square(3 * inward - 1), 0, 1)) * np.float32(0.6)
    return np.minimum(inward * 4, 1) * (
        0.5 + 0.15 * np.cos(np.float32(2 * order) * around) + 0.3 * inward
    )


def body_height(
    body: Body, generator: np.random.Generator, side: int, radius: float
) -> tuple[Field, Field]:
    """Height above the ground, 0 outside, and which part is seen, in [0, 1]; limbs bend by a fifth of a radian or so."""
    x, y = square(side)
    whole, flip = generator.normal(0, 0.35), generator.choice([-1.0, 1.0])
    angles = body.angles + generator.normal(0, 0.22, len(body.angles)) + whole
    places = np.zeros((len(angles), 2))
    for part in range(1, len(angles)):
        parent = body.joined[part]
        distance = body.reach[part] * (body.sizes[parent].mean() + 0.5 * body.sizes[part].mean())
        places[part] = places[parent] + distance * np.array(
            [np.cos(angles[part]), np.sin(angles[part])]
        )
    places -= (places.min(0) + places.max(0)) / 2
    extent = max(float(np.abs(places).max()) + 0.2, 0.4)
    places, sizes = places * (radius / extent), body.sizes * (radius / extent)
    places[:, 0] *= flip
    places += generator.uniform(-0.25, 0.25, 2)
    height, part_seen = np.zeros((side, side), np.float32), np.zeros((side, side), np.float32)
    for part, (place, size) in enumerate(zip(places, sizes, strict=True)):
        tilt = float(body.tilt[part] + whole) * flip
        dx, dy = x - np.float32(place[0]), y - np.float32(place[1])
        u = (dx * np.float32(np.cos(tilt)) + dy * np.float32(np.sin(tilt))) * np.float32(
            1 / size[0]
        )
        v = (dy * np.float32(np.cos(tilt)) - dx * np.float32(np.sin(tilt))) * np.float32(
            1 / size[1]
        )
        bulge = np.sqrt(np.maximum(0, 1 - u * u - v * v)) * np.float32(size.mean())
        part_seen[bulge > height] = part / max(1, len(places) - 1)
        height = np.maximum(height, bulge)
    return height, part_seen


def compose(image: Image, height: Field, surface: Image, generator: np.random.Generator) -> Image:
    """The picture with a thing of this height and surface laid on it: its shadow, its shading and a highlight, all by one light."""
    side = len(image)
    angle, lift = generator.uniform(0, 2 * np.pi), generator.uniform(0.5, 1.4)
    light = np.array([np.cos(angle), np.sin(angle), lift], np.float32)
    light /= np.linalg.norm(light)
    inside = np.minimum(height * np.float32(side / 3), 1)
    away = np.array([[1, 0, -light[0] * side * 0.1], [0, 1, -light[1] * side * 0.1]], np.float32)
    cast = cv2.GaussianBlur(cv2.warpAffine(inside, away, (side, side)), (0, 0), 0.02 * side)
    image = cv2.multiply(
        image, cv2.merge([1 - np.float32(generator.uniform(0.2, 0.7)) * cast] * 3), dtype=cv2.CV_8U
    )
    smooth = cv2.GaussianBlur(height, (3, 3), 0)
    slope = np.float32(side / 16)
    nx, ny = (
        cv2.Sobel(smooth, cv2.CV_32F, 1, 0) * -slope,
        cv2.Sobel(smooth, cv2.CV_32F, 0, 1) * -slope,
    )
    length = np.sqrt(nx * nx + ny * ny + 1)
    facing = np.maximum(0, (nx * light[0] + ny * light[1] + light[2]) / length)
    ambient = np.float32(generator.uniform(0.25, 0.6))
    shade = ambient + (1 - ambient) * np.float32(1.25) * facing
    shown = cv2.multiply(surface, cv2.merge([shade] * 3), dtype=cv2.CV_8U)
    if generator.random() < 0.4:
        shine = np.power(facing, np.float32(generator.uniform(12, 40))) * np.float32(
            generator.uniform(60, 200)
        )
        shown = cv2.add(shown, cv2.merge([cv2.convertScaleAbs(shine)] * 3))
    return cv2.blendLinear(shown, image, inside, 1 - inside)


def draw_solid(solid: Solid, generator: np.random.Generator, side: int) -> Image:
    """One image of a class, uint8 [side, side, 3]: one or more of the solids on some ground, and now and then something before them."""
    image = draw_background(generator, side)
    field = draw_pattern(solid.material, generator, side)
    palette = jitter_palette(solid.colors, generator)
    surface = colorize(field * np.float32(0.6) + np.float32(0.4), palette)
    for _ in range(solid.copies):
        radius = generator.uniform(0.5, 0.9) / (1 if solid.copies == 1 else 1.6)
        height = solid_height(solid, generator, side, radius)
        skin = surface
        if solid.heart is not None:
            core = (height > 0.75 * height.max()).astype(np.float32)
            skin = cv2.blendLinear(colorize(field, solid.heart), surface, core, 1 - core)
        image = compose(image, height, skin, generator)
    return _add_occluder(image, generator)


def draw_body(body: Body, generator: np.random.Generator, side: int) -> Image:
    """One image of a class, uint8 [side, side, 3]: the body in some pose on some ground."""
    image = draw_background(generator, side)
    height, part = body_height(body, generator, side, generator.uniform(0.6, 0.95))
    marks = draw_pattern(body.marks, generator, side)
    fur = draw_pattern(body.material, generator, side)
    tone = np.clip(np.float32(0.45) * marks + np.float32(0.3) * fur + np.float32(0.35) * part, 0, 1)
    surface = colorize(tone, jitter_palette(body.colors, generator, loose=0.4))
    return _add_occluder(
        compose(image, height + np.float32(0.02) * fur * (height > 0), surface, generator),
        generator,
    )


def _add_occluder(image: Image, generator: np.random.Generator) -> Image:
    if generator.random() > 0.2:
        return image
    side = len(image)
    ends = generator.integers(0, side, (2, 2))
    color = tuple(int(value) for value in generator.integers(0, 256, 3))
    thickness = int(generator.integers(2, max(3, side // 8)))
    return cv2.line(
        image, tuple(map(int, ends[0])), tuple(map(int, ends[1])), color, thickness, cv2.LINE_AA
    )

"""Rendered shapes: a class is an outline or a body of parts with relief and material.

Based on Visual Atoms (Takashima et al., 2023, arXiv:2303.01112), whose outlines are sums of waves
around a circle, with added relief, light, shadow, texture and occlusion as in photographs. Bodies
are jointed ellipsoids, whose pose differs from image to image.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from tools.pretraining.noise import Field, pixel_centers
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
    """Class of solids: an outline r(angle) = 1 + sum of waves, and the profile of its surface."""

    orders: NDArray[np.float32]
    amplitudes: NDArray[np.float32]
    phases: NDArray[np.float32]
    corner: float
    """Sharpness of the crests: 0 is a smooth wave, near 1 they become points, as of stars."""
    aspect: float
    profile: str
    material: Pattern
    colors: Palette
    core_palette: Palette | None
    """Palette of the center, as in flowers; None for a uniform surface."""
    copies: int


@dataclass(frozen=True)
class Body:
    """Class of bodies: ellipsoids, each attached to an earlier one."""

    parents: tuple[int, ...]
    """Index of the part that each part is attached to; the first part is its own parent."""
    angles: NDArray[np.float32]
    reach: NDArray[np.float32]
    sizes: NDArray[np.float32]
    """Half axes, [parts, 2]."""
    tilt: NDArray[np.float32]
    material: Pattern
    colors: Palette
    marks: Pattern


def random_solid(generator: np.random.Generator) -> Solid:
    """Return a random class of solids."""
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
        core_palette=random_palette(generator) if generator.random() < 0.35 else None,
        copies=int(generator.choice([1, 1, 1, 2, 4])),
    )


def random_body(generator: np.random.Generator) -> Body:
    """Return a random class of bodies."""
    parts = int(generator.integers(3, 8))
    sizes = generator.uniform(0.08, 0.26, (parts, 2))
    sizes[0] = generator.uniform(0.25, 0.42, 2)
    parents = [int(generator.integers(0, max(1, min(2, part)))) for part in range(1, parts)]
    return Body(
        parents=(0, *parents),
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
    """Return the height map of a solid, [side, side]; 0 outside.

    The solid is at a random position, rotated, and slightly tilted.
    """
    x, y = pixel_centers(side)
    angle = generator.uniform(0, 2 * np.pi)
    shrink = generator.uniform(0.75, 1.0) * solid.aspect
    center = generator.uniform(-0.9, 0.9, 2) * max(0.15, 1 - radius)
    dx, dy = x - np.float32(center[0]), y - np.float32(center[1])
    u = (dx * np.float32(np.cos(angle)) + dy * np.float32(np.sin(angle))) * np.float32(1 / radius)
    v = (dy * np.float32(np.cos(angle)) - dx * np.float32(np.sin(angle))) * np.float32(
        1 / (radius * shrink)
    )
    polar_angle = cv2.phase(u, v)
    outline = np.ones_like(polar_angle)
    factors = generator.uniform(0.8, 1.2, len(solid.amplitudes)).astype(np.float32)
    amplitudes = solid.amplitudes * factors
    corner = np.float32(solid.corner)
    for order, amplitude, phase in zip(solid.orders, amplitudes, solid.phases, strict=True):
        wave = np.cos(order * polar_angle + phase)
        if solid.corner:
            wave = (1 - corner) * wave + corner * (1 - 2 * np.abs(wave))
        outline += amplitude * wave
    depth = np.clip(1 - cv2.magnitude(u, v) / np.maximum(outline, np.float32(0.15)), 0, 1)
    height = _surface_height(depth, solid.profile, float(solid.orders[0]), polar_angle)
    return height * np.float32(radius)


def _surface_height(depth: Field, profile: str, order: float, polar_angle: Field) -> Field:
    if profile == "dome":
        return np.sqrt(depth * (2 - depth))
    if profile == "cone":
        return depth * np.float32(1.2)
    if profile == "plate":
        return np.minimum(depth * 5, 1) * np.float32(0.35)
    if profile == "ring":
        return np.sqrt(np.clip(1 - np.square(3 * depth - 1), 0, 1)) * np.float32(0.6)
    ripples = np.cos(np.float32(2 * order) * polar_angle)
    return np.minimum(depth * 4, 1) * (0.5 + 0.15 * ripples + 0.3 * depth)


def body_height(
    body: Body, generator: np.random.Generator, side: int, radius: float
) -> tuple[Field, Field]:
    """Return the height map of a body, 0 outside, and the visible part per pixel, in [0, 1].

    Limbs bend by random angles with a standard deviation of 0.22 radians.
    """
    x, y = pixel_centers(side)
    rotation = generator.normal(0, 0.35)
    flip = generator.choice([-1.0, 1.0])
    angles = body.angles + generator.normal(0, 0.22, len(body.angles)) + rotation
    centers = np.zeros((len(angles), 2))
    for part in range(1, len(angles)):
        parent = body.parents[part]
        distance = body.reach[part] * (body.sizes[parent].mean() + 0.5 * body.sizes[part].mean())
        direction = np.array([np.cos(angles[part]), np.sin(angles[part])])
        centers[part] = centers[parent] + distance * direction
    centers -= (centers.min(0) + centers.max(0)) / 2
    extent = max(float(np.abs(centers).max()) + 0.2, 0.4)
    centers = centers * (radius / extent)
    sizes = body.sizes * (radius / extent)
    centers[:, 0] *= flip
    centers += generator.uniform(-0.25, 0.25, 2)
    height = np.zeros((side, side), np.float32)
    visible_part = np.zeros((side, side), np.float32)
    for part, (center, size) in enumerate(zip(centers, sizes, strict=True)):
        tilt = float(body.tilt[part] + rotation) * flip
        dx, dy = x - np.float32(center[0]), y - np.float32(center[1])
        u = (dx * np.float32(np.cos(tilt)) + dy * np.float32(np.sin(tilt))) * np.float32(
            1 / size[0]
        )
        v = (dy * np.float32(np.cos(tilt)) - dx * np.float32(np.sin(tilt))) * np.float32(
            1 / size[1]
        )
        bulge = np.sqrt(np.maximum(0, 1 - u * u - v * v)) * np.float32(size.mean())
        visible_part[bulge > height] = part / max(1, len(centers) - 1)
        height = np.maximum(height, bulge)
    return height, visible_part


def compose(image: Image, height: Field, surface: Image, generator: np.random.Generator) -> Image:
    """Draw an object over an image, with shadow, shading and highlight from one random light.

    Args:
        image: background, uint8 [side, side, 3].
        height: height map of the object, 0 outside.
        surface: surface of the object, uint8 [side, side, 3].
        generator: random generator.
    """
    side = len(image)
    angle = generator.uniform(0, 2 * np.pi)
    elevation = generator.uniform(0.5, 1.4)
    light = np.array([np.cos(angle), np.sin(angle), elevation], np.float32)
    light /= np.linalg.norm(light)
    inside = np.minimum(height * np.float32(side / 3), 1)
    shift = np.array([[1, 0, -light[0] * side * 0.1], [0, 1, -light[1] * side * 0.1]], np.float32)
    shadow = cv2.GaussianBlur(cv2.warpAffine(inside, shift, (side, side)), (0, 0), 0.02 * side)
    transmission = 1 - np.float32(generator.uniform(0.2, 0.7)) * shadow
    image = cv2.multiply(image, cv2.merge([transmission] * 3), dtype=cv2.CV_8U)
    smooth = cv2.GaussianBlur(height, (3, 3), 0)
    slope = np.float32(side / 16)
    nx = cv2.Sobel(smooth, cv2.CV_32F, 1, 0) * -slope
    ny = cv2.Sobel(smooth, cv2.CV_32F, 0, 1) * -slope
    length = np.sqrt(nx * nx + ny * ny + 1)
    diffuse = np.maximum(0, (nx * light[0] + ny * light[1] + light[2]) / length)
    ambient = np.float32(generator.uniform(0.25, 0.6))
    shading = ambient + (1 - ambient) * np.float32(1.25) * diffuse
    lit_surface = cv2.multiply(surface, cv2.merge([shading] * 3), dtype=cv2.CV_8U)
    if generator.random() < 0.4:
        exponent = np.float32(generator.uniform(12, 40))
        strength = np.float32(generator.uniform(60, 200))
        highlight = cv2.convertScaleAbs(np.power(diffuse, exponent) * strength)
        lit_surface = cv2.add(lit_surface, cv2.merge([highlight] * 3))
    return cv2.blendLinear(lit_surface, image, inside, 1 - inside)


def draw_solid(solid: Solid, generator: np.random.Generator, side: int) -> Image:
    """Draw an image of a class, uint8 [side, side, 3]: its solids on a background.

    A fifth of the images has an occluder in front.
    """
    image = draw_background(generator, side)
    field = draw_pattern(solid.material, generator, side)
    palette = jitter_palette(solid.colors, generator)
    surface = colorize(field * np.float32(0.6) + np.float32(0.4), palette)
    for _ in range(solid.copies):
        radius = generator.uniform(0.5, 0.9) / (1 if solid.copies == 1 else 1.6)
        height = solid_height(solid, generator, side, radius)
        solid_surface = surface
        if solid.core_palette is not None:
            core = (height > 0.75 * height.max()).astype(np.float32)
            solid_surface = cv2.blendLinear(
                colorize(field, solid.core_palette), surface, core, 1 - core
            )
        image = compose(image, height, solid_surface, generator)
    return _add_occluder(image, generator)


def draw_body(body: Body, generator: np.random.Generator, side: int) -> Image:
    """Draw an image of a class, uint8 [side, side, 3]: the body in a random pose."""
    image = draw_background(generator, side)
    height, visible_part = body_height(body, generator, side, generator.uniform(0.6, 0.95))
    marks = draw_pattern(body.marks, generator, side)
    material = draw_pattern(body.material, generator, side)
    tone = np.float32(0.45) * marks + np.float32(0.3) * material + np.float32(0.35) * visible_part
    palette = jitter_palette(body.colors, generator, replace_probability=0.4)
    surface = colorize(np.clip(tone, 0, 1), palette)
    height = height + np.float32(0.02) * material * (height > 0)
    return _add_occluder(compose(image, height, surface, generator), generator)


def _add_occluder(image: Image, generator: np.random.Generator) -> Image:
    if generator.random() > 0.2:
        return image
    side = len(image)
    start, end = generator.integers(0, side, (2, 2))
    color = tuple(int(value) for value in generator.integers(0, 256, 3))
    thickness = int(generator.integers(2, max(3, side // 8)))
    return cv2.line(
        image, tuple(map(int, start)), tuple(map(int, end)), color, thickness, cv2.LINE_AA
    )

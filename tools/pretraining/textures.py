"""Textures and noise shaders: a class is a small random program, an image one evaluation of it.

A program combines fields, warping, mixing and palettes. As Shaders-21k (Baradad et al., 2022,
arXiv:2211.16412) shows, the diversity of the programs matters more than their realism.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from tools.pretraining.noise import (
    Field,
    cells,
    lattice_noise,
    rescale,
    rotate_field,
    turing,
    warp_field,
    waves,
)

Image = NDArray[Any]
"""RGB image, uint8 [side, side, 3]."""
Palette = NDArray[np.float32]
"""Colors for the values 0 to 1 of a field: hue, saturation and value in [0, 1], [colors, 3]."""

_KINDS = (
    "noise",
    "ridges",
    "marble",
    "hair",
    "distance",
    "flat",
    "edges",
    "bars",
    "checks",
    "dots",
    "rings",
    "bricks",
    "turing",
)
_BROAD = ("noise", "flat", "turing", "distance", "bars")


@dataclass(frozen=True)
class Pattern:
    """Parameters of a field that all images of a class share."""

    kind: str
    cycles: float
    """Number of features across the square."""
    gain: float
    stretch: float
    bias: float
    warp: float
    power: float
    """Exponent of the values; above 1 it darkens the field."""


@dataclass(frozen=True)
class Texture:
    """Class of textures: two patterns, an optional mask that mixes them, and two palettes."""

    first: Pattern
    second: Pattern
    mask: Pattern | None
    colors: Palette
    second_colors: Palette
    relief: float
    """Strength of the relief shading of the first pattern; 0 disables it."""


def random_pattern(
    generator: np.random.Generator,
    kinds: tuple[str, ...] = _KINDS,
    coarsest: float = 2.0,
    finest: float = 24.0,
) -> Pattern:
    """Return a random pattern.

    Args:
        generator: random generator.
        kinds: kinds to choose from.
        coarsest: minimum number of features across the square.
        finest: maximum number of features across the square.
    """
    return Pattern(
        kind=str(generator.choice(kinds)),
        cycles=float(coarsest * (finest / coarsest) ** generator.random()),
        gain=float(generator.uniform(0.3, 0.8)),
        stretch=float(generator.choice([1.0, 1.0, 3.0, 6.0])),
        bias=float(generator.choice([0.0, -0.8, 0.8])),
        warp=float(generator.choice([0.0, 0.0, 0.03, 0.08])),
        power=float(2 ** generator.uniform(-1, 1)),
    )


def random_palette(generator: np.random.Generator) -> Palette:
    """Return 2 to 4 colors around a hue, some of them around the opposite hue.

    The value of the last color exceeds that of the first by at least 0.3 before clipping.
    """
    count = int(generator.integers(2, 5))
    base_hue = generator.random()
    hues = base_hue + generator.normal(0, 0.07, count) + 0.5 * (generator.random(count) < 0.2)
    is_sorted = generator.random() < 0.7
    values = generator.uniform(0.05 if is_sorted else 0.1, 1, count)
    if is_sorted:
        values.sort()
    values[-1] = max(values[-1], values[0] + 0.3)
    saturation = generator.uniform(0, 1) * generator.uniform(0.5, 1, count)
    return np.stack([hues % 1, saturation, np.clip(values, 0, 1)], 1).astype(np.float32)


def random_texture(generator: np.random.Generator) -> Texture:
    """Return a random class of textures."""
    mixed = generator.random() < 0.5
    return Texture(
        first=random_pattern(generator),
        second=random_pattern(generator),
        mask=random_pattern(generator, _BROAD, 1.5, 5) if mixed else None,
        colors=random_palette(generator),
        second_colors=random_palette(generator),
        relief=float(generator.choice([0.0, 0.0, 0.4, 0.9])),
    )


def draw_pattern(pattern: Pattern, generator: np.random.Generator, side: int) -> Field:
    """Draw an instance of a pattern, float32 [side, side] in [0, 1].

    Instances differ in noise, position, orientation, and slightly in fineness.
    """
    cycles = pattern.cycles * float(2 ** generator.uniform(-0.4, 0.4))
    cycles = min(cycles, side / 3)
    kind = pattern.kind
    if kind in ("noise", "ridges", "marble", "hair"):
        stretch = max(pattern.stretch, 5.0) if kind == "hair" else pattern.stretch
        octaves = 1 if kind == "hair" else 4
        field = lattice_noise(generator, side, cycles, octaves, pattern.gain, stretch)
        if kind == "ridges":
            field = 1 - np.abs(2 * field - 1)
        elif kind == "marble":
            field = 0.5 + 0.5 * np.sin(field * np.float32(6 + cycles))
        if stretch > 1:
            field = rotate_field(field, generator.uniform(0, np.pi))
    elif kind in ("distance", "flat", "edges"):
        field = cells(generator, side, cycles * cycles, kind)
    elif kind == "turing":
        field = turing(generator, side, cycles, pattern.bias)
    else:
        field = waves(generator, side, cycles, kind)
    if pattern.warp:
        field = warp_field(field, generator, pattern.warp)
    return np.power(rescale(field), np.float32(pattern.power))


def jitter_palette(
    palette: Palette, generator: np.random.Generator, replace_probability: float = 0.2
) -> Palette:
    """Return the palette of one image: similar to the class's, or sometimes a random one.

    Random palettes keep color alone from identifying the class.

    Args:
        palette: palette of the class.
        generator: random generator.
        replace_probability: probability of a random palette.
    """
    if generator.random() < replace_probability:
        return random_palette(generator)
    noise = generator.normal(0, [0.02, 0.06, 0.06], palette.shape).astype(np.float32)
    jittered = palette + noise
    jittered[:, 0] %= 1
    return np.clip(jittered, 0, 1)


def colorize(field: Field, palette: Palette) -> Image:
    """Map the values of a field to the colors of a palette, with linear interpolation."""
    rgb = np.array([colorsys.hsv_to_rgb(*map(float, color)) for color in palette], np.float32)
    positions = np.linspace(0, 1, 256, dtype=np.float32)
    stops = np.linspace(0, 1, len(rgb), dtype=np.float32)
    levels = cv2.convertScaleAbs(field, alpha=255.0)  # saturates, unlike astype
    channels = []
    for channel in range(3):
        table = np.interp(positions, stops, rgb[:, channel])
        channels.append(cv2.LUT(levels, (table * 255).astype(np.uint8)))
    image: Image = cv2.merge(channels)
    return image


def apply_relief(
    image: Image, height: Field, strength: float, generator: np.random.Generator
) -> Image:
    """Shade an image as a relief of `height` under light from a random side."""
    angle = generator.uniform(0, 2 * np.pi)
    slope_x = cv2.Sobel(height, cv2.CV_32F, 1, 0) * np.float32(np.cos(angle))
    slope_y = cv2.Sobel(height, cv2.CV_32F, 0, 1) * np.float32(np.sin(angle))
    shading = np.clip(1 + np.float32(strength) * (slope_x + slope_y), 0.2, 1.8)
    return cv2.multiply(image, cv2.merge([shading] * 3), dtype=cv2.CV_8U)


def draw_texture(texture: Texture, generator: np.random.Generator, side: int) -> Image:
    """Draw an image of a class, uint8 [side, side, 3]."""
    field = draw_pattern(texture.first, generator, side)
    image = colorize(field, jitter_palette(texture.colors, generator))
    if texture.mask is not None:
        second_field = draw_pattern(texture.second, generator, side)
        second_image = colorize(second_field, jitter_palette(texture.second_colors, generator))
        mask_field = draw_pattern(texture.mask, generator, side)
        mask = np.clip((mask_field - np.float32(0.5)) * 6 + np.float32(0.5), 0, 1)
        image = cv2.blendLinear(image, second_image, 1 - mask, mask)
    if texture.relief:
        image = apply_relief(image, field, texture.relief, generator)
    return image


def draw_background(generator: np.random.Generator, side: int) -> Image:
    """Draw a background independent of the class: soft noise or a random pattern."""
    if generator.random() < 0.5:
        pattern = Pattern("noise", float(generator.uniform(0.8, 3)), 0.3, 1.0, 0.0, 0.0, 1.0)
    else:
        pattern = random_pattern(generator, coarsest=3.0, finest=16.0)
    return colorize(draw_pattern(pattern, generator, side), random_palette(generator))

"""Textures and noise shaders: a class is a small random program (fields, warp, mixing, palette), an image one run of it.

In the spirit of Shaders-21k (Baradad et al., 2022, arXiv:2211.16412): many unlike programs matter more than the realism of any.
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
    turing,
    rotate_field,
    warp_field,
    waves,
)

Image = NDArray[Any]
"""uint8 [side, side, 3], RGB."""
Palette = NDArray[np.float32]
"""[colors, 3] in hue, saturation and value, each in [0, 1]: from a field's 0 to its 1."""

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
    """What a field of a class looks like, whatever the seed of the image."""

    kind: str
    cycles: float
    """Fineness: features across the square."""
    gain: float
    stretch: float
    bias: float
    warp: float
    power: float
    """Exponent on the values: above 1 the low ones spread."""


@dataclass(frozen=True)
class Texture:
    """A class: two patterns, a third that mixes them, and two palettes."""

    first: Pattern
    second: Pattern
    mask: Pattern | None
    colors: Palette
    more_colors: Palette
    relief: float
    """How much light from the side shows the first pattern as bumps."""


def random_pattern(
    generator: np.random.Generator,
    kinds: tuple[str, ...] = _KINDS,
    coarsest: float = 2.0,
    finest: float = 24.0,
) -> Pattern:
    """Any of the kinds, as coarse or fine as asked (features across the square)."""
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
    """2 to 4 colors around a hue, or around it and its opposite; values differ enough to be seen."""
    count = int(generator.integers(2, 5))
    hues = (
        generator.random()
        + generator.normal(0, 0.07, count)
        + 0.5 * (generator.random(count) < 0.2)
    )
    values = (
        np.sort(generator.uniform(0.05, 1, count))
        if generator.random() < 0.7
        else generator.uniform(0.1, 1, count)
    )
    values[-1] = max(values[-1], values[0] + 0.3)
    saturation = generator.uniform(0, 1) * generator.uniform(0.5, 1, count)
    return np.stack([hues % 1, saturation, np.clip(values, 0, 1)], 1).astype(np.float32)


def random_texture(generator: np.random.Generator) -> Texture:
    """A class."""
    mixed = generator.random() < 0.5
    return Texture(
        first=random_pattern(generator),
        second=random_pattern(generator),
        mask=random_pattern(generator, _BROAD, 1.5, 5) if mixed else None,
        colors=random_palette(generator),
        more_colors=random_palette(generator),
        relief=float(generator.choice([0.0, 0.0, 0.4, 0.9])),
    )


def draw_pattern(pattern: Pattern, generator: np.random.Generator, side: int) -> Field:
    """One instance of a pattern, float32 [side, side] in [0, 1]: other noise, place and orientation, a little finer or coarser."""
    cycles = pattern.cycles * float(2 ** generator.uniform(-0.4, 0.4))
    cycles = min(cycles, side / 3)
    kind = pattern.kind
    if kind in ("noise", "ridges", "marble", "hair"):
        stretch = max(pattern.stretch, 5.0) if kind == "hair" else pattern.stretch
        field = lattice_noise(
            generator, side, cycles, 1 if kind == "hair" else 4, pattern.gain, stretch
        )
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


def jitter_palette(palette: Palette, generator: np.random.Generator, loose: float = 0.2) -> Palette:
    """The palette of one image: near to the class's, or, by chance `loose`, of quite other colors, so that color alone tells no class."""
    if generator.random() < loose:
        return random_palette(generator)
    moved = palette + generator.normal(0, [0.02, 0.06, 0.06], palette.shape).astype(np.float32)
    moved[:, 0] %= 1
    return np.clip(moved, 0, 1)


def colorize(field: Field, palette: Palette) -> Image:
    """A field's values looked up in a palette, interpolated between its colors."""
    rgb = np.array([colorsys.hsv_to_rgb(*map(float, color)) for color in palette], np.float32)
    at, stops = (
        np.linspace(0, 1, 256, dtype=np.float32),
        np.linspace(0, 1, len(rgb), dtype=np.float32),
    )
    table = np.stack([np.interp(at, stops, rgb[:, channel]) for channel in range(3)], 1)
    looked_up: Image = cv2.merge(
        [
            cv2.LUT(_levels(field), np.ascontiguousarray((table[:, c] * 255).astype(np.uint8)))
            for c in range(3)
        ]
    )
    return looked_up


def _levels(field: Field) -> NDArray[Any]:
    return cv2.convertScaleAbs(field, alpha=255.0)  # saturates, which astype does not


def apply_relief(image: Image, height: Field, strength: float, generator: np.random.Generator) -> Image:
    """The image as a relief of `height` under light from a random side."""
    angle = generator.uniform(0, 2 * np.pi)
    slope = cv2.Sobel(height, cv2.CV_32F, 1, 0) * np.float32(np.cos(angle)) + cv2.Sobel(
        height, cv2.CV_32F, 0, 1
    ) * np.float32(np.sin(angle))
    shade = np.clip(1 + np.float32(strength) * slope, 0.2, 1.8)
    return cv2.multiply(image, cv2.merge([shade] * 3), dtype=cv2.CV_8U)


def draw_texture(texture: Texture, generator: np.random.Generator, side: int) -> Image:
    """One image of a class, uint8 [side, side, 3]."""
    field = draw_pattern(texture.first, generator, side)
    image = colorize(field, jitter_palette(texture.colors, generator))
    if texture.mask is not None:
        other = colorize(
            draw_pattern(texture.second, generator, side), jitter_palette(texture.more_colors, generator)
        )
        mask = np.clip(
            (draw_pattern(texture.mask, generator, side) - np.float32(0.5)) * 6 + np.float32(0.5),
            0,
            1,
        )
        image = cv2.blendLinear(image, other, 1 - mask, mask)
    if texture.relief:
        image = apply_relief(image, field, texture.relief, generator)
    return image


def draw_background(generator: np.random.Generator, side: int) -> Image:
    """Something behind a subject that tells nothing of its class: a wash of light, or a quiet pattern."""
    if generator.random() < 0.5:
        pattern = Pattern("noise", float(generator.uniform(0.8, 3)), 0.3, 1.0, 0.0, 0.0, 1.0)
    else:
        pattern = random_pattern(generator, coarsest=3.0, finest=16.0)
    return colorize(draw_pattern(pattern, generator, side), random_palette(generator))

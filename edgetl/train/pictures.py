"""A data set made on the spot: machine parts on a conveyor belt, so that a first run needs no download.

Pose, size, light, metal, belt, blur and sensor noise vary; nothing but the part's shape tells the classes apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

Point = tuple[float, float]
Draw = Callable[[ImageDraw.ImageDraw, np.random.Generator, float], None]
OVERSAMPLING = 3
"""Parts are drawn this much larger and shrunk: smooth edges."""


def generate_parts(folder: Path, train: int = 60, val: int = 20, size: int = 160, seed: int = 0) -> Path:
    """Write `train` and `val` images of each class as JPEG under `folder`/train/<class> and `folder`/val/<class>; returns `folder`.

    Equal arguments give equal pictures: every picture has a seed of its own.
    """
    for label_index, (label, draw) in enumerate(sorted(PARTS.items())):
        for split_index, (split, count) in enumerate((("train", train), ("val", val))):
            target = folder / split / label
            target.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                generator = np.random.default_rng([seed, split_index, label_index, number])
                Image.fromarray(_photograph(draw, generator, size)).save(target / f"{label}_{number:04d}.jpg", quality=92)
    return folder


def _photograph(draw: Draw, generator: np.random.Generator, size: int) -> NDArray[np.uint8]:
    belt = _belt(generator, size)
    part = _stencil(draw, generator, size)
    centre = generator.uniform(-0.12, 0.12, 2) * size
    angle = generator.uniform(0, 360)
    placed = part.rotate(angle, Image.Resampling.BICUBIC, translate=(int(centre[0]), int(centre[1])))
    mask = np.asarray(placed, np.float32)[..., None] / 255
    shift = generator.uniform(1, 4, 2)
    shadow = placed.filter(ImageFilter.GaussianBlur(3)).transform(
        placed.size, Image.Transform.AFFINE, (1, 0, -float(shift[0]), 0, 1, -float(shift[1]))
    )
    canvas = belt * (1 - 0.5 * np.asarray(shadow, np.float32)[..., None] / 255)
    canvas = canvas * (1 - mask) + _metal(generator, placed, size) * mask
    lit = canvas * _light(generator, size)
    blurred = Image.fromarray(np.clip(lit, 0, 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(float(generator.uniform(0, 1.2))))
    noisy = np.asarray(blurred, np.float32) + generator.normal(0, generator.uniform(1, 6), (size, size, 3))
    return np.clip(noisy, 0, 255).astype(np.uint8)


def _belt(generator: np.random.Generator, size: int) -> NDArray[np.float32]:
    """A rubber or fabric belt with ribs along one direction."""
    rows, columns = np.mgrid[0:size, 0:size].astype(np.float32)
    angle, period = generator.uniform(0, math.pi), generator.uniform(5, 24)
    ribs = np.sin((rows * math.sin(angle) + columns * math.cos(angle)) * 2 * math.pi / period)
    grain = generator.normal(0, 5, (size, size))
    colour = generator.uniform(35, 150) + generator.uniform(-18, 18, 3)
    belt: NDArray[np.float32] = (colour + (ribs * generator.uniform(2, 12) + grain)[..., None]).astype(np.float32)
    return belt


def _metal(generator: np.random.Generator, part: Image.Image, size: int) -> NDArray[np.float32]:
    """Steel, brass or blackened steel: brushed, with edges that catch the light."""
    tone = np.array([(190, 192, 198), (196, 164, 98), (88, 90, 96)][generator.integers(3)]) + generator.uniform(-18, 18)
    brushed = np.repeat(generator.normal(0, 7, (size, 1)), size, axis=1)
    relief = np.asarray(part.filter(ImageFilter.GaussianBlur(2.5)), np.float32)
    edges = np.gradient(relief)[0] * generator.uniform(-1.6, 1.6) + np.gradient(relief)[1] * generator.uniform(-1.6, 1.6)
    metal: NDArray[np.float32] = (tone + (brushed + edges)[..., None]).astype(np.float32)
    return metal


def _light(generator: np.random.Generator, size: int) -> NDArray[np.float32]:
    """A lamp somewhere above: brighter on one side, slightly tinted."""
    rows, columns = np.mgrid[0:size, 0:size].astype(np.float32) / size - 0.5
    angle = generator.uniform(0, 2 * math.pi)
    slope = 1 + generator.uniform(0, 0.5) * (rows * math.sin(angle) + columns * math.cos(angle))
    tint = generator.uniform(0.94, 1.06, 3) * generator.uniform(0.7, 1.25)
    light: NDArray[np.float32] = (slope[..., None] * tint).astype(np.float32)
    return light


def _stencil(draw: Draw, generator: np.random.Generator, size: int) -> Image.Image:
    """The part's silhouette, white on black, `size` pixels square."""
    large = size * OVERSAMPLING
    image = Image.new("L", (large, large), 0)
    draw(ImageDraw.Draw(image), generator, large / 2)
    return image.resize((size, size), Image.Resampling.BOX)


def _ring(centre: float, radius: float, corners: int, phase: float = 0.0) -> list[Point]:
    angles = [phase + 2 * math.pi * corner / corners for corner in range(corners)]
    return [(centre + radius * math.cos(angle), centre + radius * math.sin(angle)) for angle in angles]


def _disc(draw: ImageDraw.ImageDraw, centre: float, radius: float, fill: int) -> None:
    draw.ellipse([centre - radius, centre - radius, centre + radius, centre + radius], fill=fill)


def _washer(draw: ImageDraw.ImageDraw, generator: np.random.Generator, centre: float) -> None:
    radius = centre * generator.uniform(0.4, 0.62)
    _disc(draw, centre, radius, 255)
    _disc(draw, centre, radius * generator.uniform(0.42, 0.66), 0)


def _nut(draw: ImageDraw.ImageDraw, generator: np.random.Generator, centre: float) -> None:
    radius = centre * generator.uniform(0.44, 0.66)
    draw.polygon(_ring(centre, radius, 6), fill=255)
    _disc(draw, centre, radius * generator.uniform(0.38, 0.58), 0)


def _gear(draw: ImageDraw.ImageDraw, generator: np.random.Generator, centre: float) -> None:
    radius, teeth = centre * generator.uniform(0.46, 0.64), int(generator.integers(9, 16))
    depth = generator.uniform(0.78, 0.86)
    outline: list[Point] = []
    for tooth in range(teeth):
        for offset, reach in ((0.0, depth), (0.18, 1.0), (0.5, 1.0), (0.68, depth)):
            angle = 2 * math.pi * (tooth + offset) / teeth
            outline.append((centre + radius * reach * math.cos(angle), centre + radius * reach * math.sin(angle)))
    draw.polygon(outline, fill=255)
    _disc(draw, centre, radius * generator.uniform(0.22, 0.42), 0)


def _bolt(draw: ImageDraw.ImageDraw, generator: np.random.Generator, centre: float) -> None:
    length, width = centre * generator.uniform(0.85, 1.2), centre * generator.uniform(0.14, 0.22)
    left = centre - length / 2
    head = width * generator.uniform(1.5, 2.0)
    draw.rectangle([left, centre - head, left + length * 0.24, centre + head], fill=255)
    draw.rectangle([left, centre - width, left + length, centre + width], fill=255)
    pitch = width * 0.55
    for turn in range(int(length * 0.6 / pitch)):
        start = left + length - turn * pitch
        for side in (-1, 1):
            edge = centre + side * width
            draw.polygon([(start, edge), (start - pitch / 2, edge - side * width * 0.3), (start - pitch, edge)], fill=0)


def _bracket(draw: ImageDraw.ImageDraw, generator: np.random.Generator, centre: float) -> None:
    arm, width = centre * generator.uniform(0.75, 1.0), centre * generator.uniform(0.24, 0.34)
    corner = centre - arm / 2
    draw.rectangle([corner, corner, corner + arm, corner + width], fill=255)
    draw.rectangle([corner, corner, corner + width, corner + arm], fill=255)
    hole = width * generator.uniform(0.2, 0.3)
    for x, y in ((corner + arm - width / 2, corner + width / 2), (corner + width / 2, corner + arm - width / 2)):
        draw.ellipse([x - hole, y - hole, x + hole, y + hole], fill=0)


PARTS: dict[str, Draw] = {"bolt": _bolt, "bracket": _bracket, "gear": _gear, "nut": _nut, "washer": _washer}
"""Class name to the function that draws its silhouette around the centre of a square, half of whose side is the last argument."""

"""Seeded images with the entropy of photos, written as JPEG files in camera sizes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgetl.device.hardware.cpu import available_cores

SIZES = {"500 px": (500, 375), "1080p": (1920, 1080), "12 MP": (4000, 3000)}
"""Width and height by name, pixels."""
CLASSES = ("bark", "fabric", "gravel", "water")
QUALITY = 90
_NOISE = 5.0
"""Standard deviation of the sensor noise in gray levels; files get 1.5 to 3 bits per pixel."""


def write_photos(folder: Path, size: tuple[int, int], per_class: int, seed: int = 0) -> Path:
    """Write `per_class` JPEG files of each class to `folder`/<class> and return `folder`.

    Args:
        size: width and height, pixels.
    """
    entries = []
    for number, label in enumerate(CLASSES):
        (folder / label).mkdir(parents=True, exist_ok=True)
        keys = [(seed, number, index) for index in range(per_class)]
        entries += [(folder / label / f"{key[-1]:04d}.jpg", key) for key in keys]

    def draw(entry: tuple[Path, tuple[int, int, int]]) -> None:
        path, key = entry
        pixels = photo(np.random.default_rng(key), key[1], size)
        Image.fromarray(pixels).save(path, quality=QUALITY)

    with ThreadPoolExecutor(available_cores()) as pool:
        list(pool.map(draw, entries))
    return folder


def photo(generator: np.random.Generator, label: int, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Draw an image [height, width, 3]: octaves of noise stretched by class, and sensor noise.

    Classes differ in the direction and color of their structures, which survive any crop.
    """
    width, height = size
    stretch = (1.0, 6.0, 0.17, 2.0)[label]
    structure = np.zeros((height, width), np.float32)
    for octave in range(2, 7):
        rows = max(2, round(2**octave * stretch**0.5))
        columns = max(2, round(2**octave / stretch**0.5))
        cells = Image.fromarray(generator.standard_normal((rows, columns), np.float32))
        smooth = cells.resize(size, Image.Resampling.BICUBIC)
        structure += np.asarray(smooth) * np.float32(0.8 ** (octave - 2))
    tint = np.roll(np.array([1.0, 0.7, 0.45], np.float32), label)
    brightness = np.float32(generator.uniform(95, 150))
    sensor_noise = generator.standard_normal((height, width, 1), np.float32) * np.float32(_NOISE)
    pixels = (
        brightness * tint + np.float32(26) * structure[..., None] * (0.5 + tint / 2) + sensor_noise
    )
    return np.clip(pixels, 0, 255).astype(np.uint8)

"""Mutated JPEG, PNG, WebP, GIF, BMP and TIFF files, decoded and preprocessed."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
from PIL import Image

from edgetl.core.preprocessing import Preprocessing
from edgetl.device.runtime.images import load_image
from edgetl.device.runtime.preprocessing import resize_and_crop
from tools.checks.fuzz.target import Target, mutate_file

_SUFFIXES = (".jpg", ".png", ".webp", ".gif", ".bmp", ".tif")


def prepare(folder: Path) -> None:
    """Write two images of each format."""
    rows, columns = np.mgrid[0:120, 0:160]
    for number, scale in enumerate((1, 3)):
        pixels = np.stack([rows * scale, columns * scale, rows + columns], 2).astype(np.uint8)
        for suffix in _SUFFIXES:
            Image.fromarray(pixels).save(folder / f"{number}{suffix}")


def make_case(generator: random.Random, originals: Path, case: Path) -> None:
    """Write one mutated image."""
    suffix = generator.choice(_SUFFIXES)
    first, second = generator.sample([originals / f"0{suffix}", originals / f"1{suffix}"], 2)
    path = case / f"image{suffix}"
    path.write_bytes(first.read_bytes())
    mutate_file(path, generator, second)


def use(case: Path) -> None:
    """Decode, resize and crop the image."""
    (path,) = case.iterdir()
    resize_and_crop(load_image(path.read_bytes()), Preprocessing.for_image_size(64))


TARGET = Target(prepare, make_case, use)

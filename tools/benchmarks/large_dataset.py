"""Generate a large data set of small JPEGs to time training on.

    python -m tools.benchmarks.large_dataset DIR --images 100000 [--classes 10] [--size 96]

DIR/train/<class> and DIR/val/<class> (2% of the images) contain bars, checks or rings. The classes
of a family differ in spatial frequency. Orientation, position, colors, contrast and noise are
random and independent of the class. Equal arguments give equal files.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgetl.device.hardware.cpu import available_cores

FloatArray = NDArray[np.float32]
Pattern = Callable[[FloatArray, FloatArray], FloatArray]
VAL_SHARE = 0.02
CHUNK = 100
"""Images per chunk. Each chunk has its own random generator, so this affects the images."""
COARSEST, FINEST = 2.5, 14.0
"""Cycles across the image for the first and the last class of a family."""


def bars(u: FloatArray, v: FloatArray) -> FloatArray:
    return np.sin(u)


def checks(u: FloatArray, v: FloatArray) -> FloatArray:
    return np.sin(u) * np.sin(v)


def rings(u: FloatArray, v: FloatArray) -> FloatArray:
    return np.sin(np.hypot(u, v))


FAMILIES: tuple[Pattern, ...] = (bars, checks, rings)


@dataclass(frozen=True)
class Appearance:
    """Appearance of the images of a class."""

    name: str
    pattern: Pattern
    cycles: float
    """Cycles of the pattern across the image."""


def appearances(classes: int) -> list[Appearance]:
    """Return the appearance of each class.

    Families alternate; the frequencies within a family form a geometric series.
    """
    steps = max(1, (classes - 1) // len(FAMILIES))
    result = []
    for index in range(classes):
        step, family = divmod(index, len(FAMILIES))
        pattern = FAMILIES[family]
        cycles = COARSEST * (FINEST / COARSEST) ** (step / steps)
        result.append(Appearance(f"{pattern.__name__}_{step:02d}", pattern, cycles))
    return result


@dataclass(frozen=True)
class Chunk:
    """Images of one class and split, drawn in one process."""

    folder: Path
    appearance: Appearance
    first: int
    """Number of the first image within its class and split."""
    count: int
    size: int
    """Side of the images, in pixels."""
    seed: tuple[int, ...]


def draw(
    appearance: Appearance, generator: np.random.Generator, count: int, size: int
) -> NDArray[np.uint8]:
    """Draw images of a class; returns uint8 [count, size, size, 3]."""

    def uniform(low: float, high: float, *shape: int) -> FloatArray:
        return generator.uniform(low, high, (count, *(shape or (1, 1)))).astype(np.float32)

    rows, columns = np.mgrid[0:size, 0:size].astype(np.float32)[:, None] / size - 0.5
    angle = uniform(0, 2 * np.pi)
    pitch = 2 * np.pi * appearance.cycles * uniform(0.9, 1.1)
    x = columns - uniform(-0.4, 0.4)
    y = rows - uniform(-0.4, 0.4)
    wave = appearance.pattern(
        (x * np.cos(angle) + y * np.sin(angle)) * pitch,
        (y * np.cos(angle) - x * np.sin(angle)) * pitch,
    )
    wave *= uniform(0.3, 1)
    wave += generator.standard_normal((count, size, size), np.float32) * uniform(0.05, 0.5)
    middle = uniform(80, 176, 1, 1, 3)
    amplitude = uniform(-75, 75, 1, 1, 3)
    return np.clip(middle + wave[..., None] * amplitude, 0, 255).astype(np.uint8)


def write_chunk(chunk: Chunk) -> int:
    """Draw and encode a chunk and return its number of images."""
    pixels = draw(chunk.appearance, np.random.default_rng(chunk.seed), chunk.count, chunk.size)
    for number, image in enumerate(pixels, chunk.first):
        path = chunk.folder / f"{chunk.appearance.name}_{number:06d}.jpg"
        Image.fromarray(image).save(path, quality=85)
    return chunk.count


def plan(folder: Path, images: int, classes: int, size: int, seed: int) -> Iterator[Chunk]:
    """Create the folders and yield all chunks; classes differ by at most one image in size."""
    for index, appearance in enumerate(appearances(classes)):
        class_images = images // classes + (index < images % classes)
        val = max(1, round(class_images * VAL_SHARE))
        totals = {"train": class_images - val, "val": val}
        for split_index, (split, total) in enumerate(totals.items()):
            target = folder / split / appearance.name
            target.mkdir(parents=True)
            for first in range(0, total, CHUNK):
                chunk_seed = (seed, split_index, index, first)
                count = min(CHUNK, total - first)
                yield Chunk(target, appearance, first, count, size, chunk_seed)


def write_set(
    folder: Path,
    images: int,
    classes: int = 10,
    size: int = 96,
    seed: int = 0,
    workers: int | None = None,
) -> None:
    """Write the data set.

    Args:
        folder: an empty or nonexistent folder.
        images: total number of images over all classes and both splits.
        classes: number of classes, at least 2.
        size: side of the square images, in pixels.
        seed: seed of the images; equal arguments give equal files for any `workers`.
        workers: number of processes; None starts one per core.

    Raises:
        SystemExit: an argument is out of range, or the folder is not empty.
    """
    if classes < 2 or images < 2 * classes or size < 8 or seed < 0:
        sys.exit(
            "--classes must be >= 2, --images >= 2 per class, --size >= 8 and --seed >= 0, got "
            f"{classes}, {images}, {size} and {seed}."
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        sys.exit(f"{folder} is not an empty folder. Choose an empty or new one.")
    started = time.perf_counter()
    written = 0
    reported_tenths = 0
    # The caller may have threads, and forking a process with threads can hang.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers or available_cores(), mp_context=spawn) as pool:
        chunks = plan(folder, images, classes, size, seed)
        for future in as_completed([pool.submit(write_chunk, chunk) for chunk in chunks]):
            written += future.result()
            tenths = written * 10 // images
            if tenths > reported_tenths:
                reported_tenths = tenths
                print(
                    f"{written:,} of {images:,} images, {time.perf_counter() - started:.1f} s",
                    file=sys.stderr,
                    flush=True,
                )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tools.benchmarks.large_dataset",
        description="Generate a large data set of small JPEGs to time training on.",
    )
    parser.add_argument("folder", metavar="DIR", type=Path, help="empty or new folder")
    parser.add_argument(
        "--images", type=int, required=True, help="total over all classes and both splits"
    )
    parser.add_argument("--classes", type=int, default=10, help="number of classes [10]")
    parser.add_argument("--size", type=int, default=96, help="side of the images, in pixels [96]")
    parser.add_argument("--seed", type=int, default=0, help="seed of the images [0]")
    options = parser.parse_args(arguments)
    write_set(options.folder, options.images, options.classes, options.size, options.seed)


if __name__ == "__main__":
    main()

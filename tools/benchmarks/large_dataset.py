"""Write many small JPEGs to time training on: python -m tools.benchmarks.large_dataset DIR --images 100000 [--classes 10] [--size 96] [--seed 0].

DIR/train/<class> and DIR/val/<class> (2%) hold bars, checks or rings; how fine they are, against the frame, tells the classes of a
family apart. Orientation, place, colours, contrast and noise say nothing about the class. Equal arguments give equal files.
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

Values = NDArray[np.float32]
Pattern = Callable[[Values, Values], Values]
VAL_SHARE = 0.02
CHUNK = 100
"""Images drawn at once. Part of what a seed means: every chunk has a random generator of its own."""
COARSEST, FINEST = 2.5, 14.0
"""Cycles across the frame of the first and the last class of a family."""


def bars(u: Values, v: Values) -> Values:
    return np.sin(u)


def checks(u: Values, v: Values) -> Values:
    return np.sin(u) * np.sin(v)


def rings(u: Values, v: Values) -> Values:
    return np.sin(np.hypot(u, v))


FAMILIES: tuple[Pattern, ...] = (bars, checks, rings)


@dataclass(frozen=True)
class Appearance:
    """What makes a class."""

    name: str
    pattern: Pattern
    cycles: float
    """Across the frame."""


def appearances(classes: int) -> list[Appearance]:
    """Families in turn; within a family the fineness grows by equal ratios."""
    steps = max(1, (classes - 1) // len(FAMILIES))
    made = []
    for index in range(classes):
        step, family = divmod(index, len(FAMILIES))
        pattern = FAMILIES[family]
        made.append(
            Appearance(
                f"{pattern.__name__}_{step:02d}",
                pattern,
                COARSEST * (FINEST / COARSEST) ** (step / steps),
            )
        )
    return made


@dataclass(frozen=True)
class Chunk:
    """Images of one class and split that one process draws."""

    folder: Path
    appearance: Appearance
    first: int
    """Number of its first image within class and split."""
    count: int
    size: int
    """Side, pixels."""
    seed: tuple[int, ...]


def draw(
    appearance: Appearance, generator: np.random.Generator, count: int, size: int
) -> NDArray[np.uint8]:
    """`count` images of a class, [count, size, size, 3]."""

    def each(low: float, high: float, *shape: int) -> Values:
        return generator.uniform(low, high, (count, *(shape or (1, 1)))).astype(np.float32)

    rows, columns = np.mgrid[0:size, 0:size].astype(np.float32)[:, None] / size - 0.5
    angle, pitch = each(0, 2 * np.pi), 2 * np.pi * appearance.cycles * each(0.9, 1.1)
    x, y = columns - each(-0.4, 0.4), rows - each(-0.4, 0.4)
    wave = appearance.pattern(
        (x * np.cos(angle) + y * np.sin(angle)) * pitch,
        (y * np.cos(angle) - x * np.sin(angle)) * pitch,
    )
    wave *= each(0.3, 1)
    wave += generator.standard_normal((count, size, size), np.float32) * each(0.05, 0.5)
    middle, swing = each(80, 176, 1, 1, 3), each(-75, 75, 1, 1, 3)
    return np.clip(middle + wave[..., None] * swing, 0, 255).astype(np.uint8)


def write_chunk(chunk: Chunk) -> int:
    """Draw and encode a chunk; returns how many images it wrote."""
    pixels = draw(chunk.appearance, np.random.default_rng(chunk.seed), chunk.count, chunk.size)
    for number, image in enumerate(pixels, chunk.first):
        Image.fromarray(image).save(
            chunk.folder / f"{chunk.appearance.name}_{number:06d}.jpg", quality=85
        )
    return chunk.count


def plan(folder: Path, images: int, classes: int, size: int, seed: int) -> Iterator[Chunk]:
    """The chunks of the whole set; makes their folders. The classes differ by at most one image."""
    for index, appearance in enumerate(appearances(classes)):
        of_class = images // classes + (index < images % classes)
        val = max(1, round(of_class * VAL_SHARE))
        for split_index, (split, total) in enumerate((("train", of_class - val), ("val", val))):
            target = folder / split / appearance.name
            target.mkdir(parents=True)
            for first in range(0, total, CHUNK):
                yield Chunk(
                    target,
                    appearance,
                    first,
                    min(CHUNK, total - first),
                    size,
                    (seed, split_index, index, first),
                )


def write_set(
    folder: Path,
    images: int,
    classes: int = 10,
    size: int = 96,
    seed: int = 0,
    workers: int | None = None,
) -> None:
    """Write the set.

    Args:
        folder: empty or not there yet.
        images: of all classes, training and validation together.
        classes: at least 2.
        size: side of the square images, pixels.
        seed: equal arguments give equal files, whatever `workers` is.
        workers: processes; None takes one a core.
    """
    if classes < 2 or images < 2 * classes or size < 8 or seed < 0:
        sys.exit(
            "A set needs 2 classes or more, 2 images or more in each, a size of 8 pixels or more and a seed that is not negative."
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        sys.exit(
            f"{folder} is not an empty folder: give one that is, or one that does not exist yet."
        )
    started, written, told = time.perf_counter(), 0, 0
    # A fork of a process that has threads, as a caller may, can hang.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers or available_cores(), mp_context=spawn) as pool:
        for done in as_completed(
            [pool.submit(write_chunk, chunk) for chunk in plan(folder, images, classes, size, seed)]
        ):
            written += done.result()
            if written * 10 // images > told:
                told = written * 10 // images
                print(
                    f"{written:,} of {images:,} images, {time.perf_counter() - started:.1f} s",
                    file=sys.stderr,
                    flush=True,
                )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tools.benchmarks.large_dataset",
        description="Write many small JPEGs to time training on.",
    )
    parser.add_argument("folder", metavar="DIR", type=Path, help="empty or not there yet")
    parser.add_argument(
        "--images", type=int, required=True, help="of all classes, training and validation together"
    )
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--size", type=int, default=96, help="side, pixels")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    write_set(given.folder, given.images, given.classes, given.size, given.seed)


if __name__ == "__main__":
    main()

"""Selection and generation of golden images: few, varied, and the same at every export."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

GOLDEN_COUNT = 8


def choose_golden(files: Sequence[Path], labels: Sequence[str] | None) -> list[int]:
    """Return indices of up to GOLDEN_COUNT images: classes in turn, evenly spread within each."""
    groups: dict[str, list[int]] = {}
    for index in range(len(files)):
        groups.setdefault(labels[index] if labels else "", []).append(index)
    count = min(GOLDEN_COUNT, len(files))
    per_class = -(-count // len(groups))
    spread = [
        [group[step * len(group) // per_class] for step in range(min(per_class, len(group)))]
        for group in groups.values()
    ]
    in_turn = [group[rank] for rank in range(per_class) for group in spread if rank < len(group)]
    indices = in_turn[:count]
    # Small classes leave room: fill it with the first images that are not selected yet.
    remaining = [index for index in range(len(files)) if index not in indices]
    return indices + remaining[: count - len(indices)]


def generate_images(folder: Path, count: int) -> list[Path]:
    """Write `count` PNG images of varied sizes to `folder`.

    They have what matters for resizing: edges, gradients and fine texture. They replace photos
    that are private or missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for index, image in enumerate(draw_images(count)):
        path = folder / f"generated_{index}.png"
        Image.fromarray(image).save(path)
        paths.append(path)
    return paths


def draw_images(count: int, sides: tuple[int, int] = (160, 640)) -> Iterator[NDArray[np.uint8]]:
    """Yield `count` images, uint8 [height, width, 3], with sides in the range `sides`."""
    generator = np.random.default_rng(0)
    for _ in range(count):
        height, width = (int(side) for side in generator.integers(*sides, 2))
        yield _generate_image(generator, height, width)


def _generate_image(generator: np.random.Generator, height: int, width: int) -> NDArray[np.uint8]:
    """Draw ellipses and bars with wave textures on a gradient and add faint sensor noise."""
    rows = np.arange(height, dtype=np.float32)[:, None]
    columns = np.arange(width, dtype=np.float32)
    corners = generator.uniform(20, 235, (2, 3))
    slope = (rows / height + columns / width)[..., None] / 2
    canvas: NDArray[np.float64] = corners[0] * (1 - slope) + corners[1] * slope
    for shape in range(12):
        center_row, center_column = generator.uniform(0, height), generator.uniform(0, width)
        radius_row, radius_column = generator.uniform(0.04, 0.3, 2) * (height, width)
        angle = generator.uniform(0, np.pi)
        along = (columns - center_column) * np.cos(angle) + (rows - center_row) * np.sin(angle)
        across = (rows - center_row) * np.cos(angle) - (columns - center_column) * np.sin(angle)
        if shape % 3:
            mask = (along / radius_column) ** 2 + (across / radius_row) ** 2 < 1
        else:
            mask = (np.abs(along) < radius_column) & (np.abs(across) < radius_row)
        wave = 1 + 0.3 * np.sin(along[mask] * generator.uniform(0.05, 2.5))[:, None]
        canvas[mask] = generator.uniform(0, 255, 3) * wave
    canvas += generator.normal(0, 3, canvas.shape)
    return np.clip(canvas, 0, 255).astype(np.uint8)

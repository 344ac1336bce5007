"""The inspection data set: the same part, light and camera for every class, and only the defect tells them apart."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgetl.demo.images.camera import Scene
from edgetl.demo.images.defects import SURFACE_DEFECTS, DefectFunction
from edgetl.demo.images.shapes import sample_shape
from edgetl.demo.images.surface import Surface, sample_metal
from edgetl.demo.images.textures import Plane, SeedKey
from edgetl.device.hardware.cpu import available_cores

CLASSES = ("dented", "good", "missing_hole", "scratched", "stained")
MAX_DEFECT_ATTEMPTS = 12
DEFECT_STRENGTH_RANGE = 1.8, 3.6
MIN_VISIBLE_SHARE, MIN_VISIBLE_LEVELS = 0.006, 24
"""A defect must change so much of the part's frame by so many grey levels above the noise."""


def generate_inspection_dataset(
    folder: Path, train: int = 100, val: int = 40, size: int = 192, seed: int = 0
) -> Path:
    """Write `train` and `val` JPEG images of each class, `size` pixels square, under `folder`/train/<class> and `folder`/val/<class>.

    Shape, metal, finish, belt, light, pose, blur and noise are drawn alike for every class. Every picture has a seed of its own,
    and none of val is one of train: equal arguments give equal bytes.

    Returns:
        `folder`.
    """
    wanted = []
    for label_index, label in enumerate(CLASSES):
        for split_index, (split, count) in enumerate((("train", train), ("val", val))):
            target = folder / split / label
            target.mkdir(parents=True, exist_ok=True)
            wanted += [
                (
                    label,
                    (seed, split_index, label_index, number),
                    target / f"{label}_{number:04d}.jpg",
                )
                for number in range(count)
            ]

    def draw(picture: tuple[str, SeedKey, Path]) -> None:
        label, key, path = picture
        pixels, quality = render_image(label, key, size)
        Image.fromarray(pixels).save(path, quality=quality)

    # NumPy and OpenCV let other threads run while they compute.
    with ThreadPoolExecutor(available_cores()) as pool:
        for _ in pool.map(draw, wanted):
            pass
    return folder


def render_image(
    label: str, key: SeedKey, size: int = 192, flawed: bool = True
) -> tuple[NDArray[np.uint8], int]:
    """The picture [size, size, 3] of the part that `key` stands for, and the JPEG quality that its camera writes.

    `flawed=False` gives its twin: the same part in the same light with the same noise, before the defect befell it.
    """
    generator = np.random.default_rng((*key, 0))
    shape, material = sample_shape(generator), sample_metal(generator)
    scene = Scene.sample(generator, size, shape.outline, float(material.reflectance.mean()))
    flaw = np.random.default_rng((*key, 1))
    if flawed and label == "missing_hole":
        surface = material.make_surface(shape, int(flaw.integers(len(shape.holes))))
        light = scene.shade(surface)
    else:
        surface = material.make_surface(shape)
        light = scene.shade(surface)
        if flawed and label in SURFACE_DEFECTS:
            surface, light = _apply_visible_defect(
                SURFACE_DEFECTS[label], scene, surface, light, flaw
            )
    return scene.add_sensor_noise(
        scene.expose(surface, light), np.random.default_rng((*key, 2))
    ), scene.sensor[2]


def _apply_visible_defect(
    defect: DefectFunction,
    scene: Scene,
    surface: Surface,
    light: Plane,
    generator: np.random.Generator,
) -> tuple[Surface, Plane]:
    """The surface with the defect, and its light: stronger where this camera would not see it, for a label must be true of the picture."""
    place, strength = int(generator.integers(2**31)), generator.uniform(*DEFECT_STRENGTH_RANGE)
    shot, read, _ = scene.sensor
    for attempt in range(MAX_DEFECT_ATTEMPTS):
        flawed = defect(surface, np.random.default_rng((place, attempt // 3)), strength)
        flawed_light = scene.shade(flawed)
        difference = scene.compute_level_difference(surface, light, flawed, flawed_light)
        if (
            float((difference > MIN_VISIBLE_LEVELS + 0.8 * np.hypot(shot, read)).mean())
            > MIN_VISIBLE_SHARE
        ):
            break
        strength *= 1.5
    return flawed, flawed_light

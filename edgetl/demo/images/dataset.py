"""Inspection data set of the demo. Images of all classes differ only in the defect."""

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
MIN_VISIBLE_SHARE = 0.006
"""Share of the part's frame that a defect must change visibly."""
MIN_VISIBLE_LEVELS = 24
"""Difference in grey levels, above the noise, that counts as visible."""


def generate_inspection_dataset(
    folder: Path, train: int = 100, val: int = 40, size: int = 192, seed: int = 0
) -> Path:
    """Write JPEG images to `folder`/train/<class> and `folder`/val/<class>.

    Shape, metal, finish, belt, light, pose, blur and noise have the same distribution in every
    class. Every image has its own seed, so that no image is in both splits and equal arguments
    produce equal bytes.

    Args:
        folder: folder to write to.
        train: number of training images per class.
        val: number of validation images per class.
        size: side of the images in pixels.
        seed: seed of the data set.

    Returns:
        `folder`.
    """
    jobs = []
    for label_index, label in enumerate(CLASSES):
        for split_index, (split, count) in enumerate((("train", train), ("val", val))):
            target = folder / split / label
            target.mkdir(parents=True, exist_ok=True)
            jobs += [
                (
                    label,
                    (seed, split_index, label_index, number),
                    target / f"{label}_{number:04d}.jpg",
                )
                for number in range(count)
            ]

    def write_image(job: tuple[str, SeedKey, Path]) -> None:
        label, key, path = job
        pixels, quality = render_image(label, key, size)
        Image.fromarray(pixels).save(path, quality=quality)

    # Threads suffice because NumPy and OpenCV release the GIL.
    with ThreadPoolExecutor(available_cores()) as pool:
        for _ in pool.map(write_image, jobs):
            pass
    return folder


def render_image(
    label: str, key: SeedKey, size: int = 192, with_defect: bool = True
) -> tuple[NDArray[np.uint8], int]:
    """Render the image [size, size, 3] of the part with seed `key`.

    Args:
        label: class of the image, one of CLASSES.
        key: seed of the image.
        size: side of the image in pixels.
        with_defect: False renders the same part, light and noise without the defect.

    Returns:
        The image and its JPEG quality.
    """
    generator = np.random.default_rng((*key, 0))
    shape = sample_shape(generator)
    metal = sample_metal(generator)
    scene = Scene.sample(generator, size, shape.outline, float(metal.reflectance.mean()))
    defect_generator = np.random.default_rng((*key, 1))
    if with_defect and label == "missing_hole":
        surface = metal.make_surface(shape, int(defect_generator.integers(len(shape.holes))))
        light = scene.shade(surface)
    else:
        surface = metal.make_surface(shape)
        light = scene.shade(surface)
        if with_defect and label in SURFACE_DEFECTS:
            surface, light = _apply_visible_defect(
                SURFACE_DEFECTS[label], scene, surface, light, defect_generator
            )
    levels = scene.expose(surface, light)
    pixels = scene.add_sensor_noise(levels, np.random.default_rng((*key, 2)))
    _, _, jpeg_quality = scene.sensor
    return pixels, jpeg_quality


def _apply_visible_defect(
    defect: DefectFunction,
    scene: Scene,
    surface: Surface,
    light: Plane,
    generator: np.random.Generator,
) -> tuple[Surface, Plane]:
    """Return the surface with the defect, and its light.

    The strength is increased until the defect is visible to the camera, so that the label is
    correct.
    """
    seed = int(generator.integers(2**31))
    strength = generator.uniform(*DEFECT_STRENGTH_RANGE)
    shot, read, _ = scene.sensor
    threshold = MIN_VISIBLE_LEVELS + 0.8 * np.hypot(shot, read)
    for attempt in range(MAX_DEFECT_ATTEMPTS):
        defect_surface = defect(surface, np.random.default_rng((seed, attempt // 3)), strength)
        defect_light = scene.shade(defect_surface)
        difference = scene.compute_level_difference(surface, light, defect_surface, defect_light)
        if float((difference > threshold).mean()) > MIN_VISIBLE_SHARE:
            break
        strength *= 1.5
    return defect_surface, defect_light

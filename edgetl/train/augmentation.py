"""Augmentation of training images: a function of (seed, epoch, image), whichever process computes it."""

from __future__ import annotations

import hashlib
import os
from typing import Any

# albumentations asks a package registry for newer versions when it is imported.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import albumentations as A
import numpy as np
from numpy.typing import NDArray

from edgetl.core.config import Augment
from edgetl.core.preprocessing import Preprocessing
from edgetl.device.preprocessing import resize_and_crop


class Augmentation:
    """uint8 [height, width, 3] of any size to uint8 [crop, crop, 3]."""

    def __init__(self, strength: Augment, preprocessing: Preprocessing, seed: int) -> None:
        self._preprocessing = preprocessing
        self._seed = seed
        steps = _steps(strength, preprocessing.crop)
        self._compose = A.Compose(steps) if steps else None

    def __call__(self, image: NDArray[np.uint8], epoch: int, index: int) -> NDArray[np.uint8]:
        """The view of image number `index` in `epoch`; `none` is exactly the preprocessing of evaluation."""
        if self._compose is None:
            return resize_and_crop(image, self._preprocessing)
        self._compose.set_random_seed(_seed_of(self._seed, epoch, index))
        augmented: NDArray[np.uint8] = self._compose(image=image)["image"]
        return augmented


def _seed_of(seed: int, epoch: int, index: int) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed} {epoch} {index}".encode(), digest_size=4).digest())


def _steps(strength: Augment, size: int) -> list[Any]:
    if strength == "none":
        return []
    scale = {"light": (0.5, 1.0), "medium": (0.35, 1.0), "strong": (0.2, 1.0)}[strength]
    # Area interpolation when shrinking: training sees antialiased images as evaluation does.
    steps: list[Any] = [A.RandomResizedCrop((size, size), scale=scale, area_for_downscale="image"), A.HorizontalFlip(p=0.5)]
    if strength == "light":
        return steps
    steps.append(A.ColorJitter(brightness=(0.8, 1.2), contrast=(0.8, 1.2), saturation=(0.8, 1.2), hue=(-0.03, 0.03), p=0.8))
    steps.append(A.Affine(rotate=(-15, 15), border_mode=4, p=0.5))
    if strength == "medium":
        return steps
    hole = (max(1, size // 16), max(2, size // 5))
    return [
        *steps,
        A.Perspective(scale=(0.02, 0.08), border_mode=4, p=0.3),
        A.OneOf([A.GaussianBlur(sigma_limit=(0.3, 1.5), blur_limit=0), A.GaussNoise(std_range=(0.02, 0.08))], p=0.4),
        A.ToGray(p=0.1),
        A.CoarseDropout(num_holes_range=(1, 4), hole_height_range=hole, hole_width_range=hole, p=0.4),
    ]

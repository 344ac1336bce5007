"""Augmentation of training images, as a deterministic function of (seed, view, image)."""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path
from typing import Any

# On import, albumentations checks a package registry for newer versions.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import numpy as np
from numpy.typing import NDArray

from edgetl.core.config.finetune import AugmentationStrength, FinetuneConfig
from edgetl.core.errors import ConfigError
from edgetl.core.files import sha256_file
from edgetl.core.preprocessing import Preprocessing
from edgetl.device.runtime.preprocessing import resize_and_crop
from edgetl.train.data.pipeline_file import read_pipeline


class Augmentation:
    """Augmentation of uint8 [height, width, 3] of any size to uint8 [crop, crop, 3].

    It is safe to call from several threads and processes.
    """

    def __init__(
        self,
        strength: AugmentationStrength,
        preprocessing: Preprocessing,
        seed: int,
        file: Path | None = None,
    ) -> None:
        """Build the pipeline of a strength, or the one that `A.save` wrote to `file`.

        Raises:
            ConfigError: if the file is not such a pipeline, or does not return RGB uint8 images.
        """
        self._strength: AugmentationStrength = strength
        self._preprocessing = preprocessing
        self._seed = seed
        self._file = file
        self._thread_local = threading.local()
        self.name = f"{file.name} {sha256_file(_require_file(file))}" if file else strength
        """Identity of the pipeline: its strength, or the name and SHA-256 of its file."""
        if file:
            self._validate_pipeline(file)

    def __call__(self, image: NDArray[np.uint8], view: int, index: int) -> NDArray[np.uint8]:
        """Return a view of image number `index`.

        The strength `none` gives exactly the preprocessing of evaluation.

        Raises:
            ConfigError: if a pipeline from a file fails on the image.
        """
        compose = self._thread_pipeline
        if compose is None:
            return resize_and_crop(image, self._preprocessing)
        compose.set_random_seed(self.view_seed(view, index))
        try:
            augmented: NDArray[np.uint8] = compose(image=image)["image"]
        except Exception as cause:
            if self._file is None:
                raise
            size = " x ".join(map(str, image.shape[:2]))
            raise ConfigError(
                f"{{augment}} {self._file}: the pipeline fails on an image of {size} pixels: {cause}.",
                FinetuneConfig,
            ) from cause
        if augmented.shape[:2] != (self._preprocessing.crop,) * 2:
            return resize_and_crop(augmented, self._preprocessing)
        return augmented

    @property
    def strength(self) -> AugmentationStrength | None:
        """Strength of a built-in pipeline; None for a pipeline from a file."""
        return None if self._file else self._strength

    def view_seed(self, view: int, index: int) -> int:
        """Return the seed of a view, in [0, 2^32)."""
        return _derive_seed(self._seed, view, index)

    def build_pipeline(self) -> Any:
        """Build a new albumentations pipeline of this strength, for one thread; None for `none`."""
        if self._file:
            return _load_pipeline(self._file)
        return _build_pipeline(self._strength, self._preprocessing.crop)

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name != "_thread_local"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state, _thread_local=threading.local())

    @property
    def _thread_pipeline(self) -> Any:
        # Seeding changes the pipeline, so each thread needs its own.
        if not hasattr(self._thread_local, "compose"):
            self._thread_local.compose = self.build_pipeline()
        return self._thread_local.compose

    def _validate_pipeline(self, file: Path) -> None:
        gradient = np.linspace(0, 255, 96 * 128 * 3).reshape(96, 128, 3).astype(np.uint8)
        try:
            augmented = self._thread_pipeline(image=gradient)["image"]
        except ConfigError:
            raise
        except Exception as cause:  # transforms may raise anything
            raise ConfigError(
                f"{{augment}} {file}: the pipeline fails on an image of 96 x 128 pixels: {cause}.",
                FinetuneConfig,
            ) from cause
        if (
            not isinstance(augmented, np.ndarray)
            or augmented.dtype != np.uint8
            or augmented.ndim != 3
            or augmented.shape[2] != 3
        ):
            raise ConfigError(
                f"{{augment}} {file}: the pipeline must return RGB images of type uint8. "
                "Remove Normalize and ToTensorV2: edgetl normalizes the images itself.",
                FinetuneConfig,
            )


def _require_file(file: Path) -> Path:
    if not file.is_file():
        raise ConfigError(
            f"{{augment}} {file}: file not found. "
            "Use none, light, medium, strong or a pipeline saved with albumentations' A.save.",
            FinetuneConfig,
        )
    return file


def _load_pipeline(file: Path) -> Any:
    content = read_pipeline(file)
    A = _import_albumentations()  # noqa: N806
    try:
        return A.from_dict(content)
    except Exception as cause:  # constructors of transforms may raise anything
        raise ConfigError(
            f"{{augment}} {file} is not a pipeline of albumentations {A.__version__}: {cause}.",
            FinetuneConfig,
        ) from cause


def _derive_seed(seed: int, view: int, index: int) -> int:
    return int.from_bytes(
        hashlib.blake2b(f"{seed} {view} {index}".encode(), digest_size=4).digest()
    )


def _import_albumentations() -> Any:
    # Imported here because it takes half a second, and runs with cached features do not need it.
    import albumentations
    import cv2

    # Views are computed in parallel already, so OpenCV's own threads would only compete.
    cv2.setNumThreads(1)
    return albumentations


def _build_pipeline(strength: AugmentationStrength, size: int) -> Any:
    if strength == "none":
        return None
    A = _import_albumentations()  # noqa: N806
    scale = {"light": (0.5, 1.0), "medium": (0.35, 1.0), "strong": (0.2, 1.0)}[strength]
    # Area interpolation when shrinking: training images are antialiased like those of evaluation.
    steps: list[Any] = [
        A.RandomResizedCrop((size, size), scale=scale, area_for_downscale="image"),
        A.HorizontalFlip(p=0.5),
    ]
    if strength == "light":
        return A.Compose(steps)
    steps.append(
        A.ColorJitter(
            brightness=(0.8, 1.2),
            contrast=(0.8, 1.2),
            saturation=(0.8, 1.2),
            hue=(-0.03, 0.03),
            p=0.8,
        )
    )
    steps.append(A.Affine(rotate=(-15, 15), border_mode=4, p=0.5))
    if strength == "medium":
        return A.Compose(steps)
    hole = (max(1, size // 16), max(2, size // 5))
    steps += [
        A.Perspective(scale=(0.02, 0.08), border_mode=4, p=0.3),
        A.OneOf(
            [
                A.GaussianBlur(sigma_limit=(0.3, 1.5), blur_limit=0),
                A.GaussNoise(std_range=(0.02, 0.08)),
            ],
            p=0.4,
        ),
        A.ToGray(p=0.1),
        A.CoarseDropout(
            num_holes_range=(1, 4), hole_height_range=hole, hole_width_range=hole, p=0.4
        ),
    ]
    return A.Compose(steps)

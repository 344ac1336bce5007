"""Training images for quantization: one part for calibration, another for scoring."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgetl.core.config.export import ExportConfig
from edgetl.core.errors import ExportError
from edgetl.core.preprocessing import Preprocessing
from edgetl.device.runtime.images import load_image
from edgetl.device.runtime.preprocessing import normalize, resize_and_crop

MAX_CALIBRATION_IMAGES, MAX_HELD_OUT_IMAGES, MIN_QUANTIZATION_IMAGES = 300, 200, 20
_HELD_OUT_SHARE = 0.4
_BATCH = 16


@dataclass(frozen=True)
class CroppedImages:
    """Images after the evaluation preprocessing, before normalization."""

    pixels: NDArray[np.uint8]
    """Crops, [images, S, S, 3]."""
    labels: NDArray[np.int64] | None
    """Class indices, [images]; None without labels."""
    preprocessing: Preprocessing

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.pixels)

    def batches(self, size: int = _BATCH) -> Iterator[NDArray[np.float32]]:
        """Yield network inputs, float32 [at most size, 3, S, S]."""
        for start in range(0, len(self), size):
            yield normalize(self.pixels[start : start + size], self.preprocessing)

    def take(self, count: int) -> CroppedImages:
        """Return the first `count` images, or all if there are fewer."""
        return CroppedImages(
            self.pixels[:count],
            None if self.labels is None else self.labels[:count],
            self.preprocessing,
        )


@dataclass(frozen=True)
class QuantizationImages:
    """Two disjoint subsets of the training images."""

    calibration: CroppedImages
    held_out: CroppedImages
    """Images for scoring candidates."""


def load_quantization_images(
    files: Sequence[Path],
    labels: Sequence[int] | None,
    preprocessing: Preprocessing,
    kind: str,
) -> QuantizationImages:
    """Split and decode the images, stratified by class; equal arguments give equal subsets.

    Args:
        files: training images.
        labels: class index of each file; None without labels.
        preprocessing: the evaluation preprocessing.
        kind: source of the files, for the error message.

    Raises:
        ExportError: there are too few images.
        DecodeError: an image cannot be read.
    """
    check_image_count(len(files), kind)
    order = stratified_order(labels or [0] * len(files))
    held_out = min(MAX_HELD_OUT_IMAGES, int(len(files) * _HELD_OUT_SHARE))
    split = len(files) - held_out
    return QuantizationImages(
        load_cropped_images(order[:split][:MAX_CALIBRATION_IMAGES], files, labels, preprocessing),
        load_cropped_images(order[split:], files, labels, preprocessing),
    )


def check_image_count(images: int, kind: str) -> None:
    """Check the number of images for quantization.

    Raises:
        ExportError: there are too few images.
    """
    if images < MIN_QUANTIZATION_IMAGES:
        raise ExportError(
            f"int8 and fp16 need at least {MIN_QUANTIZATION_IMAGES} images for calibration and scoring, "
            f"got {images} ({kind}). Add images, or remove int8 and fp16 from {{variants}} and leave "
            "out {split}.",
            ExportConfig,
        )


def stratified_order(labels: Sequence[int]) -> list[int]:
    """Return all indices in an order that spreads each class evenly over the sequence."""
    generator = np.random.default_rng(0)
    counts = np.bincount(np.asarray(labels))
    positions = np.empty(len(labels))
    for label, count in enumerate(counts):
        members = generator.permutation(np.flatnonzero(np.asarray(labels) == label))
        positions[members] = (np.arange(count) + generator.random()) / max(1, count)
    return [int(index) for index in np.argsort(positions, kind="stable")]


def load_cropped_images(
    indices: Sequence[int],
    files: Sequence[Path],
    labels: Sequence[int] | None,
    preprocessing: Preprocessing,
) -> CroppedImages:
    """Decode and crop the images at `indices` of `files`; `labels` are the class indices of all.

    Raises:
        DecodeError: an image cannot be read.
    """
    crops = [resize_and_crop(load_image(files[index]), preprocessing) for index in indices]
    selected_labels = None
    if labels is not None:
        selected_labels = np.array([labels[index] for index in indices], np.int64)
    return CroppedImages(np.stack(crops), selected_labels, preprocessing)

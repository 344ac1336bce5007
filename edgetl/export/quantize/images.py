"""The images that quantization looks at: some to calibrate, others to score, all of them training images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgetl.core.errors import ExportError
from edgetl.core.preprocessing import Preprocessing
from edgetl.device.runtime.images import load_image
from edgetl.device.runtime.preprocessing import normalize, resize_and_crop

MAX_CALIBRATION_IMAGES, MAX_HELD_OUT_IMAGES, MIN_QUANTIZATION_IMAGES = 300, 200, 20
_HELD_OUT_SHARE = 0.4
_BATCH = 16


@dataclass(frozen=True)
class CroppedImages:
    """Images after the evaluation preprocessing, up to normalisation."""

    pixels: NDArray[np.uint8]
    """[images, S, S, 3]."""
    labels: NDArray[np.int64] | None
    """[images], where labels are known."""
    preprocessing: Preprocessing

    def __len__(self) -> int:
        """Images."""
        return len(self.pixels)

    def batches(self, size: int = _BATCH) -> Iterator[NDArray[np.float32]]:
        """The network's inputs: float32 [at most size, 3, S, S]."""
        for start in range(0, len(self), size):
            yield normalize(self.pixels[start : start + size], self.preprocessing)

    def take(self, count: int) -> CroppedImages:
        """At most so many of them."""
        return CroppedImages(
            self.pixels[:count],
            None if self.labels is None else self.labels[:count],
            self.preprocessing,
        )


@dataclass(frozen=True)
class QuantizationImages:
    """Two disjoint parts of the training images."""

    calibration: CroppedImages
    held_out: CroppedImages
    """Candidates are scored on these."""


def load_quantization_images(
    files: Sequence[Path],
    labels: Sequence[int] | None,
    contract: Preprocessing,
    kind: str,
    seed: int = 0,
) -> QuantizationImages:
    """Choose and decode; every class has its share in both parts, and equal arguments give equal parts.

    Args:
        kind: where the files come from, for the message.

    Raises:
        ExportError: too few images.
        DecodeError: one cannot be read.
    """
    check_image_count(len(files), kind)
    order = _stratified_order(labels or [0] * len(files), seed)
    held_back = min(MAX_HELD_OUT_IMAGES, int(len(files) * _HELD_OUT_SHARE))
    # Two ends of one sequence in which the classes take turns.
    return QuantizationImages(
        _load_cropped_images(
            order[: len(files) - held_back][:MAX_CALIBRATION_IMAGES], files, labels, contract
        ),
        _load_cropped_images(order[len(files) - held_back :], files, labels, contract),
    )


def check_image_count(images: int, kind: str) -> None:
    """Raise ExportError when there are too few images to quantize by."""
    if images < MIN_QUANTIZATION_IMAGES:
        raise ExportError(
            f"int8 and fp16 need at least {MIN_QUANTIZATION_IMAGES} images to calibrate and to score on, and there are {images} ({kind}). "
            "Add images, or leave them out of --variants."
        )


def _stratified_order(labels: Sequence[int], seed: int) -> list[int]:
    """All indices, each class spread evenly over the whole sequence."""
    generator = np.random.default_rng(seed)
    counts = np.bincount(np.asarray(labels))
    place = np.empty(len(labels))
    for label, count in enumerate(counts):
        members = generator.permutation(np.flatnonzero(np.asarray(labels) == label))
        place[members] = (np.arange(count) + generator.random()) / max(1, count)
    return [int(index) for index in np.argsort(place, kind="stable")]


def _load_cropped_images(
    chosen: Sequence[int],
    files: Sequence[Path],
    labels: Sequence[int] | None,
    contract: Preprocessing,
) -> CroppedImages:
    pixels = np.stack([resize_and_crop(load_image(files[index]), contract) for index in chosen])
    return CroppedImages(
        pixels,
        None if labels is None else np.array([labels[index] for index in chosen], np.int64),
        contract,
    )

"""One file at a time: decoded, described, hashed; memory does not grow with the images."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from edgetl.core.errors import DecodeError
from edgetl.device.hardware.cpu import available_cores
from edgetl.device.runtime.images import load_image, open_image
from edgetl.train.data.folders import LabeledFile, RejectedFile
from edgetl.train.data.scan import pixels_digest, read_bytes

THUMBNAIL_SIDE = 16
"""Side of the grey thumbnail that confirms a likeness."""
_MAX_PIXELS = 178_956_970
"""Declared pixels above which Pillow takes a file for a decompression bomb."""


@dataclass(frozen=True)
class InspectedFile:
    """A file that decodes."""

    file: LabeledFile
    width: int
    height: int
    mode: str
    """Pillow's, as it is stored."""
    format: str
    orientation: int
    """EXIF's; 1 is upright."""
    is_animated: bool
    pixels_sha256: str
    """SHA-256 of the decoded pixels and their shape, as `edgetl finetune` computes it."""
    perceptual_hash: int
    """64 bits (Zauner, 2010): few differ between pictures that look alike."""
    thumbnail: NDArray[np.uint8]
    """Grey [16, 16]."""


def inspect_files(
    files: Sequence[LabeledFile], report: Callable[[int, int], None]
) -> tuple[list[InspectedFile], list[RejectedFile]]:
    """Decode all files on all cores.

    Args:
        report: called with (files done, files in all).
    """
    examined: list[InspectedFile] = []
    rejected: list[RejectedFile] = []
    # load_image silences warnings, and the threads would restore each other's filters; this restores the right ones.
    with warnings.catch_warnings(), ThreadPoolExecutor(available_cores()) as pool:
        warnings.simplefilter("ignore")
        for done, outcome in enumerate(pool.map(_inspect_file, files), 1):
            (rejected if isinstance(outcome, RejectedFile) else examined).append(outcome)  # type: ignore[arg-type]
            report(done, len(files))
    return examined, rejected


def _inspect_file(file: LabeledFile) -> InspectedFile | RejectedFile:
    encoded = read_bytes(file.path)
    if isinstance(encoded, RejectedFile):
        return encoded
    try:
        header = _header(encoded)
        pixels = load_image(encoded)
    except DecodeError as cause:
        return RejectedFile(file.path, str(cause).removeprefix("the image: "))
    grey = Image.fromarray(pixels).convert("L")
    small = grey.resize((32, 32), Image.Resampling.BOX)
    return InspectedFile(
        file,
        *header,
        pixels_sha256=pixels_digest(pixels),
        perceptual_hash=int(str(imagehash.phash(small)), 16),
        thumbnail=np.asarray(small.resize((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.BOX)),
    )


def _header(encoded: bytes) -> tuple[int, int, str, str, int, bool]:
    try:
        with open_image(encoded) as image:
            if image.width * image.height > _MAX_PIXELS:
                raise DecodeError(
                    f"declares {image.width} x {image.height} pixels, which no photo has: a decompression bomb."
                )
            try:
                orientation = int(image.getexif().get(ExifTags.Base.Orientation, 1))
            except (
                Exception
            ):  # an EXIF block too broken to read says nothing about orientation either
                orientation = 1
            return (
                image.width,
                image.height,
                image.mode,
                image.format or "",
                orientation,
                bool(getattr(image, "is_animated", False)),
            )
    except Image.DecompressionBombError as cause:
        raise DecodeError(
            "declares more pixels than any photo has: a decompression bomb."
        ) from cause
    except DecodeError:
        raise
    except Exception:
        # load_image tells what is wrong with it.
        return 0, 0, "", "", 1, False

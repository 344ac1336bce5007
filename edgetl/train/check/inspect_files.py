"""Inspection of image files: decode, describe and hash one at a time, in constant memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from edgetl.core.errors import DecodeError
from edgetl.core.progress import ProgressCallback
from edgetl.device.runtime.images import load_image, open_image
from edgetl.train.data.folders import LabeledFile, RejectedFile
from edgetl.train.data.scan import decode_files, pixels_digest, read_bytes

THUMBNAIL_SIDE = 16
"""Side of the grayscale thumbnail that confirms a near duplicate."""
_MAX_PIXELS = 178_956_970
"""Declared pixels above which Pillow treats a file as a decompression bomb."""


@dataclass(frozen=True)
class InspectedFile:
    """Image file that can be decoded, with its properties."""

    file: LabeledFile
    width: int
    height: int
    mode: str
    """Pillow's mode of the stored image."""
    format: str
    orientation: int
    """EXIF orientation; 1 is upright."""
    is_animated: bool
    pixels_sha256: str
    """SHA-256 of the decoded pixels and their shape, as `edgetl finetune` computes it."""
    perceptual_hash: int
    """64 bits (Zauner, 2010), of which few differ between similar images."""
    thumbnail: NDArray[np.uint8]
    """Grayscale uint8 [16, 16]."""


def inspect_files(
    files: Sequence[LabeledFile], progress: ProgressCallback
) -> tuple[list[InspectedFile], list[RejectedFile]]:
    """Decode and describe all files.

    Args:
        files: the files.
        progress: called after each file.

    Returns:
        The readable images, and the other files with the reason.
    """
    return decode_files(files, _inspect_file, progress, "Decoding images")


def _inspect_file(file: LabeledFile) -> InspectedFile | RejectedFile:
    encoded = read_bytes(file.path)
    if isinstance(encoded, RejectedFile):
        return encoded
    try:
        header = _read_header(encoded)
        pixels = load_image(encoded)
    except DecodeError as cause:
        return RejectedFile(file.path, str(cause).removeprefix("the image: "))
    grayscale = Image.fromarray(pixels).convert("L")
    small = grayscale.resize((32, 32), Image.Resampling.BOX)
    return InspectedFile(
        file,
        *header,
        pixels_sha256=pixels_digest(pixels),
        perceptual_hash=int(str(imagehash.phash(small)), 16),
        thumbnail=np.asarray(small.resize((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.BOX)),
    )


def _read_header(encoded: bytes) -> tuple[int, int, str, str, int, bool]:
    try:
        with open_image(encoded) as image:
            if image.width * image.height > _MAX_PIXELS:
                raise DecodeError(
                    f"declares {image.width} x {image.height} pixels, more than any photo: "
                    "a decompression bomb."
                )
            try:
                orientation = int(image.getexif().get(ExifTags.Base.Orientation, 1))
            except Exception:  # invalid EXIF block
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
        raise DecodeError("declares more pixels than any photo: a decompression bomb.") from cause
    except DecodeError:
        raise
    except Exception:
        # load_image raises an error with a message.
        return 0, 0, "", "", 1, False

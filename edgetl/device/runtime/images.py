"""Decode images in the same way in training and on the device: upright, RGB, uint8, opaque.

- EXIF orientation is applied.
- Transparency is composed onto white.
- 16-bit grey keeps its high byte (Pillow's own conversion would clip to white); CMYK, palette and
  grey become RGB.
- Only the first frame is read.
"""

from __future__ import annotations

import contextlib
import io
import os
import warnings
from functools import cache
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, ImageOps, UnidentifiedImageError

from edgetl.core.errors import DataError, DecodeError
from edgetl.core.files import read_regular_file
from edgetl.core.paths import StrPath

IMAGE_SUFFIXES = frozenset(
    {
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".mpo",
        ".png",
        ".bmp",
        ".gif",
        ".webp",
        ".avif",
        ".jp2",
        ".tif",
        ".tiff",
        ".tga",
    }
    | {".ppm", ".pgm", ".pbm", ".pnm"}
)
"""File suffixes of images, in lower case."""
IMAGE_FORMATS = (
    "JPEG",
    "MPO",
    "PNG",
    "WEBP",
    "BMP",
    "GIF",
    "TIFF",
    "AVIF",
    "JPEG2000",
    "TGA",
    "PPM",
)
"""Pillow's names of the formats that are decoded, the most frequent first.

Other formats are rejected for any suffix: Pillow passes EPS to Ghostscript, which runs programs.
"""
_IGNORED_NAMES = frozenset({"thumbs.db", "desktop.ini", "__macosx"})
MAX_ASPECT_RATIO = 100
"""Largest ratio of the longer to the shorter side.

The shorter side is resized to a fixed length, and the longer one grows with it: an image of
1 x 20000 pixels would take 5 GB.
"""
MAX_FILE_BYTES = 256 * 2**20
"""Size limit of an image file, larger than any photo."""


def list_images(folder: Path) -> list[Path]:
    """Return the sorted files with an image suffix in a folder and its subfolders.

    Raises:
        DataError: a folder cannot be read.
    """
    return sorted(
        path
        for path in walk_files(folder)
        if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()
    )


def walk_files(folder: Path) -> list[Path]:
    """Return the files in a folder and its subfolders; links are followed.

    Hidden files and those of operating systems are skipped, such as `._photo.jpg`.

    Raises:
        DataError: a folder cannot be read.
    """
    paths: list[Path] = []
    visited: set[str] = set()
    for parent, folders, names in os.walk(
        folder, followlinks=True, onerror=raise_unreadable_folder
    ):
        real_path = os.path.realpath(parent)
        if real_path in visited:  # a symbolic link to a parent folder
            folders.clear()
            continue
        visited.add(real_path)
        folders[:] = [name for name in folders if not is_ignored_name(name)]
        paths += [Path(parent, name) for name in names if not is_ignored_name(name)]
    return paths


def is_ignored_name(name: str) -> bool:
    """Return whether a file or folder is hidden or belongs to an operating system."""
    return name.startswith(".") or name.lower() in _IGNORED_NAMES


def raise_unreadable_folder(cause: OSError) -> NoReturn:
    """Raise DataError for a folder that cannot be listed, which `os.walk` would skip silently."""
    raise DataError(
        f"Cannot read the folder {cause.filename} ({cause.strerror or cause}). "
        "Make it readable, or move it out of the data."
    ) from cause


def load_image(source: StrPath | bytes, min_side: int | None = None) -> NDArray[np.uint8]:
    """Decode a file or its bytes to RGB, uint8 [height, width, 3].

    Args:
        source: an image file or its bytes.
        min_side: lets the JPEG decoder scale by 1/2, 1/4 or 1/8 in the frequency domain as long as
            the shorter side keeps this many pixels. For training images only, because the pixels
            differ slightly from those of a full decode.

    Raises:
        DecodeError: the file is missing, empty, truncated or not an image.
    """
    name = "the image" if isinstance(source, bytes) else str(source)
    try:
        encoded = source if isinstance(source, bytes) else read_image_file(Path(source))
    except DecodeError as cause:
        raise DecodeError(f"{name}: {cause}") from cause
    if not encoded:
        raise DecodeError(f"{name}: the file is empty (0 bytes).")
    if encoded.startswith(b"version https://git-lfs"):
        raise DecodeError(
            f"{name}: a Git LFS pointer, not the image itself; `git lfs pull` fetches it."
        )
    # Truncated files must fail on every machine, even if other code in this process accepts them.
    accepts_truncated = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        with warnings.catch_warnings():
            # Malformed EXIF and MPO headers do not affect the pixels.
            warnings.simplefilter("ignore")
            with open_image(encoded) as image:
                if min_side is not None:
                    _draft(image, min_side)
                image.load()
                return np.array(_to_upright_rgb(image))
    except DecodeError as cause:
        raise DecodeError(f"{name}: {cause}") from cause
    except UnidentifiedImageError as cause:
        raise DecodeError(f"{name}: cannot be decoded (not a known image format).") from cause
    except Exception as cause:
        # Decoders raise OSError, SyntaxError, ValueError, struct.error and more on broken files.
        detail = str(cause) or type(cause).__name__
        raise DecodeError(f"{name}: cannot be decoded ({detail}).") from cause
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = accepts_truncated


def read_image_file(path: Path) -> bytes:
    """Read a regular file of at most MAX_FILE_BYTES.

    Raises:
        DecodeError: the file is missing, unreadable, larger, or a pipe, device or folder. The
            message does not contain its name.
    """
    try:
        return read_regular_file(path, MAX_FILE_BYTES)
    except OSError as cause:
        raise DecodeError(f"cannot be read ({cause.strerror or cause}).") from cause
    except ValueError as cause:  # a null character in the name
        raise DecodeError(f"cannot be read ({cause}).") from cause


def open_image(encoded: bytes) -> Image.Image:
    """Open an encoded image in one of IMAGE_FORMATS without decoding its pixels.

    Raises:
        PIL.UnidentifiedImageError: the bytes are in none of the formats.
        DecodeError: the longer side is more than MAX_ASPECT_RATIO times the shorter.
        Exception: what Pillow's decoders raise on broken headers.
    """
    image = Image.open(io.BytesIO(encoded), formats=_installed_formats())
    shorter, longer = sorted(image.size)
    if longer > MAX_ASPECT_RATIO * shorter:
        image.close()
        raise DecodeError(
            f"{image.width} x {image.height} pixels: "
            f"the longer side is more than {MAX_ASPECT_RATIO} times the shorter."
        )
    return image


@cache
def _installed_formats() -> tuple[str, ...]:
    # Pillow raises a KeyError for formats that it was built without.
    Image.init()
    return tuple(name for name in IMAGE_FORMATS if name in Image.OPEN)


def _draft(image: Image.Image, min_side: int) -> None:
    """Let the JPEG decoder scale the image down, to at least `min_side` pixels."""
    shorter = min(image.size)
    if shorter >= 2 * min_side:
        size = (image.width * min_side // shorter, image.height * min_side // shorter)
        image.draft(None, size)


def _to_upright_rgb(image: Image.Image) -> Image.Image:
    # Transposing copies the pixels even if there is nothing to rotate, and a copy takes a tenth of
    # the decoding time. A malformed EXIF block is ignored: it has no orientation either.
    with contextlib.suppress(Exception):
        if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
            image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "I":
        pixels = np.asarray(image)
        if pixels.min() < 0 or pixels.max() > 0xFFFF:
            raise DecodeError("32-bit grey has no defined range; save it with 8 or 16 bits.")
        return Image.fromarray((pixels >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise DecodeError(
            "floating-point pixels have no defined range; save the image with 8 or 16 bits."
        )
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")

"""Scan of a data set: decode every image once to find unreadable files and duplicates."""

from __future__ import annotations

import contextlib
import hashlib
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import PIL
from numpy.typing import NDArray

from edgetl.core.cache import get_cache_folder, read_cache_entry, write_cache_entry
from edgetl.core.errors import DecodeError
from edgetl.core.progress import ProgressCallback
from edgetl.core.typed_json import parse_as
from edgetl.device.hardware.cpu import available_cores
from edgetl.device.runtime.images import load_image, read_image_file
from edgetl.train.data.decoded_cache import DecodedImageCache
from edgetl.train.data.folders import LabeledFile, RejectedFile

T = TypeVar("T")
_CACHE_VERSION = f"1 Pillow {PIL.__version__}"
"""Version of the cache's entries; entries of another version are ignored."""


@dataclass(frozen=True)
class ScannedFile:
    """File that can be decoded, with its hashes."""

    file: LabeledFile
    pixels_sha256: str
    """SHA-256 of the decoded pixels and their shape: equal for duplicates in any encoding."""
    sha256: str
    """SHA-256 of the file."""


def scan_files(
    files: list[LabeledFile], progress: ProgressCallback, decoded_cache: DecodedImageCache
) -> tuple[list[ScannedFile], list[RejectedFile]]:
    """Decode and hash all files.

    Files that an earlier run has decoded, by their SHA-256, are not decoded again.

    Args:
        files: the files.
        progress: called after each file.
        decoded_cache: receives the decoded images.

    Returns:
        The files that can be decoded, and the others with the reason.
    """
    cache = _ScanCache(files)
    images, rejected = decode_files(
        files, lambda file: _scan_file(file, cache, decoded_cache), progress, "checking images"
    )
    cache.save(images)
    return images, rejected


def decode_files(
    files: Sequence[LabeledFile],
    decode: Callable[[LabeledFile], T | RejectedFile],
    progress: ProgressCallback,
    step: str,
) -> tuple[list[T], list[RejectedFile]]:
    """Apply `decode` to all files on all cores (Pillow releases the GIL).

    Args:
        files: the files.
        decode: returns the decoded file, or the reason why it cannot be decoded.
        progress: called after each file.
        step: name of the step for `progress`.

    Returns:
        The files that can be decoded, and the others with the reason.
    """
    decoded: list[T] = []
    rejected: list[RejectedFile] = []
    # load_image changes the warning filters in every thread; this restores the original ones.
    with warnings.catch_warnings(), ThreadPoolExecutor(available_cores()) as pool:
        for done, result in enumerate(pool.map(decode, files), 1):
            if isinstance(result, RejectedFile):
                rejected.append(result)
            else:
                decoded.append(result)
            progress(step, done, len(files))
    return decoded, rejected


def read_bytes(path: Path) -> bytes | RejectedFile:
    """Return the bytes of a file, or the reason why it cannot be read."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return RejectedFile(
            path,
            "the file's name is not valid UTF-8 and cannot be written to split.csv; rename the file.",
        )
    try:
        return read_image_file(path)
    except DecodeError as cause:
        return RejectedFile(path, str(cause))


def _scan_file(
    file: LabeledFile, cache: _ScanCache, decoded_cache: DecodedImageCache
) -> ScannedFile | RejectedFile:
    path = file.path
    encoded = read_bytes(path)
    if isinstance(encoded, RejectedFile):
        return encoded
    digest = hashlib.sha256(encoded).hexdigest()
    if digest in cache.pixel_digests:
        return ScannedFile(file, cache.pixel_digests[digest], digest)
    try:
        pixels = load_image(encoded)
    except DecodeError as cause:
        return RejectedFile(path, str(cause).removeprefix("the image: "))
    decoded_cache.add_full_decode(path, pixels)
    return ScannedFile(file, pixels_digest(pixels), digest)


def pixels_digest(pixels: NDArray[np.uint8]) -> str:
    """Return the SHA-256 of an image's shape and pixels.

    The pixels are not copied, since an image may take half a gigabyte.
    """
    digest = hashlib.sha256(str(pixels.shape).encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


class _ScanCache:
    # One file per data folder, so that users and folders do not share a growing file.
    def __init__(self, files: list[LabeledFile]) -> None:
        folder = str(files[0].path.parents[1]) if files else ""
        name = hashlib.sha256(folder.encode()).hexdigest()[:32]
        self._path = get_cache_folder() / "images" / f"{name}.json"
        self.pixel_digests: dict[str, str] = {}
        entry = read_cache_entry(self._path)
        if entry is not None and entry["definition"] == _CACHE_VERSION:
            self.pixel_digests = parse_as(dict[str, str], entry["pixels"], "pixels")

    def save(self, images: list[ScannedFile]) -> None:
        pixels = {image.sha256: image.pixels_sha256 for image in images}
        if pixels != self.pixel_digests:
            # Without a writable cache every run decodes the images again.
            with contextlib.suppress(OSError):
                write_cache_entry(self._path, {"definition": _CACHE_VERSION, "pixels": pixels})

"""Every image decoded once before training: what cannot be read is known, and so is which images are the same."""

from __future__ import annotations

import contextlib
import hashlib
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL
from numpy.typing import NDArray

from edgetl.core.cache import get_cache_folder, read_cache_entry, write_cache_entry
from edgetl.core.errors import DecodeError
from edgetl.device.hardware.cpu import available_cores
from edgetl.device.runtime.images import load_image, read_image_file
from edgetl.train.data.decoded_cache import DecodedImageCache
from edgetl.train.data.folders import LabeledFile, RejectedFile

_CACHE_VERSION = f"1 Pillow {PIL.__version__}"
"""Of an image; what was known under another one is looked at again."""


@dataclass(frozen=True)
class ScannedFile:
    """A file that decodes."""

    file: LabeledFile
    pixels_sha256: str
    """SHA-256 of the decoded pixels and their shape: equal for exact duplicates, whatever the encoding."""
    sha256: str
    """Of the file."""


def scan_files(
    files: list[LabeledFile], report: Callable[[int, int], None], decoded: DecodedImageCache
) -> tuple[list[ScannedFile], list[RejectedFile]]:
    """Decode all files on all cores (Pillow releases the interpreter's lock); files that fail are returned with the reason.

    Files that an earlier run has decoded, by their hashes, are not decoded again; the others are offered to `decoded`.
    """
    known = _ScanCache(files)
    read: list[ScannedFile] = []
    rejected: list[RejectedFile] = []

    def read_one(file: LabeledFile) -> ScannedFile | RejectedFile:
        return _scan_file(file, known, decoded)

    # load_image silences warnings, and the threads would restore each other's filters; this restores the right ones.
    with warnings.catch_warnings(), ThreadPoolExecutor(available_cores()) as pool:
        for done, outcome in enumerate(pool.map(read_one, files), 1):
            if isinstance(outcome, RejectedFile):
                rejected.append(outcome)
            else:
                read.append(outcome)
            report(done, len(files))
    known.save(read)
    return read, rejected


def read_bytes(path: Path) -> bytes | RejectedFile:
    """A file's bytes, or why there are none."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return RejectedFile(
            path,
            "the file's name is not valid UTF-8, so split.csv could not name it; rename the file.",
        )
    try:
        return read_image_file(path)
    except DecodeError as cause:
        return RejectedFile(path, str(cause))


def _scan_file(
    file: LabeledFile, known: _ScanCache, decoded: DecodedImageCache
) -> ScannedFile | RejectedFile:
    path = file.path
    encoded = read_bytes(path)
    if isinstance(encoded, RejectedFile):
        return encoded
    digest = hashlib.sha256(encoded).hexdigest()
    if digest in known.pixel_digests:
        return ScannedFile(file, known.pixel_digests[digest], digest)
    try:
        pixels = load_image(encoded)
    except DecodeError as cause:
        return RejectedFile(path, str(cause).removeprefix("the image: "))
    decoded.add_full_decode(path, pixels)
    return ScannedFile(file, pixels_digest(pixels), digest)


def pixels_digest(pixels: NDArray[np.uint8]) -> str:
    """SHA-256 of an image's shape and pixels, without a copy of them: an image may be half a gigabyte."""
    digest = hashlib.sha256(str(pixels.shape).encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


class _ScanCache:
    # A file for each data folder: many folders of many users must not meet in one.
    def __init__(self, files: list[LabeledFile]) -> None:
        folder = str(files[0].path.parents[1]) if files else ""
        self._path = (
            get_cache_folder()
            / "images"
            / f"{hashlib.sha256(folder.encode()).hexdigest()[:32]}.json"
        )
        self.pixel_digests: dict[str, str] = {}
        entry = read_cache_entry(self._path)
        if entry is not None and entry["definition"] == _CACHE_VERSION:
            self.pixel_digests = entry["pixels"]

    def save(self, read: list[ScannedFile]) -> None:
        pixels = {one.sha256: one.pixels_sha256 for one in read}
        if pixels != self.pixel_digests:
            with contextlib.suppress(
                OSError
            ):  # a home that cannot be written costs the decoding of each run, no more
                write_cache_entry(self._path, {"definition": _CACHE_VERSION, "pixels": pixels})

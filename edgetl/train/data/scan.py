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

from edgetl.core.cache import cache_folder, read_entry, write_entry
from edgetl.core.errors import DecodeError
from edgetl.device.hardware.cpu import available_cores
from edgetl.device.runtime.images import load_image, read_image_file
from edgetl.train.data.decoded_cache import DecodedImages
from edgetl.train.data.folders import LabelledFile, Rejected

_DEFINITION = f"1 Pillow {PIL.__version__}"
"""Of an image; what was known under another one is looked at again."""


@dataclass(frozen=True)
class ReadFile:
    """A file that decodes."""

    file: LabelledFile
    pixels: str
    """SHA-256 of the decoded pixels and their shape: equal for exact duplicates, whatever the encoding."""
    sha256: str
    """Of the file."""


def read_files(
    files: list[LabelledFile], report: Callable[[int, int], None], decoded: DecodedImages
) -> tuple[list[ReadFile], list[Rejected]]:
    """Decode all files on all cores (Pillow releases the interpreter's lock); files that fail are returned with the reason.

    Files that an earlier run has decoded, by their hashes, are not decoded again; the others are offered to `decoded`.
    """
    known = _KnownFiles(files)
    read: list[ReadFile] = []
    rejected: list[Rejected] = []

    def read_one(file: LabelledFile) -> ReadFile | Rejected:
        return _read(file, known, decoded)

    # load_image silences warnings, and the threads would restore each other's filters; this restores the right ones.
    with warnings.catch_warnings(), ThreadPoolExecutor(available_cores()) as pool:
        for done, outcome in enumerate(pool.map(read_one, files), 1):
            if isinstance(outcome, Rejected):
                rejected.append(outcome)
            else:
                read.append(outcome)
            report(done, len(files))
    known.remember(read)
    return read, rejected


def read_bytes(path: Path) -> bytes | Rejected:
    """A file's bytes, or why there are none."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return Rejected(
            path,
            "the file's name is not valid UTF-8, so split.csv could not name it; rename the file.",
        )
    try:
        return read_image_file(path)
    except DecodeError as cause:
        return Rejected(path, str(cause))


def _read(file: LabelledFile, known: _KnownFiles, decoded: DecodedImages) -> ReadFile | Rejected:
    path = file.path
    encoded = read_bytes(path)
    if isinstance(encoded, Rejected):
        return encoded
    digest = hashlib.sha256(encoded).hexdigest()
    if digest in known.pixels:
        return ReadFile(file, known.pixels[digest], digest)
    try:
        pixels = load_image(encoded)
    except DecodeError as cause:
        return Rejected(path, str(cause).removeprefix("the image: "))
    decoded.offer(path, pixels)
    return ReadFile(file, pixels_digest(pixels), digest)


def pixels_digest(pixels: NDArray[np.uint8]) -> str:
    """SHA-256 of an image's shape and pixels, without a copy of them: an image may be half a gigabyte."""
    digest = hashlib.sha256(str(pixels.shape).encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


class _KnownFiles:
    # A file for each data folder: many folders of many users must not meet in one.
    def __init__(self, files: list[LabelledFile]) -> None:
        folder = str(files[0].path.parents[1]) if files else ""
        self._path = (
            cache_folder() / "images" / f"{hashlib.sha256(folder.encode()).hexdigest()[:32]}.json"
        )
        self.pixels: dict[str, str] = {}
        entry = read_entry(self._path)
        if entry is not None and entry["definition"] == _DEFINITION:
            self.pixels = entry["pixels"]

    def remember(self, read: list[ReadFile]) -> None:
        pixels = {one.sha256: one.pixels for one in read}
        if pixels != self.pixels:
            with contextlib.suppress(
                OSError
            ):  # a home that cannot be written costs the decoding of each run, no more
                write_entry(self._path, {"definition": _DEFINITION, "pixels": pixels})

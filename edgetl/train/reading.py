"""Every image is decoded once before training: what cannot be read is known, and so is which images are the same."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from edgetl.core.errors import DecodeError
from edgetl.device.cores import available_cores
from edgetl.device.images import load_image
from edgetl.train.folders import LabelledFile, Rejected


@dataclass(frozen=True)
class ReadFile:
    """A file that decodes."""

    file: LabelledFile
    pixels: str
    """SHA-256 of the decoded pixels and their shape: equal for exact duplicates, whatever the encoding."""


def read_files(files: list[LabelledFile], report: Callable[[int, int], None]) -> tuple[list[ReadFile], list[Rejected]]:
    """Decode all files on all cores (Pillow releases the interpreter's lock); files that fail are returned with the reason."""
    read: list[ReadFile] = []
    rejected: list[Rejected] = []
    # load_image silences warnings, and the threads would restore each other's filters; this restores the right ones.
    with warnings.catch_warnings(), ThreadPoolExecutor(available_cores()) as pool:
        for done, (file, outcome) in enumerate(zip(files, pool.map(_read, [file.path for file in files]), strict=True), 1):
            if isinstance(outcome, DecodeError):
                rejected.append(Rejected(file.path, str(outcome).removeprefix(f"{file.path}: ")))
            else:
                read.append(ReadFile(file, outcome))
            report(done, len(files))
    return read, rejected


def _read(path: Path) -> str | DecodeError:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return DecodeError("the file's name is not valid UTF-8, so split.csv could not name it; rename the file.")
    try:
        pixels = load_image(path)
    except DecodeError as cause:
        return cause
    return hashlib.sha256(str(pixels.shape).encode() + pixels.tobytes()).hexdigest()

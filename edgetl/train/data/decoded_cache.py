"""Training images, decoded once and kept as uint8 while they fit into memory."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgetl.core.errors import DecodeError
from edgetl.device.runtime.images import load_image


class DecodedImageCache:
    """Files as RGB uint8 [height, width, 3]; what does not fit into the budget is decoded at every use.

    Large JPEG files are decoded at a half, a quarter or an eighth of their size, at least `least_side` pixels on the shorter side:
    augmented views are several times smaller. Evaluation never sees those pixels.
    """

    def __init__(self, budget_bytes: int, least_side: int) -> None:
        self._budget = budget_bytes
        self._min_side = least_side
        self._images: dict[Path, NDArray[np.uint8]] = {}
        self._full_size_paths: set[Path] = set()
        self._stamps: dict[Path, tuple[int, int] | None] = {}
        self._cached_bytes = 0
        self._is_full = False
        self._lock = threading.Lock()

    @property
    def cached_bytes(self) -> int:
        """Memory of the images that are kept."""
        return self._cached_bytes

    def __getitem__(self, path: Path) -> NDArray[np.uint8]:
        """The image of a file.

        Raises:
            DecodeError: it cannot be decoded, see `load_image`, or has changed.
        """
        image = self._images.get(path)
        if image is None:
            image = self._load(path, self._min_side)
            self._add_to_cache(path, image)
        return image

    def add_full_decode(self, path: Path, full: NDArray[np.uint8]) -> None:
        """Keep an image that was decoded in full for another reason, where this is what would be decoded here as well."""
        if min(full.shape[:2]) < 2 * self._min_side:
            self._add_to_cache(path, full)
            self._full_size_paths.add(path)

    def load_full(self, path: Path) -> NDArray[np.uint8]:
        """The image as the device will see it: every pixel of a full decode.

        Raises:
            DecodeError: it cannot be decoded, see `load_image`, or has changed.
        """
        image = self._images.get(path) if path in self._full_size_paths else None
        return self._load(path) if image is None else image

    def record_file_stamps(self, paths: Iterable[Path]) -> None:
        """Files are to stay as they are now: one that changes later is refused instead of being decoded."""
        self._stamps = {path: _file_stamp(path) for path in paths}

    def get_cached(self, path: Path) -> NDArray[np.uint8] | None:
        """Return the image of a file if it is kept; nothing is decoded."""
        return self._images.get(path)

    @property
    def min_side(self) -> int:
        """Pixels that the shorter side of a reduced image has at least."""
        return self._min_side

    def check_unchanged(self, path: Path) -> None:
        """Compare a file with what `expect` has noted of it.

        Raises:
            DecodeError: it has changed.
        """
        if path in self._stamps and self._stamps[path] != _file_stamp(path):
            raise DecodeError(f"{path}: has changed since training began.")

    def preload(self, path: Path) -> None:
        """Decode and keep an image, unless an earlier one has found no room."""
        if not self._is_full and self._cached_bytes < self._budget and path not in self._images:
            self[path]

    def stop_caching(self) -> None:
        """Keep nothing more: what each of many worker processes kept would add up."""
        self._budget = 0
        self._is_full = True

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._images.clear()
            self._full_size_paths.clear()
            self._cached_bytes = 0
            self._is_full = False

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def _load(self, path: Path, least_side: int | None = None) -> NDArray[np.uint8]:
        image = load_image(path, least_side)
        self.check_unchanged(path)
        return image

    def _add_to_cache(self, path: Path, image: NDArray[np.uint8]) -> None:
        with self._lock:
            if path in self._images:
                return
            if self._cached_bytes + image.nbytes > self._budget:
                self._is_full = True
                return
            self._images[path] = image
            self._cached_bytes += image.nbytes


def _file_stamp(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns

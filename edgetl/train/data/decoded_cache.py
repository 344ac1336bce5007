"""Cache of decoded training images as uint8, within a memory budget."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgetl.core.errors import DecodeError
from edgetl.device.runtime.images import load_image


class DecodedImageCache:
    """Cache of images as RGB uint8 [height, width, 3].

    Images that do not fit into the budget are decoded at every use. Large JPEG files are decoded
    at 1/2, 1/4 or 1/8 of their size, with at least `min_side` pixels on the shorter side, since
    augmented views are several times smaller. Evaluation never uses reduced images.
    """

    def __init__(self, budget_bytes: int, min_side: int) -> None:
        self._budget = budget_bytes
        self._min_side = min_side
        self._images: dict[Path, NDArray[np.uint8]] = {}
        self._full_size_paths: set[Path] = set()
        self._stamps: dict[Path, tuple[int, int] | None] = {}
        self._cached_bytes = 0
        self._is_full = False
        self._lock = threading.Lock()

    @property
    def cached_bytes(self) -> int:
        """Memory used by cached images."""
        return self._cached_bytes

    def __getitem__(self, path: Path) -> NDArray[np.uint8]:
        """Return the image of a file, possibly reduced.

        Raises:
            DecodeError: if it cannot be decoded, see `load_image`, or has changed.
        """
        image = self._images.get(path)
        if image is None:
            image = self._load(path, self._min_side)
            self._add_to_cache(path, image)
        return image

    def add_full_decode(self, path: Path, image: NDArray[np.uint8]) -> None:
        """Cache an image that was decoded at full size, unless it would be reduced here."""
        if min(image.shape[:2]) < 2 * self._min_side:
            self._add_to_cache(path, image)
            self._full_size_paths.add(path)

    def load_full(self, path: Path) -> NDArray[np.uint8]:
        """Return the image at full size, as inference on the device decodes it.

        Raises:
            DecodeError: if it cannot be decoded, see `load_image`, or has changed.
        """
        image = self._images.get(path) if path in self._full_size_paths else None
        return self._load(path) if image is None else image

    def record_file_stamps(self, paths: Iterable[Path]) -> None:
        """Record size and time of files; a file that changes later is rejected."""
        self._stamps = {path: _file_stamp(path) for path in paths}

    def get_cached(self, path: Path) -> NDArray[np.uint8] | None:
        """Return the image of a file if it is cached; nothing is decoded."""
        return self._images.get(path)

    @property
    def min_side(self) -> int:
        """Minimum shorter side of a reduced image in pixels."""
        return self._min_side

    def check_unchanged(self, path: Path) -> None:
        """Compare a file with its stamp from `record_file_stamps`.

        Raises:
            DecodeError: if the file has changed.
        """
        if path in self._stamps and self._stamps[path] != _file_stamp(path):
            raise DecodeError(f"{path} has changed since training began.")

    def preload(self, path: Path) -> None:
        """Decode and cache an image, unless the cache is full."""
        if not self._is_full and self._cached_bytes < self._budget and path not in self._images:
            self[path]

    def stop_caching(self) -> None:
        """Stop adding images: the caches of many worker processes would add up."""
        self._budget = 0
        self._is_full = True

    def clear(self) -> None:
        """Remove all images."""
        with self._lock:
            self._images.clear()
            self._full_size_paths.clear()
            self._cached_bytes = 0
            self._is_full = False

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def _load(self, path: Path, min_side: int | None = None) -> NDArray[np.uint8]:
        image = load_image(path, min_side)
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
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns

"""Training images, decoded once and kept as uint8 while they fit into memory."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgetl.core.errors import DecodeError
from edgetl.device.runtime.images import load_image


class DecodedImages:
    """Files as RGB uint8 [height, width, 3]; what does not fit into the budget is decoded at every use.

    Large JPEG files are decoded at a half, a quarter or an eighth of their size, at least `least_side` pixels on the shorter side:
    augmented views are several times smaller. Evaluation never sees those pixels.
    """

    def __init__(self, budget_bytes: int, least_side: int) -> None:
        self._budget = budget_bytes
        self._least_side = least_side
        self._kept: dict[Path, NDArray[np.uint8]] = {}
        self._full: set[Path] = set()
        self._stamps: dict[Path, tuple[int, int] | None] = {}
        self._bytes = 0
        self._is_full = False
        self._lock = threading.Lock()

    @property
    def kept_bytes(self) -> int:
        """Memory of the images that are kept."""
        return self._bytes

    def __getitem__(self, path: Path) -> NDArray[np.uint8]:
        """The image of a file.

        Raises:
            DecodeError: it cannot be decoded, see `load_image`, or has changed.
        """
        image = self._kept.get(path)
        if image is None:
            image = self._load(path, self._least_side)
            self._keep(path, image)
        return image

    def offer(self, path: Path, full: NDArray[np.uint8]) -> None:
        """Keep an image that was decoded in full for another reason, where this is what would be decoded here as well."""
        if min(full.shape[:2]) < 2 * self._least_side:
            self._keep(path, full)
            self._full.add(path)

    def full(self, path: Path) -> NDArray[np.uint8]:
        """The image as the device will see it: every pixel of a full decode.

        Raises:
            DecodeError: it cannot be decoded, see `load_image`, or has changed.
        """
        image = self._kept.get(path) if path in self._full else None
        return self._load(path) if image is None else image

    def expect(self, paths: Iterable[Path]) -> None:
        """Files are to stay as they are now: one that changes later is refused instead of being decoded."""
        self._stamps = {path: _stamp(path) for path in paths}

    def get_kept(self, path: Path) -> NDArray[np.uint8] | None:
        """Return the image of a file if it is kept; nothing is decoded."""
        return self._kept.get(path)

    @property
    def least_side(self) -> int:
        """Pixels that the shorter side of a reduced image has at least."""
        return self._least_side

    def check_unchanged(self, path: Path) -> None:
        """Compare a file with what `expect` has noted of it.

        Raises:
            DecodeError: it has changed.
        """
        if path in self._stamps and self._stamps[path] != _stamp(path):
            raise DecodeError(f"{path}: has changed since training began.")

    def warm(self, path: Path) -> None:
        """Decode and keep an image, unless an earlier one has found no room."""
        if not self._is_full and self._bytes < self._budget and path not in self._kept:
            self[path]

    def seal(self) -> None:
        """Keep nothing more: what each of many worker processes kept would add up."""
        self._budget = 0
        self._is_full = True

    def release(self) -> None:
        """Forget everything."""
        with self._lock:
            self._kept.clear()
            self._full.clear()
            self._bytes = 0
            self._is_full = False

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def _load(self, path: Path, least_side: int | None = None) -> NDArray[np.uint8]:
        image = load_image(path, least_side)
        self.check_unchanged(path)
        return image

    def _keep(self, path: Path, image: NDArray[np.uint8]) -> None:
        with self._lock:
            if path in self._kept:
                return
            if self._bytes + image.nbytes > self._budget:
                self._is_full = True
                return
            self._kept[path] = image
            self._bytes += image.nbytes


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns

"""Pictures that look alike: candidates by their perceptual hashes, confirmed by their thumbnails."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgetl.train.check.inspect_files import InspectedFile

MAX_HASH_DISTANCE = 6
"""Of 64 that may differ."""
MAX_THUMBNAIL_DIFFERENCE = 6.0
"""Mean difference of grey levels between two thumbnails, each with its own mean taken off."""
MIN_CONTRAST = 3.0
"""Standard deviation of a thumbnail; flatter ones are all alike, and nothing follows from it."""
_BLOCK = 1024


def group_near_duplicates(images: Sequence[InspectedFile]) -> list[list[int]]:
    """Groups of indices of pictures that look alike but are not the same pixels, each group connected by likeness.

    Time grows with the square of the number of images (10,000 take a second), memory with the number.
    """
    first: dict[str, int] = {}
    for index, image in enumerate(images):
        first.setdefault(image.pixels_sha256, index)
    kept = sorted(first.values())
    if not kept:
        return []
    hashes = np.array([images[index].perceptual_hash for index in kept], np.uint64)
    thumbnails = np.array([images[index].thumbnail for index in kept], np.float32).reshape(
        len(kept), -1
    )
    thumbnails -= thumbnails.mean(axis=1, keepdims=True)
    contrast = thumbnails.std(axis=1)
    parent = list(range(len(kept)))

    def root(node: int) -> int:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for one, other in _candidates(hashes):
        flat = min(contrast[one], contrast[other]) < MIN_CONTRAST
        if (
            not flat
            and float(np.abs(thumbnails[one] - thumbnails[other]).mean())
            <= MAX_THUMBNAIL_DIFFERENCE
        ):
            parent[root(other)] = root(one)
    groups: dict[int, list[int]] = {}
    for node, index in enumerate(kept):
        groups.setdefault(root(node), []).append(index)
    return [group for group in groups.values() if len(group) > 1]


def _candidates(hashes: NDArray[np.uint64]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for start in range(0, len(hashes), _BLOCK):
        block = hashes[start : start + _BLOCK, None]
        for after in range(start, len(hashes), _BLOCK):
            bits = np.bitwise_count(block ^ hashes[None, after : after + _BLOCK])
            ones, others = np.nonzero(bits <= MAX_HASH_DISTANCE)
            pairs = zip((start + ones).tolist(), (after + others).tolist(), strict=True)
            found += [(one, other) for one, other in pairs if one < other]
    return found

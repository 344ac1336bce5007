"""Near duplicates: candidates by perceptual hash, confirmed by thumbnail."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import lil_array
from scipy.sparse.csgraph import connected_components

from edgetl.train.check.inspect_files import InspectedFile

MAX_HASH_DISTANCE = 6
"""Maximum number of different bits, out of 64, of two perceptual hashes."""
MAX_THUMBNAIL_DIFFERENCE = 6.0
"""Maximum mean difference of two thumbnails in gray levels, each minus its own mean."""
MIN_CONTRAST = 3.0
"""Minimum standard deviation of a thumbnail; those of uniform images are always similar."""
_BLOCK = 1024


def group_near_duplicates(images: Sequence[InspectedFile]) -> list[list[int]]:
    """Return groups of indices of similar images that are not exact duplicates.

    A group is a connected component of similar pairs. Time grows with the square of the number of
    images (10,000 take a second), memory with the number.
    """
    first_index: dict[str, int] = {}
    for index, image in enumerate(images):
        first_index.setdefault(image.pixels_sha256, index)
    distinct = sorted(first_index.values())
    if not distinct:
        return []
    hashes = np.array([images[index].perceptual_hash for index in distinct], np.uint64)
    thumbnails = np.array([images[index].thumbnail for index in distinct], np.float32)
    thumbnails = thumbnails.reshape(len(distinct), -1)
    thumbnails -= thumbnails.mean(axis=1, keepdims=True)
    contrast = thumbnails.std(axis=1)
    similar = lil_array((len(distinct), len(distinct)), dtype=np.bool_)
    for left, right in _candidate_pairs(hashes):
        if min(contrast[left], contrast[right]) < MIN_CONTRAST:
            continue
        difference = float(np.abs(thumbnails[left] - thumbnails[right]).mean())
        similar[left, right] = difference <= MAX_THUMBNAIL_DIFFERENCE
    _, components = connected_components(similar, directed=False)
    groups: dict[int, list[int]] = {}
    for index, component in zip(distinct, components.tolist(), strict=True):
        groups.setdefault(component, []).append(index)
    return [group for group in groups.values() if len(group) > 1]


def _candidate_pairs(hashes: NDArray[np.uint64]) -> list[tuple[int, int]]:
    pairs: list[tuple[int, int]] = []
    for row in range(0, len(hashes), _BLOCK):
        block = hashes[row : row + _BLOCK, None]
        for column in range(row, len(hashes), _BLOCK):
            bits = np.bitwise_count(block ^ hashes[None, column : column + _BLOCK])
            rows, columns = np.nonzero(bits <= MAX_HASH_DISTANCE)
            matches = zip((row + rows).tolist(), (column + columns).tolist(), strict=True)
            pairs += [(left, right) for left, right in matches if left < right]
    return pairs

"""LoadGen's sample library: real images, decoded and made ready when LoadGen asks for them, dropped when it says so."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.core.config.export import InputKind
from edgetl.core.preprocessing import Preprocessing
from edgetl.device.runtime.images import load_image
from edgetl.device.runtime.preprocessing import preprocess, resize_around_crop


class QuerySampleLibrary:
    """Samples by their index in a list of files."""

    def __init__(
        self, files: Sequence[Path], scope: str, kind: InputKind, contract: Preprocessing
    ) -> None:
        self._files, self._scope, self._input_kind, self._preprocessing = (
            files,
            scope,
            kind,
            contract,
        )
        self.loaded_samples: dict[int, NDArray[Any]] = {}
        """Scope `image`: uint8 [height, width, 3]. Scope `model`: one batch of one, all of the same shape."""

    def load(self, indices: Sequence[int]) -> None:
        """Make samples ready.

        Raises:
            DecodeError: a file is no image.
        """
        for index in indices:
            if index not in self.loaded_samples:
                self.loaded_samples[index] = self._load_sample(self._files[index])

    def unload(self, indices: Sequence[int]) -> None:
        """Let go of samples; LoadGen may name one twice where it filled up a query."""
        for index in indices:
            self.loaded_samples.pop(index, None)

    def make_queries(self, count: int, samples: int, batch: int) -> list[list[NDArray[Any]]]:
        """The first `count` samples in turns as queries of `samples` images: for each query what its calls take."""
        self.load(range(count))
        queries = [
            [self.loaded_samples[(first + place) % count] for place in range(samples)]
            for first in range(0, count, samples)
        ]
        self.unload(range(count))
        if batch == 1:
            return queries
        return [
            [np.concatenate(query[place : place + batch]) for place in range(0, samples, batch)]
            for query in queries
        ]

    def _load_sample(self, path: Path) -> NDArray[Any]:
        image = load_image(path)
        if self._scope == "image":
            return image
        return (
            preprocess(image, self._preprocessing)
            if self._input_kind == "tensor"
            else resize_around_crop(image, self._preprocessing)[None]
        )

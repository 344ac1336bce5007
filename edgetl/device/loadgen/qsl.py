"""LoadGen's query sample library: images that are loaded and unloaded on request."""

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
    """Samples by index in a list of files."""

    def __init__(
        self,
        files: Sequence[Path],
        scope: str,
        input_kind: InputKind,
        preprocessing: Preprocessing,
    ) -> None:
        self._files = files
        self._scope = scope
        self._input_kind = input_kind
        self._preprocessing = preprocessing
        self.loaded_samples: dict[int, NDArray[Any]] = {}
        """Loaded samples by index.

        Scope `image`: uint8 [height, width, 3]. Scope `model`: a batch of one, all of one shape.
        """

    def load(self, indices: Sequence[int]) -> None:
        """Load samples into memory.

        Raises:
            DecodeError: a file is not a valid image.
        """
        for index in indices:
            if index not in self.loaded_samples:
                self.loaded_samples[index] = self._load_sample(self._files[index])

    def unload(self, indices: Sequence[int]) -> None:
        """Unload samples; LoadGen may pass an index twice if it padded a query."""
        for index in indices:
            self.loaded_samples.pop(index, None)

    def make_queries(self, count: int, samples: int, batch: int) -> list[list[NDArray[Any]]]:
        """Return queries of `samples` images that rotate through the first `count` samples.

        Returns:
            The inputs of each query's calls.
        """
        self.load(range(count))
        queries = [
            [self.loaded_samples[(start + offset) % count] for offset in range(samples)]
            for start in range(0, count, samples)
        ]
        self.unload(range(count))
        if batch == 1:
            return queries
        return [
            [np.concatenate(query[start : start + batch]) for start in range(0, samples, batch)]
            for query in queries
        ]

    def _load_sample(self, path: Path) -> NDArray[Any]:
        image = load_image(path)
        if self._scope == "image":
            return image
        if self._input_kind == "tensor":
            return preprocess(image, self._preprocessing)
        return resize_around_crop(image, self._preprocessing)[None]

"""Cache of views that repeat in every epoch, on the GPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from edgetl.train.common.precision import copy_to_device
from edgetl.train.data.gpu_loader import DeviceLoader
from edgetl.train.data.loader import ImageLoader, ViewKey, group_into_batches


class GpuViewCache:
    """Loader that wraps another one and caches its views in the device's memory."""

    def __init__(
        self,
        loader: ImageLoader | DeviceLoader,
        groups: Sequence[Sequence[ViewKey]],
        side: int,
        device: torch.device,
        budget_bytes: int,
    ) -> None:
        """Reserve memory for groups of views, in order of priority.

        Args:
            loader: the loader.
            groups: views that are requested more than once; all others are not cached. A group is
                cached only if all of it fits.
            side: side of the views in pixels; they are uint8 [side, side, 3].
            device: the device.
            budget_bytes: device memory for cached views.
        """
        self._loader = loader
        self._device = device
        self._row_by_key: dict[ViewKey, int] = {}
        for group in groups:
            first = len(self._row_by_key)
            if (first + len(group)) * side * side * 3 <= budget_bytes:
                self._row_by_key.update({key: first + row for row, key in enumerate(group)})
        self._pixels = torch.empty(
            len(self._row_by_key), side, side, 3, dtype=torch.uint8, device=device
        )
        self._labels = torch.empty(len(self._row_by_key), dtype=torch.int64, device=device)
        self._cached_keys: set[ViewKey] = set()

    def __call__(self, batches: Sequence[Sequence[ViewKey]]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches in order: (uint8 [batch, S, S, 3], int64 [batch])."""
        is_cached = [self._cached_keys.issuperset(batch) for batch in batches]
        missing = [batch for batch, cached in zip(batches, is_cached, strict=True) if not cached]
        loaded = iter(self._loader(missing))
        for batch, cached, rows in zip(batches, is_cached, self._upload_rows(batches), strict=True):
            if cached:
                assert rows is not None
                yield self._pixels.index_select(0, rows), self._labels.index_select(0, rows)
            else:
                yield self._cache_batch(batch, rows, *next(loaded))

    def iter_eval_batches(
        self, indices: Sequence[int], batch_size: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the images in order, preprocessed as for inference on the device."""
        return self(group_into_batches([(None, index) for index in indices], batch_size))

    def _upload_rows(self, batches: Sequence[Sequence[ViewKey]]) -> list[Tensor | None]:
        """Return the rows of each batch, int64 [batch] on the device; None if it is not cacheable.

        They are uploaded once per epoch: a copy from pageable memory in every step would make the
        host wait for the device.
        """
        is_cacheable = [all(key in self._row_by_key for key in batch) for batch in batches]
        cacheable = [
            batch for batch, has_rows in zip(batches, is_cacheable, strict=True) if has_rows
        ]
        if not cacheable:
            return [None] * len(batches)
        rows = torch.tensor(
            [self._row_by_key[key] for batch in cacheable for key in batch], dtype=torch.int64
        )
        uploaded = iter(
            torch.split(copy_to_device(rows, self._device), [len(batch) for batch in cacheable])
        )
        return [next(uploaded) if has_rows else None for has_rows in is_cacheable]

    def _cache_batch(
        self, batch: Sequence[ViewKey], rows: Tensor | None, pixels: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        pixels = pixels.to(self._device, non_blocking=True)
        labels = labels.to(self._device, non_blocking=True)
        if rows is not None:
            self._pixels.index_copy_(0, rows, pixels)
            self._labels.index_copy_(0, rows, labels)
            self._cached_keys.update(batch)
        return pixels, labels

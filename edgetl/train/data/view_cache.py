"""Views that come again every epoch, kept on a GPU after their first pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from edgetl.train.common.precision import copy_to_device
from edgetl.train.data.gpu_loader import DeviceLoader
from edgetl.train.data.loader import ImageLoader, ViewKey, group_into_batches


class GpuViewCache:
    """A loader in front of a loader: gives the same batches, from the device's memory where it has them."""

    def __init__(
        self,
        loader: ImageLoader | DeviceLoader,
        groups: Sequence[Sequence[ViewKey]],
        side: int,
        device: torch.device,
        budget_bytes: int,
    ) -> None:
        """Reserve memory for groups of views, the most wanted first; a group that does not fit as a whole is not kept.

        Args:
            groups: views that will be asked for more than once; those of other keys are new every time and pass through.
            side: pixels; views are uint8 [side, side, 3].
        """
        self._loader = loader
        self._device = device
        self._row_by_key: dict[ViewKey, int] = {}
        for group in groups:
            first = len(self._row_by_key)
            if (first + len(group)) * side * side * 3 <= budget_bytes:
                self._row_by_key.update({key: first + at for at, key in enumerate(group)})
        self._pixels = torch.empty(
            len(self._row_by_key), side, side, 3, dtype=torch.uint8, device=device
        )
        self._labels = torch.empty(len(self._row_by_key), dtype=torch.int64, device=device)
        self._cached_keys: set[ViewKey] = set()

    def __call__(self, batches: Sequence[Sequence[ViewKey]]) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches, in order: (uint8 [batch, S, S, 3], int64 [batch])."""
        there = [self._cached_keys.issuperset(batch) for batch in batches]
        loaded = iter(
            self._loader([batch for batch, found in zip(batches, there, strict=True) if not found])
        )
        for batch, found, rows in zip(batches, there, self._upload_rows(batches), strict=True):
            if found:
                assert rows is not None
                yield self._pixels.index_select(0, rows), self._labels.index_select(0, rows)
            else:
                yield self._cache_batch(batch, rows, *next(loaded))

    def iter_eval_batches(
        self, indices: Sequence[int], batch_size: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The images once, in order, as the device will see them."""
        return self(group_into_batches([(None, index) for index in indices], batch_size))

    def _upload_rows(self, batches: Sequence[Sequence[ViewKey]]) -> list[Tensor | None]:
        """The rows of each batch, int64 [batch] on the device; None for a batch that is not kept.

        One upload for the whole pass: a copy from pageable memory in every step would make the host
        wait for the device.
        """
        is_kept = [all(key in self._row_by_key for key in batch) for batch in batches]
        kept = [batch for batch, keep in zip(batches, is_kept, strict=True) if keep]
        if not kept:
            return [None] * len(batches)
        rows = torch.tensor(
            [self._row_by_key[key] for batch in kept for key in batch], dtype=torch.int64
        )
        uploaded = iter(
            torch.split(copy_to_device(rows, self._device), [len(batch) for batch in kept])
        )
        return [next(uploaded) if keep else None for keep in is_kept]

    def _cache_batch(
        self, batch: Sequence[ViewKey], rows: Tensor | None, pixels: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        pixels, labels = (
            pixels.to(self._device, non_blocking=True),
            labels.to(self._device, non_blocking=True),
        )
        if rows is not None:
            self._pixels.index_copy_(0, rows, pixels)
            self._labels.index_copy_(0, rows, labels)
            self._cached_keys.update(batch)
        return pixels, labels

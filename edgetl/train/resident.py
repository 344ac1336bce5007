"""Views that come again every epoch, kept on a GPU after their first pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from edgetl.train.loading import Key, Loader, cut_batches


class ResidentViews:
    """A loader in front of a loader: gives the same batches, from the device's memory where it has them."""

    def __init__(self, loader: Loader, groups: Sequence[Sequence[Key]], side: int, device: torch.device, budget_bytes: int) -> None:
        """Reserve memory for groups of views, the most wanted first; a group that does not fit as a whole is not kept.

        Args:
            groups: views that will be asked for more than once; those of other keys are new every time and pass through.
            side: pixels; views are uint8 [side, side, 3].
        """
        self._loader = loader
        self._device = device
        self._row: dict[Key, int] = {}
        for group in groups:
            first = len(self._row)
            if (first + len(group)) * side * side * 3 <= budget_bytes:
                self._row.update({key: first + at for at, key in enumerate(group)})
        self._pixels = torch.empty(len(self._row), side, side, 3, dtype=torch.uint8, device=device)
        self._labels = torch.empty(len(self._row), dtype=torch.int64, device=device)
        self._there: set[Key] = set()

    def __call__(self, batches: Sequence[Sequence[Key]]) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches, in order: (uint8 [batch, S, S, 3], int64 [batch])."""
        there = [self._there.issuperset(batch) for batch in batches]
        loaded = iter(self._loader([batch for batch, found in zip(batches, there, strict=True) if not found]))
        for batch, found in zip(batches, there, strict=True):
            if found:
                rows = torch.tensor([self._row[key] for key in batch]).to(self._device, non_blocking=True)
                yield self._pixels.index_select(0, rows), self._labels.index_select(0, rows)
            else:
                yield self._kept(batch, *next(loaded))

    def evaluation(self, indices: Sequence[int], batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The images once, in order, as the device will see them."""
        return self(cut_batches([(None, index) for index in indices], batch_size))

    def _kept(self, batch: Sequence[Key], pixels: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        pixels, labels = pixels.to(self._device, non_blocking=True), labels.to(self._device, non_blocking=True)
        if all(key in self._row for key in batch):
            rows = torch.tensor([self._row[key] for key in batch], device=self._device)
            self._pixels[rows], self._labels[rows] = pixels, labels
            self._there.update(batch)
        return pixels, labels

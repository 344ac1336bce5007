"""What a phase is fed with: batches of the values where its training begins, from the cache or computed on the way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgetl.core.config.finetune import Sampling
from edgetl.core.preprocessing import Preprocessing
from edgetl.train.common.distributed import ALONE, Group
from edgetl.train.common.precision import (
    Computing,
    Function,
    Values,
    copy_to_device,
    cudnn_autotuning,
)
from edgetl.train.data.loader import Key, cut_batches
from edgetl.train.features.store import Activations

Batch = tuple[Values, Tensor]
"""(float32 values on the device, each [batch, ...]; int64 labels on the device)."""


class Order:
    """Which training images make up an epoch, and in which batches: a function of (seed, epoch). Processes divide every batch."""

    def __init__(
        self, labels: Tensor, sampling: Sampling, batch_size: int, seed: int, ranks: Group = ALONE
    ) -> None:
        """Take the images of a step in all processes together."""
        self._ranks = ranks
        self._labels = labels.numpy()
        self._sampling = sampling
        self._batch_size = batch_size
        self._seed = seed

    def batches(self, epoch: int) -> list[list[int]]:
        """This process's positions among the training images.

        In all processes together each comes once, or with `balanced` sampling every class equally often, with repetitions.
        """
        generator = np.random.default_rng([self._seed, epoch])
        positions = generator.permutation(len(self._labels))
        if self._sampling == "balanced":
            # Rounds through the classes, each class through its own images in a new order every time round.
            classes = [
                positions[self._labels[positions] == label] for label in np.unique(self._labels)
            ]
            each = -(-len(self._labels) // len(classes))
            drawn = [
                np.concatenate([generator.permutation(own) for _ in range(-(-each // len(own)))])[
                    :each
                ]
                for own in classes
            ]
            positions = generator.permutation(np.concatenate(drawn))[: len(self._labels)]
        return [
            [batch[at][1] for at in self._ranks.own(len(batch))] for batch in self._cut(positions)
        ]

    @property
    def steps(self) -> int:
        """Of an epoch."""
        return len(self._cut(range(len(self._labels))))

    @property
    def share(self) -> int:
        """Images of a full batch in this process."""
        return len(self._ranks.own(self._batch_size))

    def own(self, indices: Sequence[int]) -> list[int]:
        """This process's part of images that are gone through in order."""
        return [indices[at] for at in self._ranks.own(len(indices))]

    def _cut(self, positions: Sequence[int] | NDArray[np.int64]) -> list[list[Key]]:
        return cut_batches(
            [(None, int(position)) for position in positions],
            self._batch_size,
            2 * self._ranks.world,
        )


class Feed(Protocol):
    """Batches for one phase."""

    @property
    def steps(self) -> int:
        """Of an epoch."""

    @property
    def batch_size(self) -> int:
        """Images of a full batch in this process."""

    def training(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """One epoch (counted from 1), from batch `first` on (counted from 0)."""

    def validation(self) -> Iterator[Batch]:
        """This process's validation images in order, exactly as the whole network would see them."""

    def plain(self) -> Iterator[Batch]:
        """This process's training images in order, without augmentation."""


class BatchLoader(Protocol):
    """Batches of (uint8 [batch, S, S, 3], int64 [batch])."""

    def __call__(self, batches: Sequence[Sequence[Key]]) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches, in order."""

    def evaluation(
        self, indices: Sequence[int], batch_size: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The images once, in order, as the device will see them."""


class CachedFeed:
    """From activations: view after view, epoch by epoch."""

    def __init__(
        self,
        activations: Activations,
        train: Tensor,
        val: Tensor,
        order: Order,
        device: torch.device,
    ) -> None:
        self._activations = activations
        self._train = train.to(device)
        self._val = val.to(device)
        self._order = order
        self._device = device

    @property
    def steps(self) -> int:
        """Of an epoch."""
        return self._order.steps

    @property
    def batch_size(self) -> int:
        """Images of a full batch in this process."""
        return self._order.share

    def training(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """The view whose turn it is."""
        view = (epoch - 1) % self._activations.views
        for batch in self._order.batches(epoch)[first:]:
            yield self._take(
                tuple(value[view] for value in self._activations.train),
                self._train,
                torch.tensor(batch),
            )

    def validation(self) -> Iterator[Batch]:
        """As cached in float32."""
        return self._in_order(self._activations.val, self._val)

    def plain(self) -> Iterator[Batch]:
        """The first view of the training images, in order."""
        return self._in_order(tuple(value[0] for value in self._activations.train), self._train)

    def _in_order(self, values: Values, labels: Tensor) -> Iterator[Batch]:
        own = self._order.own(range(len(labels)))
        for start in range(0, len(own), _VALIDATION_BATCH):
            yield self._take(values, labels, torch.tensor(own[start : start + _VALIDATION_BATCH]))

    def _take(self, values: Values, labels: Tensor, positions: Tensor) -> Batch:
        return tuple(self._rows(value, positions).float() for value in values), self._rows(
            labels, positions
        )

    def _rows(self, value: Tensor, positions: Tensor) -> Tensor:
        return copy_to_device(
            value.index_select(0, copy_to_device(positions, value.device)), self._device
        )


class StreamedFeed:
    """From the images: decoded, augmented and put through the frozen blocks at every use."""

    def __init__(
        self,
        loader: BatchLoader,
        train: Sequence[int],
        val: Sequence[int],
        order: Order,
        views: Sequence[int | None] | None,
        prefixes: tuple[Function, Function] | None,
        preprocessing: Preprocessing,
        computing: Computing,
    ) -> None:
        """Take indices of images among the loader's; prefixes for training and validation, or None where the first block is trained.

        Args:
            views: keys of the views that the epochs go through; None is a new one each epoch.
        """
        self._loader = loader
        self._train = train
        self._val = val
        self._order = order
        self._views = views
        self._prefixes = prefixes
        self._preprocessing = preprocessing
        self._computing = computing

    @property
    def steps(self) -> int:
        """Of an epoch."""
        return self._order.steps

    @property
    def batch_size(self) -> int:
        """Images of a full batch in this process."""
        return self._order.share

    def training(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """The epoch's view of every image."""
        view = self._views[(epoch - 1) % len(self._views)] if self._views else epoch
        keys = [
            [(view, self._train[position]) for position in batch]
            for batch in self._order.batches(epoch)[first:]
        ]
        for pixels, labels in self._loader(keys):
            with cudnn_autotuning(len(pixels) == self.batch_size):
                values = self._values(pixels, 0)
            yield values, labels.to(self._computing.device, non_blocking=True)

    def validation(self) -> Iterator[Batch]:
        """Through the exact prefix."""
        for pixels, labels in self._loader.evaluation(
            self._order.own(self._val), _VALIDATION_BATCH
        ):
            yield self._values(pixels, 1), labels.to(self._computing.device, non_blocking=True)

    def plain(self) -> Iterator[Batch]:
        """The training images without augmentation, in order."""
        for pixels, labels in self._loader.evaluation(
            self._order.own(self._train), _VALIDATION_BATCH
        ):
            yield self._values(pixels, 1), labels.to(self._computing.device, non_blocking=True)

    def _values(self, pixels: Tensor, prefix: int) -> Values:
        values: Values = (self._computing.network_input(pixels, self._preprocessing),)
        return (
            tuple(value.float() for value in self._prefixes[prefix](*values))
            if self._prefixes
            else values
        )


_VALIDATION_BATCH = 64

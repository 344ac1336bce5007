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
from edgetl.train.common.distributed import SINGLE_PROCESS, DistributedGroup
from edgetl.train.common.precision import (
    ComputeConfig,
    TensorFunction,
    Tensors,
    copy_to_device,
    cudnn_autotuning,
)
from edgetl.train.data.loader import ViewKey, group_into_batches
from edgetl.train.features.store import Features

Batch = tuple[Tensors, Tensor]
"""(float32 values on the device, each [batch, ...]; int64 labels on the device)."""


class EpochSampler:
    """Which training images make up an epoch, and in which batches: a function of (seed, epoch). Processes divide every batch."""

    def __init__(
        self,
        labels: Tensor,
        sampling: Sampling,
        batch_size: int,
        seed: int,
        ranks: DistributedGroup = SINGLE_PROCESS,
    ) -> None:
        """Take the images of a step in all processes together."""
        self._processes = ranks
        self._labels = labels.numpy()
        self._sampling = sampling
        self._batch_size = batch_size
        self._seed = seed

    def sample_batches(self, epoch: int) -> list[list[int]]:
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
            [batch[at][1] for at in self._processes.shard(len(batch))]
            for batch in self._split_into_batches(positions)
        ]

    @property
    def steps_per_epoch(self) -> int:
        """Of an epoch."""
        return len(self._split_into_batches(range(len(self._labels))))

    @property
    def local_batch_size(self) -> int:
        """Images of a full batch in this process."""
        return len(self._processes.shard(self._batch_size))

    def shard(self, indices: Sequence[int]) -> list[int]:
        """This process's part of images that are gone through in order."""
        return [indices[at] for at in self._processes.shard(len(indices))]

    def _split_into_batches(
        self, positions: Sequence[int] | NDArray[np.int64]
    ) -> list[list[ViewKey]]:
        return group_into_batches(
            [(None, int(position)) for position in positions],
            self._batch_size,
            2 * self._processes.world_size,
        )


class BatchSource(Protocol):
    """Batches for one phase."""

    @property
    def steps_per_epoch(self) -> int:
        """Of an epoch."""

    @property
    def local_batch_size(self) -> int:
        """Images of a full batch in this process."""

    def iter_train_batches(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """One epoch (counted from 1), from batch `first` on (counted from 0)."""

    def iter_val_batches(self) -> Iterator[Batch]:
        """This process's validation images in order, exactly as the whole network would see them."""

    def iter_train_eval_batches(self) -> Iterator[Batch]:
        """This process's training images in order, without augmentation."""


class BatchLoader(Protocol):
    """Batches of (uint8 [batch, S, S, 3], int64 [batch])."""

    def __call__(self, batches: Sequence[Sequence[ViewKey]]) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches, in order."""

    def iter_eval_batches(
        self, indices: Sequence[int], batch_size: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The images once, in order, as the device will see them."""


class CachedBatches:
    """From activations: view after view, epoch by epoch."""

    def __init__(
        self,
        activations: Features,
        train: Tensor,
        val: Tensor,
        order: EpochSampler,
        device: torch.device,
    ) -> None:
        self._features = activations
        self._train_labels = train.to(device)
        self._val_labels = val.to(device)
        self._sampler = order
        self._device = device

    @property
    def steps_per_epoch(self) -> int:
        """Of an epoch."""
        return self._sampler.steps_per_epoch

    @property
    def local_batch_size(self) -> int:
        """Images of a full batch in this process."""
        return self._sampler.local_batch_size

    def iter_train_batches(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """The view whose turn it is."""
        view = (epoch - 1) % self._features.views
        for batch in self._sampler.sample_batches(epoch)[first:]:
            yield self._make_batch(
                tuple(value[view] for value in self._features.train),
                self._train_labels,
                torch.tensor(batch),
            )

    def iter_val_batches(self) -> Iterator[Batch]:
        """As cached in float32."""
        return self._iter_in_order(self._features.val, self._val_labels)

    def iter_train_eval_batches(self) -> Iterator[Batch]:
        """The first view of the training images, in order."""
        return self._iter_in_order(
            tuple(value[0] for value in self._features.train), self._train_labels
        )

    def _iter_in_order(self, values: Tensors, labels: Tensor) -> Iterator[Batch]:
        own = self._sampler.shard(range(len(labels)))
        for start in range(0, len(own), _VALIDATION_BATCH):
            yield self._make_batch(
                values, labels, torch.tensor(own[start : start + _VALIDATION_BATCH])
            )

    def _make_batch(self, values: Tensors, labels: Tensor, positions: Tensor) -> Batch:
        return tuple(
            self._select_rows(value, positions).float() for value in values
        ), self._select_rows(labels, positions)

    def _select_rows(self, value: Tensor, positions: Tensor) -> Tensor:
        return copy_to_device(
            value.index_select(0, copy_to_device(positions, value.device)), self._device
        )


class StreamingBatches:
    """From the images: decoded, augmented and put through the frozen blocks at every use."""

    def __init__(
        self,
        loader: BatchLoader,
        train: Sequence[int],
        val: Sequence[int],
        order: EpochSampler,
        views: Sequence[int | None] | None,
        prefixes: tuple[TensorFunction, TensorFunction] | None,
        preprocessing: Preprocessing,
        computing: ComputeConfig,
    ) -> None:
        """Take indices of images among the loader's; prefixes for training and validation, or None where the first block is trained.

        Args:
            views: keys of the views that the epochs go through; None is a new one each epoch.
        """
        self._loader = loader
        self._train_indices = train
        self._val_indices = val
        self._sampler = order
        self._view_numbers = views
        self._extractors = prefixes
        self._preprocessing = preprocessing
        self._compute_config = computing

    @property
    def steps_per_epoch(self) -> int:
        """Of an epoch."""
        return self._sampler.steps_per_epoch

    @property
    def local_batch_size(self) -> int:
        """Images of a full batch in this process."""
        return self._sampler.local_batch_size

    def iter_train_batches(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """The epoch's view of every image."""
        view = (
            self._view_numbers[(epoch - 1) % len(self._view_numbers)]
            if self._view_numbers
            else epoch
        )
        keys = [
            [(view, self._train_indices[position]) for position in batch]
            for batch in self._sampler.sample_batches(epoch)[first:]
        ]
        for pixels, labels in self._loader(keys):
            with cudnn_autotuning(len(pixels) == self.local_batch_size):
                values = self._extract_features(pixels, 0)
            yield values, labels.to(self._compute_config.device, non_blocking=True)

    def iter_val_batches(self) -> Iterator[Batch]:
        """Through the exact prefix."""
        for pixels, labels in self._loader.iter_eval_batches(
            self._sampler.shard(self._val_indices), _VALIDATION_BATCH
        ):
            yield (
                self._extract_features(pixels, 1),
                labels.to(self._compute_config.device, non_blocking=True),
            )

    def iter_train_eval_batches(self) -> Iterator[Batch]:
        """The training images without augmentation, in order."""
        for pixels, labels in self._loader.iter_eval_batches(
            self._sampler.shard(self._train_indices), _VALIDATION_BATCH
        ):
            yield (
                self._extract_features(pixels, 1),
                labels.to(self._compute_config.device, non_blocking=True),
            )

    def _extract_features(self, pixels: Tensor, prefix: int) -> Tensors:
        values: Tensors = (self._compute_config.to_model_input(pixels, self._preprocessing),)
        return (
            tuple(value.float() for value in self._extractors[prefix](*values))
            if self._extractors
            else values
        )


_VALIDATION_BATCH = 64

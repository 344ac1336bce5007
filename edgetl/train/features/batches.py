"""Batch sources: the inputs of a training phase, from cached features or extracted on the fly."""

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
    """Sampler of an epoch's batches, a pure function of (seed, epoch).

    Each batch is divided among the processes.
    """

    def __init__(
        self,
        labels: Tensor,
        sampling: Sampling,
        batch_size: int,
        seed: int,
        processes: DistributedGroup = SINGLE_PROCESS,
    ) -> None:
        """Create a sampler.

        Args:
            labels: labels of the training images, int64 [images].
            sampling: `shuffled` or `balanced`.
            batch_size: images per step, over all processes.
            seed: the run's seed.
            processes: the processes that share each batch.
        """
        self._processes = processes
        self._labels = labels.numpy()
        self._sampling = sampling
        self._batch_size = batch_size
        self._seed = seed

    def sample_batches(self, epoch: int) -> list[list[int]]:
        """Return this process's batches, as positions among the training images.

        Over all processes each image appears once. With `balanced` sampling every class
        appears equally often instead, with repetitions.
        """
        generator = np.random.default_rng([self._seed, epoch])
        positions = generator.permutation(len(self._labels))
        if self._sampling == "balanced":
            # Every class repeats its own images until it has its share, reshuffled each time.
            classes = [
                positions[self._labels[positions] == label] for label in np.unique(self._labels)
            ]
            images_per_class = -(-len(self._labels) // len(classes))
            resampled = []
            for class_positions in classes:
                repetitions = -(-images_per_class // len(class_positions))
                passes = [generator.permutation(class_positions) for _ in range(repetitions)]
                resampled.append(np.concatenate(passes)[:images_per_class])
            positions = generator.permutation(np.concatenate(resampled))[: len(self._labels)]
        return [
            [batch[index][1] for index in self._processes.shard(len(batch))]
            for batch in self._split_into_batches(positions)
        ]

    @property
    def steps_per_epoch(self) -> int:
        """Steps per epoch."""
        return len(self._split_into_batches(range(len(self._labels))))

    @property
    def local_batch_size(self) -> int:
        """Images of a full batch in this process."""
        return len(self._processes.shard(self._batch_size))

    def shard(self, indices: Sequence[int]) -> list[int]:
        """Return this process's share of `indices`, in order."""
        return [indices[index] for index in self._processes.shard(len(indices))]

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
        """Steps per epoch."""

    @property
    def local_batch_size(self) -> int:
        """Images of a full batch in this process."""

    def iter_train_batches(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """Yield the batches of one epoch (counted from 1), starting at batch `first` (from 0)."""

    def iter_val_batches(self) -> Iterator[Batch]:
        """Yield this process's validation images in order, as the complete model sees them."""

    def iter_train_eval_batches(self) -> Iterator[Batch]:
        """Yield this process's training images in order, without augmentation."""


class BatchLoader(Protocol):
    """Loader of batches (uint8 [batch, S, S, 3], int64 [batch])."""

    def __call__(self, batches: Sequence[Sequence[ViewKey]]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches, in order."""

    def iter_eval_batches(
        self, indices: Sequence[int], batch_size: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield each image once, in order, with the deployment preprocessing."""


class CachedBatches:
    """Batches of cached features. Each epoch uses the next view."""

    def __init__(
        self,
        features: Features,
        train_labels: Tensor,
        val_labels: Tensor,
        sampler: EpochSampler,
        device: torch.device,
    ) -> None:
        self._features = features
        self._train_labels = train_labels.to(device)
        self._val_labels = val_labels.to(device)
        self._sampler = sampler
        self._device = device

    @property
    def steps_per_epoch(self) -> int:
        """Steps per epoch."""
        return self._sampler.steps_per_epoch

    @property
    def local_batch_size(self) -> int:
        """Images of a full batch in this process."""
        return self._sampler.local_batch_size

    def iter_train_batches(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """Yield batches of the epoch's view; the views take turns."""
        view = (epoch - 1) % self._features.views
        for batch in self._sampler.sample_batches(epoch)[first:]:
            yield self._make_batch(
                tuple(value[view] for value in self._features.train),
                self._train_labels,
                torch.tensor(batch),
            )

    def iter_val_batches(self) -> Iterator[Batch]:
        """Yield the validation features, cached in float32."""
        return self._iter_in_order(self._features.val, self._val_labels)

    def iter_train_eval_batches(self) -> Iterator[Batch]:
        """Yield the first view of the training images, which is not augmented, in order."""
        return self._iter_in_order(
            tuple(value[0] for value in self._features.train), self._train_labels
        )

    def _iter_in_order(self, values: Tensors, labels: Tensor) -> Iterator[Batch]:
        positions = self._sampler.shard(range(len(labels)))
        for start in range(0, len(positions), _EVAL_BATCH_SIZE):
            batch = torch.tensor(positions[start : start + _EVAL_BATCH_SIZE])
            yield self._make_batch(values, labels, batch)

    def _make_batch(self, values: Tensors, labels: Tensor, positions: Tensor) -> Batch:
        inputs = tuple(self._select_rows(value, positions).float() for value in values)
        return inputs, self._select_rows(labels, positions)

    def _select_rows(self, value: Tensor, positions: Tensor) -> Tensor:
        rows = value.index_select(0, copy_to_device(positions, value.device))
        return copy_to_device(rows, self._device)


class StreamingBatches:
    """Batches computed on the fly: decode, augment, then apply the extractor."""

    def __init__(
        self,
        loader: BatchLoader,
        train_indices: Sequence[int],
        val_indices: Sequence[int],
        sampler: EpochSampler,
        view_numbers: Sequence[int | None] | None,
        extractors: tuple[TensorFunction, TensorFunction] | None,
        preprocessing: Preprocessing,
        compute_config: ComputeConfig,
    ) -> None:
        """Create a batch source that reads images through `loader`.

        Args:
            loader: reads and augments the images.
            train_indices: indices of the training images among the loader's.
            val_indices: indices of the validation images among the loader's.
            sampler: the batches of each epoch.
            view_numbers: keys of the views that the epochs cycle through; None uses a new view
                every epoch.
            extractors: extractors for training and for validation; None if the first block is
                trained.
            preprocessing: normalization of the pixels.
            compute_config: device and precision.
        """
        self._loader = loader
        self._train_indices = train_indices
        self._val_indices = val_indices
        self._sampler = sampler
        self._view_numbers = view_numbers
        self._extractors = extractors
        self._preprocessing = preprocessing
        self._compute_config = compute_config

    @property
    def steps_per_epoch(self) -> int:
        """Steps per epoch."""
        return self._sampler.steps_per_epoch

    @property
    def local_batch_size(self) -> int:
        """Images of a full batch in this process."""
        return self._sampler.local_batch_size

    def iter_train_batches(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """Yield batches of the epoch's view of every image."""
        view: int | None = epoch
        if self._view_numbers:
            view = self._view_numbers[(epoch - 1) % len(self._view_numbers)]
        keys = [
            [(view, self._train_indices[position]) for position in batch]
            for batch in self._sampler.sample_batches(epoch)[first:]
        ]
        for pixels, labels in self._loader(keys):
            with cudnn_autotuning(len(pixels) == self.local_batch_size):
                values = self._extract_features(pixels, _TRAIN_EXTRACTOR)
            yield values, labels.to(self._compute_config.device, non_blocking=True)

    def iter_val_batches(self) -> Iterator[Batch]:
        """Yield the validation images through the float32 extractor."""
        return self._iter_in_order(self._val_indices)

    def iter_train_eval_batches(self) -> Iterator[Batch]:
        """Yield the training images in order, without augmentation, through the same extractor."""
        return self._iter_in_order(self._train_indices)

    def _iter_in_order(self, indices: Sequence[int]) -> Iterator[Batch]:
        batches = self._loader.iter_eval_batches(self._sampler.shard(indices), _EVAL_BATCH_SIZE)
        for pixels, labels in batches:
            values = self._extract_features(pixels, _VAL_EXTRACTOR)
            yield values, labels.to(self._compute_config.device, non_blocking=True)

    def _extract_features(self, pixels: Tensor, extractor: int) -> Tensors:
        inputs = self._compute_config.to_model_input(pixels, self._preprocessing)
        if self._extractors is None:
            return (inputs,)
        return tuple(value.float() for value in self._extractors[extractor](inputs))


_EVAL_BATCH_SIZE = 64
_TRAIN_EXTRACTOR = 0
_VAL_EXTRACTOR = 1

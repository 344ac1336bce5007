"""Images to batches: one pool of workers for training, validation and final evaluation.

A key (epoch, index) travels to the worker, so that persistent workers know the epoch without being told. Batches cross processes as uint8
[batch, S, S, 3]: a quarter of the bytes, and channels last without a copy.
"""

from __future__ import annotations

import math
import signal
from collections.abc import Iterator, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from edgetl.core.preprocessing import Preprocessing
from edgetl.device.images import load_image
from edgetl.device.preprocessing import resize_and_crop
from edgetl.train.augmentation import Augmentation
from edgetl.train.splits import SplitRow

Key = tuple[int | None, int]
"""(epoch, index of the image); without an epoch: evaluation's preprocessing."""


class Images(Dataset[tuple[Tensor, int]]):
    """Decodes one image and gives its view: augmented for an epoch of training, plain for evaluation."""

    def __init__(self, rows: Sequence[SplitRow], labels: Sequence[str], augmentation: Augmentation, preprocessing: Preprocessing) -> None:
        self._files = [(row.path, labels.index(row.label)) for row in rows]
        self._augmentation = augmentation
        self._preprocessing = preprocessing

    def __getitem__(self, key: Key) -> tuple[Tensor, int]:
        """(uint8 [S, S, 3], label)."""
        epoch, index = key
        path, label = self._files[index]
        image = load_image(path)
        view = resize_and_crop(image, self._preprocessing) if epoch is None else self._augmentation(image, epoch, index)
        return torch.from_numpy(np.array(view)), label

    def __len__(self) -> int:
        """Images, of training and validation together."""
        return len(self._files)


class _Plan(Sampler[list[Key]]):
    # The loader asks for its batches anew in every pass; what they are is set just before.
    def __init__(self) -> None:
        self.batches: list[list[Key]] = []

    def __iter__(self) -> Iterator[list[Key]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class Loader:
    """Batches of (uint8 [batch, S, S, 3], int64 [batch])."""

    def __init__(self, images: Images, batch_size: int, workers: int, seed: int, pin_memory: bool) -> None:
        self._plan = _Plan()
        self._batch_size = batch_size
        self._seed = seed
        self._loader: DataLoader[Any] = DataLoader(
            images,
            batch_sampler=self._plan,
            num_workers=workers,
            persistent_workers=workers > 0,
            worker_init_fn=_prepare_worker if workers else None,
            prefetch_factor=4 if workers else None,
            pin_memory=pin_memory,
        )

    def training(self, indices: Sequence[int], epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The images once, augmented, in an order that depends on (seed, epoch) only."""
        order = np.random.default_rng([self._seed, epoch]).permutation(len(indices))
        self._plan.batches = batches([(epoch, indices[position]) for position in order], self._batch_size)
        return iter(self._loader)

    def evaluation(self, indices: Sequence[int]) -> Iterator[tuple[Tensor, Tensor]]:
        """The images once, in order, as the device will see them."""
        self._plan.batches = batches([(None, index) for index in indices], self._batch_size)
        return iter(self._loader)


def batches(keys: list[Key], size: int) -> list[list[Key]]:
    """Cut into batches; one image left over joins the batch before it, since a batch of one has no statistics."""
    cut = [keys[start : start + size] for start in range(0, len(keys), size)]
    if size > 1 and len(cut) > 1 and len(cut[-1]) == 1:
        cut[-2:] = [cut[-2] + cut[-1]]
    return cut


def default_workers(images: int, cores: int) -> int:
    """A worker for each core that training leaves free; none where starting them costs more than they save."""
    return 0 if images < 64 else min(cores, 8, math.ceil(images / 32))


def _prepare_worker(_worker: int) -> None:
    # Ctrl-C reaches the whole process group; only the process that trains should answer it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(0)
    torch.set_num_threads(1)

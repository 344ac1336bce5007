"""Image loader: batches of views, computed in worker processes or on threads.

A key (view, index) identifies an image and its augmentation; the pixels do not depend on who
computes them. Batches are uint8 [batch, S, S, 3]: a quarter of the bytes of float32 to copy to a
GPU, and channels last without a copy.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from edgetl.core.artifacts.split import SplitEntry
from edgetl.core.errors import DecodeError
from edgetl.core.preprocessing import Preprocessing
from edgetl.device.hardware.cpu import available_cores
from edgetl.device.runtime.preprocessing import resize_and_crop
from edgetl.train.data.augmentation import Augmentation
from edgetl.train.data.decoded_cache import DecodedImageCache

_GRACE_S = 20
"""Seconds that a worker keeps running after SIGTERM or SIGHUP."""

ViewKey = tuple[int | None, int]
"""(view, index of the image); the view None is the preprocessing of evaluation."""


class ImageDataset(Dataset[tuple[Tensor, int]]):
    """Data set of views: augmented for training, or preprocessed as for inference."""

    def __init__(
        self,
        entries: Sequence[SplitEntry],
        labels: Sequence[str],
        augmentation: Augmentation,
        preprocessing: Preprocessing,
        decoded_cache: DecodedImageCache,
    ) -> None:
        label_indices = {label: index for index, label in enumerate(labels)}
        self._files = [(entry.path, label_indices[entry.label]) for entry in entries]
        self._augmentation = augmentation
        self._preprocessing = preprocessing
        self._decoded_cache = decoded_cache

    def __getitem__(self, key: ViewKey) -> tuple[Tensor, int]:
        """Return (uint8 [S, S, 3], label)."""
        return torch.from_numpy(np.array(self.load_view(key))), self._files[key[1]][1]

    def load_view(self, key: ViewKey) -> NDArray[np.uint8]:
        """Return a view as uint8 [S, S, 3]."""
        view, index = key
        path = self._files[index][0]
        if view is None:
            return resize_and_crop(self._decoded_cache.load_full(path), self._preprocessing)
        return self._augmentation(self._decoded_cache[path], view, index)

    def fill_decoded_cache(self) -> None:
        """Fill the cache of decoded images on all cores.

        Worker processes that are started afterwards share it.
        """
        with ThreadPoolExecutor(available_cores()) as pool:
            for _ in pool.map(self._decoded_cache.preload, [path for path, _ in self._files]):
                pass

    def stop_caching(self) -> None:
        """Stop caching decoded images in this process."""
        self._decoded_cache.stop_caching()

    def path(self, index: int) -> Path:
        """Return the path of an image."""
        return self._files[index][0]

    @property
    def decoded_cache(self) -> DecodedImageCache:
        """Cache of decoded images of this process."""
        return self._decoded_cache

    @property
    def augmentation(self) -> Augmentation:
        """Augmentation of the views."""
        return self._augmentation

    def labels(self, indices: Sequence[int]) -> Tensor:
        """Return the label indices of images, int64 [images]."""
        return torch.tensor([self._files[index][1] for index in indices], dtype=torch.int64)

    def __len__(self) -> int:
        """Return the number of images, training and validation together."""
        return len(self._files)


class _ListBatchSampler(Sampler[list[ViewKey]]):
    # DataLoader iterates over its sampler in every epoch; the batches are set just before.
    def __init__(self) -> None:
        self.batches: list[list[ViewKey]] = []

    def __iter__(self) -> Iterator[list[ViewKey]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class ImageLoader:
    """Loader of batches (uint8 [batch, S, S, 3], int64 [batch])."""

    def __init__(self, images: ImageDataset, workers: int, pin_memory: bool = False) -> None:
        """Start a loader.

        Args:
            images: the images.
            workers: number of worker processes. With 0, threads prepare each batch while training
                waits, so that each core has one busy thread.
            pin_memory: whether batches are in pinned memory.
        """
        self.images = images
        self._batch_sampler = _ListBatchSampler()
        self._data_loader: DataLoader[Any] | None = None
        self._workers_started = False
        self._pool = None if workers else ThreadPoolExecutor(available_cores())
        if workers:
            self._data_loader = DataLoader(
                images,
                batch_sampler=self._batch_sampler,
                num_workers=workers,
                persistent_workers=True,
                # Forked workers share the decoded images. forkserver, the default on Linux since
                # Python 3.14, would pickle all of them for each worker. Forking after CUDA was
                # initialized is safe as long as workers do not use CUDA, and they only decode.
                multiprocessing_context="fork" if sys.platform == "linux" else None,
                worker_init_fn=_init_worker,
                prefetch_factor=4,
                pin_memory=pin_memory,
                # Otherwise every epoch would use the generator of dropout, and the number of
                # workers would change the result.
                generator=torch.Generator(),
            )

    def __call__(self, batches: Sequence[Sequence[ViewKey]]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches in order.

        Raises:
            DecodeError: see `load_image`; or if a file has changed.
        """
        if self._data_loader is not None:
            if not self._workers_started:
                self.images.fill_decoded_cache()
                self._workers_started = True
            self._batch_sampler.batches = [list(batch) for batch in batches]
            try:
                yield from self._data_loader
            except DecodeError as cause:
                # PyTorch prepends the worker's traceback to the message.
                raise DecodeError(str(cause).strip().rpartition("DecodeError: ")[2]) from cause
            return
        assert self._pool is not None
        for batch in batches:
            views = list(self._pool.map(self.images.load_view, batch))
            yield (
                torch.from_numpy(np.stack(views)),
                self.images.labels([index for _, index in batch]),
            )

    def iter_eval_batches(
        self, indices: Sequence[int], batch_size: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the images in order, preprocessed as for inference on the device."""
        return self(group_into_batches([(None, index) for index in indices], batch_size))


def group_into_batches(
    keys: Sequence[ViewKey], size: int, min_size: int = 2
) -> list[list[ViewKey]]:
    """Split keys into batches.

    A last batch with fewer than `min_size` images is merged into the previous one, since BatchNorm
    needs more than one image.
    """
    batches = [list(keys[start : start + size]) for start in range(0, len(keys), size)]
    if size >= min_size and len(batches) > 1 and len(batches[-1]) < min_size:
        batches[-2:] = [batches[-2] + batches[-1]]
    return batches


def default_workers(images: int, cores: int, device: str) -> int:
    """Return the default number of worker processes.

    On a GPU it is the number of cores without the one that trains, at most 16. On a CPU training
    uses every core, and small data sets need no workers: 0.
    """
    if device == "cpu" or images < 64:
        return 0
    return max(1, min(cores - 1, 16))


def _init_worker(_worker: int) -> None:
    # Ctrl-C is sent to the whole process group, but only the training process handles it. A
    # connection that it closes is not an error.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Batch systems send these to every process of a job, but the training process needs the
    # workers until it has finished its batch and written a checkpoint.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _exit_later)
    sys.excepthook = _ignore_lost_connections
    torch.set_num_threads(1)
    info = get_worker_info()
    if info is not None and isinstance(info.dataset, ImageDataset):
        info.dataset.stop_caching()


def _exit_later(_number: int, _frame: FrameType | None) -> None:
    signal.alarm(_GRACE_S)


def _ignore_lost_connections(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    if not isinstance(error, (ConnectionError, EOFError)):
        sys.__excepthook__(kind, error, trace)

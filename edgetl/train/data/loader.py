"""Images to batches of views, in worker processes or on the threads of this one; the pixels are the same.

A key (view, index) says all: which image, and how it is augmented. Batches are uint8 [batch, S, S, 3]: a quarter of the bytes on the way
to a GPU, and channels last without a copy.
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

from edgetl.core.errors import DecodeError
from edgetl.core.preprocessing import Preprocessing
from edgetl.device.hardware.cpu import available_cores
from edgetl.device.runtime.preprocessing import resize_and_crop
from edgetl.train.data.augmentation import Augmentation
from edgetl.train.data.decoded_cache import DecodedImageCache
from edgetl.train.data.splits import SplitEntry

_GRACE_S = 20
"""Seconds that a worker goes on after SIGTERM or SIGHUP."""

ViewKey = tuple[int | None, int]
"""(view, index of the image); view None is evaluation's preprocessing."""


class ImageDataset(Dataset[tuple[Tensor, int]]):
    """Decodes one image and gives one view of it: augmented for training, or as the device will see it."""

    def __init__(
        self,
        rows: Sequence[SplitEntry],
        labels: Sequence[str],
        augmentation: Augmentation,
        preprocessing: Preprocessing,
        decoded: DecodedImageCache,
    ) -> None:
        number = {label: index for index, label in enumerate(labels)}
        self._files = [(row.path, number[row.label]) for row in rows]
        self._augmentation = augmentation
        self._preprocessing = preprocessing
        self._decoded_cache = decoded

    def __getitem__(self, key: ViewKey) -> tuple[Tensor, int]:
        """(uint8 [S, S, 3], label)."""
        return torch.from_numpy(np.array(self.load_view(key))), self._files[key[1]][1]

    def load_view(self, key: ViewKey) -> NDArray[np.uint8]:
        """uint8 [S, S, 3]."""
        view, index = key
        path = self._files[index][0]
        if view is None:
            return resize_and_crop(self._decoded_cache.load_full(path), self._preprocessing)
        return self._augmentation(self._decoded_cache[path], view, index)

    def fill_decoded_cache(self) -> None:
        """Decode as much as is kept, on all cores: before worker processes begin, which then share it."""
        with ThreadPoolExecutor(available_cores()) as pool:
            for _ in pool.map(self._decoded_cache.preload, [path for path, _ in self._files]):
                pass

    def stop_caching(self) -> None:
        """Keep no more decoded images in this process."""
        self._decoded_cache.stop_caching()

    def path(self, index: int) -> Path:
        """The file of an image."""
        return self._files[index][0]

    @property
    def decoded_cache(self) -> DecodedImageCache:
        """The decoded images of this process."""
        return self._decoded_cache

    @property
    def augmentation(self) -> Augmentation:
        """What makes the views."""
        return self._augmentation

    def labels(self, indices: Sequence[int]) -> Tensor:
        """int64 [images]."""
        return torch.tensor([self._files[index][1] for index in indices], dtype=torch.int64)

    def __len__(self) -> int:
        """Images, of training and validation together."""
        return len(self._files)


class _ListBatchSampler(Sampler[list[ViewKey]]):
    # The loader asks for its batches anew in every pass; what they are is set just before.
    def __init__(self) -> None:
        self.batches: list[list[ViewKey]] = []

    def __iter__(self) -> Iterator[list[ViewKey]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class ImageLoader:
    """Batches of (uint8 [batch, S, S, 3], int64 [batch])."""

    def __init__(self, images: ImageDataset, workers: int, pin_memory: bool = False) -> None:
        """Without workers the threads of a pool prepare a batch while nothing else runs, so that there is one busy thread a core."""
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
                # Workers share the decoded images as they are; forkserver, Linux's default from Python 3.14 on, would pickle all of them
                # for each worker. Forking after CUDA has begun is sound as long as workers never touch CUDA, and they only decode.
                multiprocessing_context="fork" if sys.platform == "linux" else None,
                worker_init_fn=_init_worker,
                prefetch_factor=4,
                pin_memory=pin_memory,
                # Its own, or every pass would draw from the generator that dropout uses, and workers would change the result.
                generator=torch.Generator(),
            )

    def __call__(self, batches: Sequence[Sequence[ViewKey]]) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches, in order."""
        if self._data_loader is not None:
            if not self._workers_started:
                self.images.fill_decoded_cache()
                self._workers_started = True
            self._batch_sampler.batches = [list(batch) for batch in batches]
            try:
                yield from self._data_loader
            except DecodeError as cause:
                # PyTorch puts the worker's traceback before what it said.
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
        """The images once, in order, as the device will see them."""
        return self(group_into_batches([(None, index) for index in indices], batch_size))


def group_into_batches(keys: Sequence[ViewKey], size: int, least: int = 2) -> list[list[ViewKey]]:
    """Cut into batches; fewer than `least` images left over join the batch before them, since a batch of one has no statistics."""
    cut = [list(keys[start : start + size]) for start in range(0, len(keys), size)]
    if size >= least and len(cut) > 1 and len(cut[-1]) < least:
        cut[-2:] = [cut[-2] + cut[-1]]
    return cut


def default_workers(images: int, cores: int, device: str) -> int:
    """Processes beside the one that trains: the cores that a GPU leaves free; none on a CPU, where training takes every core itself."""
    return 0 if device == "cpu" or images < 64 else max(1, min(cores - 1, 16))


def _init_worker(_worker: int) -> None:
    # Ctrl-C reaches the whole process group; only the process that trains should answer it, and what it no longer takes is no error.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Batch systems send these to every process of a job: the training process needs the workers
    # until it has finished its batch and written a checkpoint.
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

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
from edgetl.train.common.precision import copy_to_device
from edgetl.train.data.augmentation import Augmentation
from edgetl.train.data.decoded_cache import DecodedImages
from edgetl.train.data.gpu_loader import DeviceLoader
from edgetl.train.data.splits import SplitRow

_GRACE_S = 20
"""Seconds that a worker goes on after SIGTERM or SIGHUP."""

Key = tuple[int | None, int]
"""(view, index of the image); view None is evaluation's preprocessing."""


class Images(Dataset[tuple[Tensor, int]]):
    """Decodes one image and gives one view of it: augmented for training, or as the device will see it."""

    def __init__(
        self,
        rows: Sequence[SplitRow],
        labels: Sequence[str],
        augmentation: Augmentation,
        preprocessing: Preprocessing,
        decoded: DecodedImages,
    ) -> None:
        number = {label: index for index, label in enumerate(labels)}
        self._files = [(row.path, number[row.label]) for row in rows]
        self._augmentation = augmentation
        self._preprocessing = preprocessing
        self._decoded = decoded

    def __getitem__(self, key: Key) -> tuple[Tensor, int]:
        """(uint8 [S, S, 3], label)."""
        return torch.from_numpy(np.array(self.view(key))), self._files[key[1]][1]

    def view(self, key: Key) -> NDArray[np.uint8]:
        """uint8 [S, S, 3]."""
        view, index = key
        path = self._files[index][0]
        if view is None:
            return resize_and_crop(self._decoded.full(path), self._preprocessing)
        return self._augmentation(self._decoded[path], view, index)

    def decode_ahead(self) -> None:
        """Decode as much as is kept, on all cores: before worker processes begin, which then share it."""
        with ThreadPoolExecutor(available_cores()) as pool:
            for _ in pool.map(self._decoded.warm, [path for path, _ in self._files]):
                pass

    def seal(self) -> None:
        """Keep no more decoded images in this process."""
        self._decoded.seal()

    def path(self, index: int) -> Path:
        """The file of an image."""
        return self._files[index][0]

    @property
    def decoded(self) -> DecodedImages:
        """The decoded images of this process."""
        return self._decoded

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

    def __init__(self, images: Images, workers: int, pin_memory: bool = False) -> None:
        """Without workers the threads of a pool prepare a batch while nothing else runs, so that there is one busy thread a core."""
        self.images = images
        self._plan = _Plan()
        self._workers: DataLoader[Any] | None = None
        self._begun = False
        self._pool = None if workers else ThreadPoolExecutor(available_cores())
        if workers:
            self._workers = DataLoader(
                images,
                batch_sampler=self._plan,
                num_workers=workers,
                persistent_workers=True,
                # Workers share the decoded images as they are; forkserver, Linux's default from Python 3.14 on, would pickle all of them
                # for each worker. Forking after CUDA has begun is sound as long as workers never touch CUDA, and they only decode.
                multiprocessing_context="fork" if sys.platform == "linux" else None,
                worker_init_fn=_prepare_worker,
                prefetch_factor=4,
                pin_memory=pin_memory,
                # Its own, or every pass would draw from the generator that dropout uses, and workers would change the result.
                generator=torch.Generator(),
            )

    def __call__(self, batches: Sequence[Sequence[Key]]) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches, in order."""
        if self._workers is not None:
            if not self._begun:
                self.images.decode_ahead()
                self._begun = True
            self._plan.batches = [list(batch) for batch in batches]
            try:
                yield from self._workers
            except DecodeError as cause:
                # PyTorch puts the worker's traceback before what it said.
                raise DecodeError(str(cause).strip().rpartition("DecodeError: ")[2]) from cause
            return
        assert self._pool is not None
        for batch in batches:
            views = list(self._pool.map(self.images.view, batch))
            yield (
                torch.from_numpy(np.stack(views)),
                self.images.labels([index for _, index in batch]),
            )

    def evaluation(
        self, indices: Sequence[int], batch_size: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The images once, in order, as the device will see them."""
        return self(cut_batches([(None, index) for index in indices], batch_size))


def cut_batches(keys: Sequence[Key], size: int, least: int = 2) -> list[list[Key]]:
    """Cut into batches; fewer than `least` images left over join the batch before them, since a batch of one has no statistics."""
    cut = [list(keys[start : start + size]) for start in range(0, len(keys), size)]
    if size >= least and len(cut) > 1 and len(cut[-1]) < least:
        cut[-2:] = [cut[-2] + cut[-1]]
    return cut


def default_workers(images: int, cores: int, device: str) -> int:
    """Processes beside the one that trains: the cores that a GPU leaves free; none on a CPU, where training takes every core itself."""
    return 0 if device == "cpu" or images < 64 else max(1, min(cores - 1, 16))


def _prepare_worker(_worker: int) -> None:
    # Ctrl-C reaches the whole process group; only the process that trains should answer it, and what it no longer takes is no error.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Batch systems send these to every process of a job: the training process needs the workers
    # until it has finished its batch and written a checkpoint.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _exit_later)
    sys.excepthook = _ignore_lost_connections
    torch.set_num_threads(1)
    info = get_worker_info()
    if info is not None and isinstance(info.dataset, Images):
        info.dataset.seal()


def _exit_later(_number: int, _frame: FrameType | None) -> None:
    signal.alarm(_GRACE_S)


def _ignore_lost_connections(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    if not isinstance(error, (ConnectionError, EOFError)):
        sys.__excepthook__(kind, error, trace)


class ResidentViews:
    """A loader in front of a loader: gives the same batches, from the device's memory where it has them."""

    def __init__(
        self,
        loader: Loader | DeviceLoader,
        groups: Sequence[Sequence[Key]],
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
        loaded = iter(
            self._loader([batch for batch, found in zip(batches, there, strict=True) if not found])
        )
        for batch, found, rows in zip(batches, there, self._upload_rows(batches), strict=True):
            if found:
                assert rows is not None
                yield self._pixels.index_select(0, rows), self._labels.index_select(0, rows)
            else:
                yield self._kept(batch, rows, *next(loaded))

    def evaluation(
        self, indices: Sequence[int], batch_size: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The images once, in order, as the device will see them."""
        return self(cut_batches([(None, index) for index in indices], batch_size))

    def _upload_rows(self, batches: Sequence[Sequence[Key]]) -> list[Tensor | None]:
        """The rows of each batch, int64 [batch] on the device; None for a batch that is not kept.

        One upload for the whole pass: a copy from pageable memory in every step would make the host
        wait for the device.
        """
        is_kept = [all(key in self._row for key in batch) for batch in batches]
        kept = [batch for batch, keep in zip(batches, is_kept, strict=True) if keep]
        if not kept:
            return [None] * len(batches)
        rows = torch.tensor([self._row[key] for batch in kept for key in batch], dtype=torch.int64)
        uploaded = iter(
            torch.split(copy_to_device(rows, self._device), [len(batch) for batch in kept])
        )
        return [next(uploaded) if keep else None for keep in is_kept]

    def _kept(
        self, batch: Sequence[Key], rows: Tensor | None, pixels: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        pixels, labels = (
            pixels.to(self._device, non_blocking=True),
            labels.to(self._device, non_blocking=True),
        )
        if rows is not None:
            self._pixels.index_copy_(0, rows, pixels)
            self._labels.index_copy_(0, rows, labels)
            self._there.update(batch)
        return pixels, labels

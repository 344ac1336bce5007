"""Batches of augmented views made on the device, behind the same interface as `Loader`."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from edgetl.device.hardware.cpu import available_cores
from edgetl.train.common.precision import copy_to_device
from edgetl.train.data.gpu_augmentation import augment
from edgetl.train.data.gpu_images import DeviceImageCache, HostImage
from edgetl.train.data.loader import ImageLoader, ViewKey, group_into_batches
from edgetl.train.data.view_parameters import ViewParameters, ViewSampler

_PREFETCH_BATCHES = 2
"""Batches that threads read and draw parameters for while the device works on an earlier one."""


class DeviceLoader:
    """Makes training views on the device; evaluation's views come from the loader on the CPU."""

    def __init__(
        self, loader: ImageLoader, images: DeviceImageCache, side: int, device: torch.device
    ) -> None:
        """Take views of side x side pixels.

        Raises:
            ConfigError: the loader's augmentation has no counterpart on the device.
        """
        self._loader = loader
        self._images = images
        self._side = side
        self._device = device
        self._sampler = ViewSampler(loader.images.augmentation, side)
        self._pool = ThreadPoolExecutor(min(8, available_cores()))

    def __call__(self, batches: Sequence[Sequence[ViewKey]]) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches, in order: (uint8 [batch, S, S, 3], int64 [batch]).

        Raises:
            DecodeError: see `load_image`, or a file has changed.
        """
        is_augmented = [all(view is not None for view, _ in batch) for batch in batches]
        loaded = iter(
            self._loader(
                [
                    batch
                    for batch, augmented in zip(batches, is_augmented, strict=True)
                    if not augmented
                ]
            )
        )
        prepared = self._prefetch(
            [batch for batch, augmented in zip(batches, is_augmented, strict=True) if augmented]
        )
        for batch, augmented in zip(batches, is_augmented, strict=True):
            yield self._make_views(batch, next(prepared)) if augmented else next(loaded)

    def iter_eval_batches(
        self, indices: Sequence[int], batch_size: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The images once, in order, preprocessed by the CPU as the exported model sees them."""
        return self(group_into_batches([(None, index) for index in indices], batch_size))

    def _prefetch(
        self, batches: Sequence[Sequence[ViewKey]]
    ) -> Iterator[list[tuple[HostImage, ViewParameters]]]:
        # The threads touch no device: a captured graph or the order of its stream cannot be disturbed.
        started: deque[list[Future[tuple[HostImage, ViewParameters]]]] = deque()
        waiting = iter(batches)
        try:
            while True:
                while (
                    len(started) <= _PREFETCH_BATCHES and (batch := next(waiting, None)) is not None
                ):
                    started.append([self._pool.submit(self._prepare, key) for key in batch])
                if not started:
                    return
                yield [future.result() for future in started.popleft()]
        finally:
            for futures in started:
                for future in futures:
                    future.cancel()

    def _prepare(self, key: ViewKey) -> tuple[HostImage, ViewParameters]:
        view, index = key
        assert view is not None
        image = self._images.read(self._loader.images.path(index))
        return image, self._sampler(image.height, image.width, view, index)

    def _make_views(
        self, batch: Sequence[ViewKey], prepared: Sequence[tuple[HostImage, ViewParameters]]
    ) -> tuple[Tensor, Tensor]:
        labels = self._loader.images.labels([index for _, index in batch])
        pixels = augment(
            self._images.load([image for image, _ in prepared]),
            [parameters for _, parameters in prepared],
            self._side,
        )
        return pixels, copy_to_device(labels, self._device)

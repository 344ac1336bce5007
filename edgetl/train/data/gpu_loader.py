"""Loader of augmented views that are computed on the device."""

from __future__ import annotations

import itertools
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
"""Batches that threads prepare while the device computes an earlier one."""


class DeviceLoader:
    """Loader of training views from the device, with the interface of `ImageLoader`.

    Views for evaluation come from the loader on the CPU.
    """

    def __init__(
        self, loader: ImageLoader, images: DeviceImageCache, side: int, device: torch.device
    ) -> None:
        """Create a loader of views of side x side pixels.

        Raises:
            ConfigError: if the loader's augmentation is not available on the device.
        """
        self._loader = loader
        self._images = images
        self._side = side
        self._device = device
        self._sampler = ViewSampler(loader.images.augmentation, side)
        self._pool = ThreadPoolExecutor(min(8, available_cores()))

    def __call__(self, batches: Sequence[Sequence[ViewKey]]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches in order: (uint8 [batch, S, S, 3], int64 [batch]).

        Raises:
            DecodeError: see `load_image`; or if a file has changed.
        """
        loaded = iter(self._loader([batch for batch in batches if not _is_augmented(batch)]))
        prepared = self._prefetch([batch for batch in batches if _is_augmented(batch)])
        for batch in batches:
            if _is_augmented(batch):
                yield self._make_views(batch, next(prepared))
            else:
                yield next(loaded)

    def iter_eval_batches(
        self, indices: Sequence[int], batch_size: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the images in order, preprocessed by the CPU as for the exported model."""
        return self(group_into_batches([(None, index) for index in indices], batch_size))

    def _prefetch(
        self, batches: Sequence[Sequence[ViewKey]]
    ) -> Iterator[list[tuple[HostImage, ViewParameters]]]:
        # The threads do not use the device, so they cannot disturb a captured graph or a stream.
        pending: deque[list[Future[tuple[HostImage, ViewParameters]]]] = deque()
        remaining = iter(batches)
        try:
            while True:
                for batch in itertools.islice(remaining, _PREFETCH_BATCHES + 1 - len(pending)):
                    pending.append([self._pool.submit(self._prepare, key) for key in batch])
                if not pending:
                    return
                yield [future.result() for future in pending.popleft()]
        finally:
            for futures in pending:
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


def _is_augmented(batch: Sequence[ViewKey]) -> bool:
    return all(view is not None for view, _ in batch)

"""Choice of the input device: decode and augment training images on the CPU or on the GPU."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from edgetl.core.artifacts.run_metrics import InputDeviceReport
from edgetl.core.config.finetune import InputDevice
from edgetl.train.common.autotune import cached_measurement
from edgetl.train.data.gpu_images import DeviceImageCache
from edgetl.train.data.gpu_loader import DeviceLoader
from edgetl.train.data.jpeg import BatchDecoder, decode_with_nvjpeg
from edgetl.train.data.loader import ImageLoader, ViewKey
from edgetl.train.features.cache import RunContext

_TIMED_BATCHES = 4
"""Batches timed on each path."""
_MEMORY_DIVISOR = 4
"""Divisor of the GPU's free memory for cached images; training and views need the rest."""


class _DeviceUnavailableError(Exception):
    """The device cannot prepare images on this machine."""


LoadBatches = Callable[[Sequence[Sequence[ViewKey]]], Iterator[tuple[Tensor, Tensor]]]


def choose_loader(
    context: RunContext,
    recorded: InputDevice | None = None,
    decoder: BatchDecoder = decode_with_nvjpeg,
) -> tuple[ImageLoader | DeviceLoader, InputDeviceReport | None]:
    """Choose the loader of training views; views for evaluation always come from the CPU.

    Args:
        context: the run.
        recorded: the choice of the run that is resumed or reproduced.
        decoder: decodes JPEG files on the device.

    Returns:
        The loader, and the choice; None if there is nothing to choose.
    """
    loader, compute_config = context.loader, context.compute_config
    input_device = recorded or context.config.input_device
    if input_device == "auto" and context.config.deterministic:
        # The two paths differ in rounding, so one is fixed: the CPU, which needs no extra library.
        input_device = "cpu"
    is_augmented = loader.images.augmentation.strength not in (None, "none")
    if compute_config.device.type != "cuda" or not is_augmented:
        return loader, None
    if input_device == "cpu":
        return loader, InputDeviceReport("cpu")
    device_loader, images = _build_device_loader(context, decoder)
    if input_device == "cuda":
        images.on_decoder_failure = context.progress.note
        return device_loader, InputDeviceReport("cuda")
    try:
        measured = cached_measurement(
            InputDeviceReport,
            _cache_key(context),
            lambda: _measure_rates(context, device_loader, images),
        )
    except _DeviceUnavailableError as cause:
        # Not cached: memory or a library may be available next time.
        measured = InputDeviceReport("cpu", refused=str(cause))
    choice = context.processes.broadcast(measured)
    context.progress.note(_describe(choice))
    images.on_decoder_failure = context.progress.note
    return (device_loader if choice.device == "cuda" else loader), choice


def _build_device_loader(
    context: RunContext, decoder: BatchDecoder
) -> tuple[DeviceLoader, DeviceImageCache]:
    device, loader = context.compute_config.device, context.loader
    free_bytes, _ = torch.cuda.mem_get_info(device)
    budget_bytes = free_bytes // _MEMORY_DIVISOR
    images = DeviceImageCache(loader.images.decoded_cache, device, budget_bytes, decoder)
    return DeviceLoader(loader, images, context.preprocessing.crop, device), images


def _cache_key(context: RunContext) -> dict[str, object]:
    content = json.dumps(context.feature_key["images"], sort_keys=True, default=str)
    return {
        "choice of": "input device",
        "device": context.compute_config.device_name,
        "batch_size": context.batch_size // context.processes.world_size,
        "size": context.preprocessing.crop,
        "augmentation": context.feature_key["augmentation"],
        "workers": context.config.workers,
        "cache_budget": context.cache_budget_bytes >> 30,
        "images": hashlib.sha256(content.encode()).hexdigest(),
        "versions": context.feature_key["versions"],
    }


def _measure_rates(
    context: RunContext, device_loader: DeviceLoader, images: DeviceImageCache
) -> InputDeviceReport:
    """Time both paths on batches spread over the training images; return the choice and rates.

    The device's rate is that of an epoch after the first, in which the images that do not fit into
    its cache are decoded again.

    Raises:
        _DeviceUnavailableError: if the device's path fails.
        DecodeError: see `load_image`.
    """
    train = list(context.train_indices)
    batch_size = max(1, min(len(train), context.batch_size // context.processes.world_size))
    num_images = _TIMED_BATCHES * batch_size
    sample = [train[position * len(train) // num_images] for position in range(num_images)]

    def keys(view: int) -> list[list[ViewKey]]:
        return [
            [(view, index) for index in sample[start : start + batch_size]]
            for start in range(0, num_images, batch_size)
        ]

    def measure_seconds(load: LoadBatches, batches: list[list[ViewKey]]) -> float:
        context.compute_config.synchronize()
        started = time.perf_counter()
        for _ in load(batches):
            pass
        context.compute_config.synchronize()
        return time.perf_counter() - started

    next(iter(context.loader(keys(1)[:1])))  # starts the workers
    rates = {"cpu": num_images / measure_seconds(context.loader, keys(2))}
    try:
        measure_seconds(device_loader, keys(1)[:1])  # loads kernels and the decoder
        decoding_s = measure_seconds(device_loader, keys(2)[1:] or keys(2))
        decoded_image_s = decoding_s / max(1, num_images - batch_size)
        cached_image_s = measure_seconds(device_loader, keys(3)) / num_images
    except RuntimeError as cause:
        reason = (str(cause).splitlines() or [type(cause).__name__])[0]
        raise _DeviceUnavailableError(f"the GPU path failed: {reason}") from cause
    if images.decoder_failure is not None:
        raise _DeviceUnavailableError(f"the GPU cannot decode JPEG files: {images.decoder_failure}")
    needed_bytes = len(train) * images.cached_bytes / max(1, len(set(sample)))
    cached_share = min(1.0, images.budget_bytes / max(1.0, needed_bytes))
    rates["cuda"] = 1 / (cached_share * cached_image_s + (1 - cached_share) * decoded_image_s)
    return InputDeviceReport("cuda" if rates["cuda"] > rates["cpu"] else "cpu", rates)


def _describe(choice: InputDeviceReport) -> str:
    rates = choice.images_per_second
    if rates is None:
        return f"Training images are prepared on the CPU ({choice.refused})."
    device = "GPU" if choice.device == "cuda" else "CPU"
    return (
        f"Training images are prepared on the {device}: measured {rates['cuda']:.0f} images/s on "
        f"the GPU, {rates['cpu']:.0f} on the CPU (--input-device)."
    )

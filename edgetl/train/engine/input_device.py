"""Where training images are decoded and augmented: on the CPU or on the GPU, by measurement unless the user says."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

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
"""The part of the GPU's free memory that images may take is 1 / this: training and resident views need the rest."""


class _DeviceUnavailableError(Exception):
    """Why the device cannot prepare images here."""


LoadBatches = Callable[[Sequence[Sequence[ViewKey]]], Iterator[tuple[Tensor, Tensor]]]


def choose_loader(
    materials: RunContext,
    earlier: InputDevice | None = None,
    decoder: BatchDecoder = decode_with_nvjpeg,
) -> tuple[ImageLoader | DeviceLoader, dict[str, Any]]:
    """Choose what makes the training views; evaluation's come from the CPU on both paths.

    Args:
        earlier: what is recorded of the run that is resumed or run again.
        decoder: decodes JPEG files on the device.

    Returns:
        The loader, and what was chosen for the run's report: `device` (cpu or cuda), and where they were
        measured `images_per_second` of each, or why the GPU was `refused`; empty where there is nothing to choose.
    """
    loader, computing = materials.loader, materials.compute_config
    asked = earlier or materials.config.input_device
    if asked == "auto" and materials.config.deterministic:
        # Both paths give the same views but for rounding: one of them, always, and workers are the one that needs no library.
        asked = "cpu"
    if computing.device.type != "cuda" or loader.images.augmentation.strength in (None, "none"):
        return loader, {}
    if asked == "cpu":
        return loader, {"device": "cpu"}
    device_loader, images = _build_device_loader(materials, decoder)
    if asked == "cuda":
        images.on_decoder_failure = materials.progress.note
        return device_loader, {"device": "cuda"}
    try:
        measured = cached_measurement(
            _cache_key(materials), lambda: _measure_rates(materials, device_loader, images)
        )
    except _DeviceUnavailableError as refusal:
        # Not remembered: memory or a library may be there the next time.
        measured = {"device": "cpu", "refused": str(refusal)}
    choice = materials.processes.broadcast(measured)
    materials.progress.note(_describe(choice))
    images.on_decoder_failure = materials.progress.note
    return (device_loader if choice["device"] == "cuda" else loader), choice


def _build_device_loader(
    materials: RunContext, decoder: BatchDecoder
) -> tuple[DeviceLoader, DeviceImageCache]:
    device, loader = materials.compute_config.device, materials.loader
    free, _ = torch.cuda.mem_get_info(device)
    images = DeviceImageCache(loader.images.decoded_cache, device, free // _MEMORY_DIVISOR, decoder)
    return DeviceLoader(loader, images, materials.preprocessing.crop, device), images


def _cache_key(materials: RunContext) -> dict[str, Any]:
    content = json.dumps(materials.feature_key["images"], sort_keys=True, default=str)
    return {
        "choice of": "input device",
        "device": materials.compute_config.device_name,
        "batch_size": materials.batch_size // materials.processes.world_size,
        "size": materials.preprocessing.crop,
        "augmentation": materials.feature_key["augmentation"],
        "workers": materials.config.workers,
        "cache_budget": materials.cache_budget_bytes >> 30,
        "images": hashlib.sha256(content.encode()).hexdigest(),
        "versions": materials.feature_key["versions"],
    }


def _measure_rates(
    materials: RunContext, device_loader: DeviceLoader, images: DeviceImageCache
) -> dict[str, Any]:
    """Time both paths on batches spread over the training images: the choice and the rates.

    The device's rate is that of an epoch after the first, with as many images decoded anew as do not fit.

    Raises:
        _DeviceRefusalError: the device's path fails.
        DecodeError: see `load_image`.
    """
    train = list(materials.train_indices)
    size = max(1, min(len(train), materials.batch_size // materials.processes.world_size))
    spread = [
        train[at * len(train) // (_TIMED_BATCHES * size)] for at in range(_TIMED_BATCHES * size)
    ]
    timed = len(spread)

    def keys(view: int) -> list[list[ViewKey]]:
        return [[(view, index) for index in spread[at : at + size]] for at in range(0, timed, size)]

    def seconds(load: LoadBatches, batches: list[list[ViewKey]]) -> float:
        materials.compute_config.synchronize()
        started = time.perf_counter()
        for _ in load(batches):
            pass
        materials.compute_config.synchronize()
        return time.perf_counter() - started

    next(iter(materials.loader(keys(1)[:1])))  # starts the workers
    rates = {"cpu": timed / seconds(materials.loader, keys(2))}
    try:
        seconds(device_loader, keys(1)[:1])  # loads kernels and the decoder
        decoding = seconds(device_loader, keys(2)[1:] or keys(2)) / max(1, timed - size)
        resident = seconds(device_loader, keys(3)) / timed
    except RuntimeError as cause:
        reason = (str(cause).splitlines() or [type(cause).__name__])[0]
        raise _DeviceUnavailableError(f"the GPU path failed: {reason}") from cause
    if images.decoder_failure is not None:
        raise _DeviceUnavailableError(f"the GPU cannot decode JPEG files: {images.decoder_failure}")
    needed = len(train) * images.cached_bytes / max(1, len(set(spread)))
    kept = min(1.0, images.budget_bytes / max(1.0, needed))
    rates["cuda"] = 1 / (kept * resident + (1 - kept) * decoding)
    return {"device": max(rates, key=lambda name: rates[name]), "images_per_second": rates}


def _describe(choice: dict[str, Any]) -> str:
    if "refused" in choice:
        return f"Training images are prepared on the CPU ({choice['refused']})."
    rates = choice["images_per_second"]
    place = "GPU" if choice["device"] == "cuda" else "CPU"
    return (
        f"Training images are prepared on the {place}: measured {rates['cuda']:.0f} images/s on the GPU, "
        f"{rates['cpu']:.0f} on the CPU (--input-device)."
    )

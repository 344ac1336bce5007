"""Training images as uint8 on the device: decoded in the first pass and kept within a budget."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgetl.core.errors import DecodeError
from edgetl.device.runtime.images import read_image_file
from edgetl.train.common.precision import copy_to_device
from edgetl.train.data.decoded_cache import DecodedImageCache
from edgetl.train.data.jpeg import (
    BatchDecoder,
    JpegHeader,
    decode_with_nvjpeg,
    read_header,
    reduce_image,
    to_tensors,
)

_DECODER_ERRORS = (RuntimeError, ImportError, AttributeError, OSError, ValueError)
"""What a decoder raises for a file it cannot decode, or where its library or operator is missing."""
_MAX_DECODED_BYTES = 256 * 2**20
"""Pixels that one call of the decoder gives at most: 64 photos of 12 megapixels would take 2.3 GB at once."""


@dataclass(frozen=True)
class HostImage:
    """What the host knows of an image before it is on the device."""

    path: Path
    height: int
    """Pixels on the device, after any reduction."""
    width: int
    pixels: NDArray[np.uint8] | None = None
    """[height, width, 3], where the CPU has decoded it."""
    encoded: bytes | None = None
    """The file, where the device decodes it."""
    header: JpegHeader | None = None
    """Of the encoded file."""


class DeviceImageCache:
    """Images as uint8 [3, height, width] on a device, with as much detail as `DecodedImages` leaves."""

    def __init__(
        self,
        decoded: DecodedImageCache,
        device: torch.device,
        budget_bytes: int,
        decoder: BatchDecoder = decode_with_nvjpeg,
    ) -> None:
        """Keep nothing yet.

        Args:
            decoded: decodes on the CPU what the device's decoder should not or could not take.
            budget_bytes: device memory for images that are kept.
            decoder: decodes a batch of JPEG files on the device.
        """
        self._decoded_cache = decoded
        self._device = device
        self._budget = budget_bytes
        self.on_decoder_failure: Callable[[str], None] | None = None
        """Tells the user of a decoder that does not work."""
        self.decoder_failure: str | None = None
        """Why a whole batch could not be decoded by the device, file by file either; no more is tried then."""
        self._decoder: BatchDecoder | None = decoder
        self._images: dict[Path, Tensor] = {}
        self._rejected: set[Path] = set()
        self._cached_bytes = 0

    @property
    def budget_bytes(self) -> int:
        """Device memory for images that are kept."""
        return self._budget

    @property
    def cached_bytes(self) -> int:
        """Device memory of the images that are kept."""
        return self._cached_bytes

    def read(self, path: Path) -> HostImage:
        """Read what the device needs of an image, decoded if the CPU must; safe to call from several threads.

        Raises:
            DecodeError: see `load_image`, or the file has changed.
        """
        image = self._images.get(path)
        if image is not None:
            return HostImage(path, image.shape[1], image.shape[2])
        if (
            self._decoded_cache.get_cached(path) is None
            and self._decoder is not None
            and path not in self._rejected
        ):
            encoded = _read_bytes(path)
            header = read_header(encoded)
            if header is not None:
                self._decoded_cache.check_unchanged(path)
                height, width = header.reduced_size(self._decoded_cache.min_side)
                return HostImage(path, height, width, encoded=encoded, header=header)
        return self._decode_on_cpu(path)

    def load(self, images: Sequence[HostImage]) -> list[Tensor]:
        """Bring images to the device and keep them while there is room.

        Returns:
            uint8 [3, height, width] each, of the sizes that `read` has told.

        Raises:
            DecodeError: a file that the device could not decode cannot be decoded by the CPU either.
        """
        decoded = self._decode(
            {
                image.path: image
                for image in images
                if image.encoded is not None and image.path not in self._images
            }
        )
        loaded = []
        for image in images:
            pixels = self._images.get(image.path)
            if pixels is None:
                pixels = decoded.get(image.path)
            if pixels is None:
                pixels = self._upload(image)
            self._add_to_cache(image.path, pixels)
            loaded.append(pixels)
        return loaded

    def _decode(self, images: dict[Path, HostImage]) -> dict[Path, Tensor]:
        decoded: dict[Path, Tensor] = {}
        for part in _split_into_chunks(list(images.values())):
            decoded.update(self._decode_part(part))
        return decoded

    def _decode_part(self, images: list[HostImage]) -> dict[Path, Tensor]:
        if self._decoder is None:
            return {}
        try:
            return self._run_decoder(self._decoder, images)
        except _DECODER_ERRORS as cause:
            failure = cause
        decoded: dict[Path, Tensor] = {}
        for image in images if len(images) > 1 else []:
            try:
                decoded.update(self._run_decoder(self._decoder, [image]))
            except _DECODER_ERRORS:
                self._rejected.add(image.path)
        if not decoded and len(images) > 1:
            self.decoder_failure = _summarize_error(failure)
            self._decoder = None
            if self.on_decoder_failure is not None:
                self.on_decoder_failure(
                    f"The GPU cannot decode JPEG files here ({self.decoder_failure}): the CPU decodes them."
                )
        self._rejected.update(image.path for image in images if image.path not in decoded)
        return decoded

    def _run_decoder(self, decoder: BatchDecoder, images: list[HostImage]) -> dict[Path, Tensor]:
        files = to_tensors([image.encoded for image in images if image.encoded is not None])
        decoded: dict[Path, Tensor] = {}
        for image, pixels in zip(images, decoder(files, self._device), strict=True):
            assert image.header is not None
            if pixels.shape != (3, image.header.height, image.header.width):
                raise ValueError(f"{image.path}: decoded to {tuple(pixels.shape)}.")
            decoded[image.path] = reduce_image(
                pixels, image.header.reduction_factor(self._decoded_cache.min_side)
            )
        return decoded

    def _decode_on_cpu(self, path: Path) -> HostImage:
        pixels = self._decoded_cache[path]
        return HostImage(path, pixels.shape[0], pixels.shape[1], pixels=pixels)

    def _upload(self, image: HostImage) -> Tensor:
        pixels = (
            image.pixels if image.pixels is not None else self._decode_on_cpu(image.path).pixels
        )
        host = torch.from_numpy(np.ascontiguousarray(pixels))
        return copy_to_device(host, self._device).permute(2, 0, 1).contiguous()

    def _add_to_cache(self, path: Path, pixels: Tensor) -> None:
        if path not in self._images and self._cached_bytes + pixels.nbytes <= self._budget:
            self._images[path] = pixels
            self._cached_bytes += pixels.nbytes


def _summarize_error(failure: Exception) -> str:
    first_line = (str(failure).splitlines() or [type(failure).__name__])[0]
    # PyTorch's C++ errors begin with the function, the file and its line.
    return re.sub(r"^.*\.(?:cpp|cu|h):\d+, ", "", first_line)


def _read_bytes(path: Path) -> bytes:
    try:
        return read_image_file(path)
    except DecodeError:
        # `load_image` meets the same and has the sentence for it.
        return b""


def _split_into_chunks(images: list[HostImage]) -> list[list[HostImage]]:
    parts: list[list[HostImage]] = []
    room = 0
    for image in images:
        assert image.header is not None
        needed = 3 * image.header.height * image.header.width
        if not parts or needed > room:
            parts.append([])
            room = _MAX_DECODED_BYTES
        parts[-1].append(image)
        room -= needed
    return parts

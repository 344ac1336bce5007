"""Cache of training images as uint8 on the device, filled in the first epoch within a budget."""

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
"""Errors of a decoder for an invalid file, or if its library or operator is missing."""
_MAX_DECODED_BYTES = 256 * 2**20
"""Maximum output of one decoder call: 64 photos of 12 megapixels would take 2.3 GB."""


@dataclass(frozen=True)
class HostImage:
    """Image before it is on the device."""

    path: Path
    height: int
    """Height on the device in pixels, after any reduction."""
    width: int
    pixels: NDArray[np.uint8] | None = None
    """[height, width, 3], if the CPU has decoded the file."""
    encoded: bytes | None = None
    """Content of the file, if the device decodes it."""
    header: JpegHeader | None = None
    """Header of the encoded file."""


class DeviceImageCache:
    """Cache of images as uint8 [3, height, width] on a device.

    Large images are reduced as in `DecodedImageCache`.
    """

    def __init__(
        self,
        decoded_cache: DecodedImageCache,
        device: torch.device,
        budget_bytes: int,
        decoder: BatchDecoder = decode_with_nvjpeg,
    ) -> None:
        """Create an empty cache.

        Args:
            decoded_cache: decodes on the CPU the images that the device cannot decode.
            device: the device.
            budget_bytes: device memory for cached images.
            decoder: decodes a batch of JPEG files on the device.
        """
        self._decoded_cache = decoded_cache
        self._device = device
        self._budget = budget_bytes
        self.on_decoder_failure: Callable[[str], None] | None = None
        """Called with a message for the user if the decoder does not work."""
        self.decoder_failure: str | None = None
        """Error of a batch of which the device could not decode any file; it is then given up."""
        self._decoder: BatchDecoder | None = decoder
        self._images: dict[Path, Tensor] = {}
        self._rejected: set[Path] = set()
        self._cached_bytes = 0

    @property
    def budget_bytes(self) -> int:
        """Device memory for cached images."""
        return self._budget

    @property
    def cached_bytes(self) -> int:
        """Device memory used by cached images."""
        return self._cached_bytes

    def read(self, path: Path) -> HostImage:
        """Read an image for the device, and decode it if the device cannot.

        It is safe to call from several threads.

        Raises:
            DecodeError: see `load_image`; or if the file has changed.
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
        """Load images onto the device, and cache them within the budget.

        Returns:
            uint8 [3, height, width] each, of the sizes returned by `read`.

        Raises:
            DecodeError: if neither the device nor the CPU can decode a file.
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
        for chunk in _split_into_chunks(list(images.values())):
            decoded.update(self._decode_chunk(chunk))
        return decoded

    def _decode_chunk(self, images: list[HostImage]) -> dict[Path, Tensor]:
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
                    f"The GPU cannot decode JPEG files ({self.decoder_failure}): the CPU decodes them."
                )
        self._rejected.update(image.path for image in images if image.path not in decoded)
        return decoded

    def _run_decoder(self, decoder: BatchDecoder, images: list[HostImage]) -> dict[Path, Tensor]:
        files = to_tensors([image.encoded for image in images if image.encoded is not None])
        decoded: dict[Path, Tensor] = {}
        for image, pixels in zip(images, decoder(files, self._device), strict=True):
            assert image.header is not None
            if pixels.shape != (3, image.header.height, image.header.width):
                raise ValueError(f"{image.path}: unexpected shape {tuple(pixels.shape)}.")
            decoded[image.path] = reduce_image(
                pixels, image.header.reduction_factor(self._decoded_cache.min_side)
            )
        return decoded

    def _decode_on_cpu(self, path: Path) -> HostImage:
        pixels = self._decoded_cache[path]
        return HostImage(path, pixels.shape[0], pixels.shape[1], pixels=pixels)

    def _upload(self, image: HostImage) -> Tensor:
        pixels = image.pixels
        if pixels is None:
            pixels = self._decode_on_cpu(image.path).pixels
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
        # `load_image` will raise the same error with its message.
        return b""


def _split_into_chunks(images: list[HostImage]) -> list[list[HostImage]]:
    chunks: list[list[HostImage]] = []
    free_bytes = 0
    for image in images:
        assert image.header is not None
        needed_bytes = 3 * image.header.height * image.header.width
        if not chunks or needed_bytes > free_bytes:
            chunks.append([])
            free_bytes = _MAX_DECODED_BYTES
        chunks[-1].append(image)
        free_bytes -= needed_bytes
    return chunks

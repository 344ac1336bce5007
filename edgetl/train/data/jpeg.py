"""JPEG files decoded by the GPU (nvJPEG through torchvision), and the rule for which files it may take."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from PIL import ExifTags, Image, JpegImagePlugin
from torch import Tensor
from torch.nn import functional

BatchDecoder = Callable[[list[Tensor], torch.device], list[Tensor]]
"""Encoded files, uint8 [bytes] each on the CPU, to uint8 [3, height, width] each on a device."""

_END_OF_IMAGE = b"\xff\xd9"
_CHROMA_SUBSAMPLINGS = frozenset({(1, 1), (2, 1), (1, 2), (2, 2), (4, 1)})
"""Horizontal and vertical factors of luma over chroma that nvJPEG lists: 4:4:4, 4:2:2, 4:4:0, 4:2:0, 4:1:1."""
_RGB_COMPONENTS = [ord(letter) for letter in "RGB"]


@dataclass(frozen=True)
class JpegHeader:
    """A JPEG file that the GPU may decode."""

    height: int
    """Pixels, as they are stored."""
    width: int

    def reduction_factor(self, least_side: int) -> int:
        """Divisor, 1 to 8, at which `load_image` with `least_side` would decode the file."""
        shorter = min(self.height, self.width)
        if shorter < 2 * least_side:
            return 1
        target = (self.width * least_side // shorter, self.height * least_side // shorter)
        largest = min(self.width // target[0], self.height // target[1])
        return next(scale for scale in (8, 4, 2, 1) if largest >= scale)

    def reduced_size(self, least_side: int) -> tuple[int, int]:
        """Height and width after reduction by `scale`."""
        scale = self.reduction_factor(least_side)
        return -(-self.height // scale), -(-self.width // scale)


def read_header(encoded: bytes) -> JpegHeader | None:
    """Read a file's header; None if the CPU must decode the file.

    The GPU gets complete 8-bit YCbCr files that stand upright, baseline or progressive: there `load_image`
    only decodes. What needs more (EXIF orientation, gray, CMYK, RGB components, several frames, other
    formats) or may be broken stays with `load_image`.
    """
    # A decoder for the GPU may fill up a file that was cut off; `load_image` refuses it.
    if not encoded.startswith(b"\xff\xd8") or not encoded.rstrip(b"\0").endswith(_END_OF_IMAGE):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(encoded)) as image:
                # A file of several frames (MPO) has a class and a format of its own.
                if not isinstance(image, JpegImagePlugin.JpegImageFile) or image.format != "JPEG":
                    return None
                if image.mode != "RGB" or not _is_ycbcr(image) or not _is_upright(image):
                    return None
                return JpegHeader(image.height, image.width)
    except Exception:  # a header too broken for Pillow: `load_image` says what is wrong
        return None


def _is_ycbcr(image: JpegImagePlugin.JpegImageFile) -> bool:
    components = [component[0] for component in image.layer]
    if image.info.get("adobe_transform", 1) != 1 or components == _RGB_COMPONENTS:
        return False
    luma, *chroma = [component[1:3] for component in image.layer]
    return tuple(luma) in _CHROMA_SUBSAMPLINGS and all(
        tuple(factors) == (1, 1) for factors in chroma
    )


def _is_upright(image: Image.Image) -> bool:
    try:
        return bool(image.getexif().get(ExifTags.Base.Orientation, 1) == 1)
    except Exception:
        # `load_image` takes a block that is too broken to read for upright.
        return True


def reduce_image(image: Tensor, scale: int) -> Tensor:
    """Average squares of `scale` pixels: uint8 [3, height, width] to [3, ceil(height/scale), ceil(width/scale)].

    The CPU leaves the same detail out in the JPEG's frequency domain.
    """
    if scale == 1:
        return image
    averaged = functional.avg_pool2d(image.float(), scale, ceil_mode=True)
    return averaged.round_().to(torch.uint8)


def decode_with_nvjpeg(encoded: list[Tensor], device: torch.device) -> list[Tensor]:
    """Decode a batch on the GPU; a `BatchDecoder`.

    Raises:
        RuntimeError: a file cannot be decoded, or torchvision was built without nvJPEG.
        ImportError: this torchvision has no JPEG decoder any more.
    """
    from torchvision.io import ImageReadMode, decode_jpeg

    # torchvision decodes on a stream of its own into memory of the current one, which may be in use until
    # the kernels queued here are done.
    torch.cuda.current_stream(device).synchronize()
    with warnings.catch_warnings():
        # Since torchvision 0.29 its decoders are deprecated in favor of TorchCodec's.
        warnings.simplefilter("ignore")
        decoded: list[Tensor] = decode_jpeg(encoded, mode=ImageReadMode.RGB, device=device)
    return decoded


def to_tensors(files: Sequence[bytes]) -> list[Tensor]:
    """Encoded files as a `BatchDecoder` takes them."""
    with warnings.catch_warnings():
        # The tensors are only read; the bytes behind them need not be writable.
        warnings.simplefilter("ignore")
        return [torch.frombuffer(encoded, dtype=torch.uint8) for encoded in files]

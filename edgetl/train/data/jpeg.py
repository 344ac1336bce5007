"""Decode JPEG files on the GPU (nvJPEG through torchvision), and check which files qualify."""

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
"""Horizontal and vertical luma factors that nvJPEG supports: 4:4:4, 4:2:2, 4:4:0, 4:2:0, 4:1:1."""
_RGB_COMPONENTS = [ord(letter) for letter in "RGB"]


@dataclass(frozen=True)
class JpegHeader:
    """Header of a JPEG file that the GPU can decode."""

    height: int
    """Height in pixels, as stored."""
    width: int

    def reduction_factor(self, min_side: int) -> int:
        """Return the divisor, 1 to 8, with which `load_image` would decode the file."""
        shorter_side = min(self.height, self.width)
        if shorter_side < 2 * min_side:
            return 1
        target_width = self.width * min_side // shorter_side
        target_height = self.height * min_side // shorter_side
        max_scale = min(self.width // target_width, self.height // target_height)
        return next(scale for scale in (8, 4, 2, 1) if max_scale >= scale)

    def reduced_size(self, min_side: int) -> tuple[int, int]:
        """Return the height and width after reduction."""
        scale = self.reduction_factor(min_side)
        return -(-self.height // scale), -(-self.width // scale)


def read_header(encoded: bytes) -> JpegHeader | None:
    """Read a file's header; None if the CPU must decode the file.

    The GPU decodes complete, upright 8-bit YCbCr files, baseline or progressive, for which
    `load_image` only decodes. All others (EXIF orientation, gray, CMYK, RGB components, several
    frames, other formats, possibly invalid files) are left to `load_image`.
    """
    # A GPU decoder may accept a truncated file; `load_image` rejects it.
    if not encoded.startswith(b"\xff\xd8") or not encoded.rstrip(b"\0").endswith(_END_OF_IMAGE):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(encoded)) as image:
                # A file with several frames (MPO) has another class and format.
                if not isinstance(image, JpegImagePlugin.JpegImageFile) or image.format != "JPEG":
                    return None
                if image.mode != "RGB" or not _is_ycbcr(image) or not _is_upright(image):
                    return None
                return JpegHeader(image.height, image.width)
    except Exception:  # invalid header: `load_image` raises an error with a message
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
        # `load_image` treats files with an invalid EXIF block as upright.
        return True


def reduce_image(image: Tensor, scale: int) -> Tensor:
    """Average squares of `scale` x `scale` pixels.

    The CPU removes the same detail in the frequency domain of the JPEG file.

    Args:
        image: uint8 [3, height, width].
        scale: side of the squares.

    Returns:
        uint8 [3, ceil(height / scale), ceil(width / scale)].
    """
    if scale == 1:
        return image
    averaged = functional.avg_pool2d(image.float(), scale, ceil_mode=True)
    return averaged.round_().to(torch.uint8)


def decode_with_nvjpeg(encoded: list[Tensor], device: torch.device) -> list[Tensor]:
    """Decode a batch on the GPU; a `BatchDecoder`.

    Raises:
        RuntimeError: if a file cannot be decoded, or torchvision was built without nvJPEG.
        ImportError: if this version of torchvision has no JPEG decoder.
    """
    from torchvision.io import ImageReadMode, decode_jpeg

    # torchvision decodes on a separate stream into memory of the current one, which may be in use
    # until the kernels queued there have finished.
    torch.cuda.current_stream(device).synchronize()
    with warnings.catch_warnings():
        # torchvision 0.29 deprecated its decoders in favor of TorchCodec.
        warnings.simplefilter("ignore")
        decoded: list[Tensor] = decode_jpeg(encoded, mode=ImageReadMode.RGB, device=device)
    return decoded


def to_tensors(files: Sequence[bytes]) -> list[Tensor]:
    """Convert encoded files to the input of a `BatchDecoder`."""
    with warnings.catch_warnings():
        # PyTorch warns that the bytes are not writable, but the tensors are only read.
        warnings.simplefilter("ignore")
        return [torch.frombuffer(encoded, dtype=torch.uint8) for encoded in files]

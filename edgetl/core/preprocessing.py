"""Preprocessing from a decoded image to the model's input tensor."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from edgetl.core.errors import ConfigError
from edgetl.core.typed_json import FieldError, JsonObject, in_json, parse_as, to_json

Interpolation = Literal["bilinear", "bicubic"]
"""Pillow's BILINEAR or BICUBIC, both of which antialias."""
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
MAX_RESIZE = 8192
"""Limit on the resized shorter side, pixels, so that a broken file cannot exhaust the memory.

A 4:3 photo of this size takes 270 MB.
"""

_REQUIRED = in_json(required=True)
"""Defaults are for new models; a file without a field must not be read as if it had them."""


@dataclass(frozen=True)
class Preprocessing:
    """Antialiased resize of the shorter side, center crop, scale to [0, 1], normalize.

    The geometry matches torchvision's `Resize` and `CenterCrop` on Pillow images to the pixel.
    """

    resize: int
    """Length of the shorter side after the resize, pixels."""
    crop: int
    """Side of the center crop, pixels; the model's input is [batch, 3, crop, crop]."""
    mean: tuple[float, float, float] = field(default=IMAGENET_MEAN, metadata=_REQUIRED)
    """Mean of each RGB channel on the scale [0, 1]."""
    std: tuple[float, float, float] = field(default=IMAGENET_STD, metadata=_REQUIRED)
    """Standard deviation of each RGB channel on the scale [0, 1]."""
    interpolation: Interpolation = field(default="bilinear", metadata=_REQUIRED)
    """Interpolation of the resize."""
    color: Literal["RGB"] = field(default="RGB", metadata=_REQUIRED)
    """Order of the color channels."""

    def __post_init__(self) -> None:
        if self.crop < 1 or self.resize < self.crop:
            raise ConfigError(
                "Preprocessing must have 1 <= crop <= resize, "
                f"got crop {self.crop} and resize {self.resize}."
            )
        if self.resize > MAX_RESIZE:
            raise ConfigError(
                f"Preprocessing must have resize <= {MAX_RESIZE} pixels, got {self.resize}."
            )
        if not min(self.std) > 0:
            raise ConfigError(f"Preprocessing must have std > 0, got {self.std}.")

    @classmethod
    def for_image_size(cls, size: int) -> Preprocessing:
        """Return the preprocessing for an input size, with the common resize ratio of 256 : 224."""
        return cls(resize=round(size * 256 / 224), crop=size)

    def compute_resized_size(self, height: int, width: int) -> tuple[int, int]:
        """Return (height, width) after the resize; the longer side is rounded down."""
        if height <= width:
            return self.resize, self.resize * width // height
        return self.resize * height // width, self.resize

    def compute_crop_offset(self, height: int, width: int) -> tuple[int, int]:
        """Return (top, left) of the center crop in a resized image; halves round to even."""
        return round((height - self.crop) / 2), round((width - self.crop) / 2)

    def to_json(self) -> JsonObject:
        """Return the object stored in config.json, bundle.json and the ONNX file's metadata."""
        return to_json(self)

    @classmethod
    def from_json(cls, content: object) -> Preprocessing:
        """Parse the output of `to_json`.

        Raises:
            ConfigError: A field is missing, unknown, invalid, or not supported by this version.
        """
        try:
            return parse_as(cls, content, "preprocessing")
        except FieldError as cause:
            raise ConfigError(
                f"Invalid or unsupported preprocessing: {cause}. A newer edgetl may support it."
            ) from cause

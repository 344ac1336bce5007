"""The preprocessing contract: the few numbers that say how a decoded image becomes the network's input."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from edgetl.core.errors import ConfigError
from edgetl.core.typed_json import FieldError, parse_as

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
MAX_RESIZE = 8192
"""Pixels of the shorter side: a photo of 4:3 then takes 270 MB. A file that says more would fill the memory."""


@dataclass(frozen=True)
class Preprocessing:
    """Antialiased bilinear resize of the shorter side, centre crop, scale to [0, 1], normalise.

    Geometry is that of torchvision's `Resize` and `CenterCrop` on Pillow images, to the pixel.
    """

    resize: int
    """Length of the shorter side after the resize, pixels."""
    crop: int
    """Side of the centre crop, pixels: the network's input is [batch, 3, crop, crop]."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    """Per RGB channel, on the scale [0, 1]."""
    std: tuple[float, float, float] = IMAGENET_STD
    """Per RGB channel, on the scale [0, 1]."""
    interpolation: Literal["bilinear"] = "bilinear"
    """Pillow's BILINEAR, which is antialiased."""

    def __post_init__(self) -> None:
        if self.crop < 1 or self.resize < self.crop:
            raise ConfigError(
                f"Preprocessing needs 1 <= crop <= resize, not crop {self.crop} and resize {self.resize}."
            )
        if self.resize > MAX_RESIZE:
            raise ConfigError(
                f"Preprocessing resizes to {MAX_RESIZE} pixels at most, not {self.resize}."
            )
        if not min(self.std) > 0:
            raise ConfigError(f"Preprocessing needs standard deviations above 0, not {self.std}.")

    @classmethod
    def for_image_size(cls, size: int) -> Preprocessing:
        """The classic ratio 256 : 224, for any input size."""
        return cls(resize=round(size * 256 / 224), crop=size)

    def compute_resized_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) after the resize; the longer side is rounded down."""
        if height <= width:
            return self.resize, self.resize * width // height
        return self.resize * height // width, self.resize

    def compute_crop_offset(self, height: int, width: int) -> tuple[int, int]:
        """(top, left) of the centre crop in an image already resized; halves go to the even neighbour."""
        return round((height - self.crop) / 2), round((width - self.crop) / 2)

    def to_json(self) -> dict[str, Any]:
        """As it stands in config.json, bundle.json and the ONNX file's metadata."""
        return {**asdict(self), "mean": list(self.mean), "std": list(self.std), "color": "RGB"}

    @classmethod
    def from_json(cls, content: Any) -> Preprocessing:
        """The inverse of `to_json`.

        Raises:
            ConfigError: a field is missing or means something that this version cannot do.
        """
        try:
            fields = parse_as(_PreprocessingFields, content, "preprocessing")
        except FieldError as cause:
            raise ConfigError(
                f"Broken or unknown preprocessing: {cause}. A newer edgetl may read it."
            ) from cause
        return cls(fields.resize, fields.crop, fields.mean, fields.std)


@dataclass(frozen=True)
class _PreprocessingFields:
    resize: int
    crop: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Literal["bilinear"]
    color: Literal["RGB"]

"""Explanation of a label: the part of the image that the network takes for evidence of it."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from edgetl.core.artifacts.confidence import describe_unknown, is_unknown_score
from edgetl.core.errors import DataError
from edgetl.core.paths import StrPath

_OKLAB_STOPS = (
    (0.30, 0.04, -0.14),
    (0.46, 0.14, -0.06),
    (0.63, 0.16, 0.08),
    (0.79, 0.06, 0.15),
    (0.95, -0.04, 0.15),
)
"""Colors from no evidence to the most: blue, purple, red, orange, yellow, in OKLab (L, a, b).

Lightness rises evenly, so that the order is also visible without hue.
"""
_LMS_FROM_OKLAB = np.array(
    [
        [1.0, 0.3963377774, 0.2158037573],
        [1.0, -0.1055613458, -0.0638541728],
        [1.0, -0.0894841775, -1.2914855480],
    ]
)
_RGB_FROM_LMS = np.array(
    [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ]
)
_MAX_OPACITY = 0.8
_PHOTO_BRIGHTNESS = 0.75
"""Factor of the gray photo under the colors, so that the brightest color stands out on white."""
_MIN_SIDE = 320
"""Smallest side of the photo in a drawing, in pixels; captions are readable at this size."""
_MARGIN, _FONT_SIZE = 6, 15


@dataclass(frozen=True, repr=False)
class Explanation:
    """Evidence for an image's best label, by location.

    It shows where the network finds evidence, not whether it is right.
    """

    label: str
    probability: float
    activation_map: NDArray[np.float32]
    """[h, w]: the label's logit minus the mean logit of all labels, which the classifier computes
    from the features of each location alone. Its mean over the locations is that of the image if
    the classifier is a single layer."""
    crop: NDArray[np.uint8]
    """Part of the image that the network saw, [S, S, 3]; the map covers all of it."""
    unknown_score: float | None = None
    """See `Prediction`; the label of an unknown image is the closest one."""

    def __repr__(self) -> str:
        height, width = self.activation_map.shape
        return f"Explanation({self.label!r}, {self.probability:.4f}, {height} x {width} locations)"

    @property
    def _label_text(self) -> str:
        return describe_unknown(self.label) if is_unknown_score(self.unknown_score) else self.label

    def heat(self) -> NDArray[np.float32]:
        """Return the positive part of the map in the size of the crop, 0 to 1, [S, S]."""
        evidence = np.maximum(self.activation_map, 0)
        peak = float(evidence.max(initial=0.0))
        scaled = evidence / np.float32(peak) if peak > 0 else evidence
        height, width = self.crop.shape[:2]
        # A location is the center of its cell, as in Pillow's resize.
        enlarged = Image.fromarray(scaled).resize((width, height), Image.Resampling.BILINEAR)
        return np.asarray(enlarged, np.float32)

    def draw(self) -> Image.Image:
        """Draw the crop, the heat on the crop in gray, and a line with label and probability."""
        height, width = self.crop.shape[:2]
        scale = -(-_MIN_SIDE // min(height, width))
        size = (width * scale, height * scale)
        photo = Image.fromarray(self.crop).resize(size, Image.Resampling.BICUBIC)
        overlay = Image.fromarray(overlay_heat(self.crop, self.heat()))
        font = ImageFont.load_default(_FONT_SIZE)
        line_height = _FONT_SIZE + 2 * _MARGIN
        drawing = Image.new("RGB", (2 * size[0] + _MARGIN, size[1] + line_height), "white")
        drawing.paste(photo, (0, 0))
        drawing.paste(overlay.resize(size, Image.Resampling.BICUBIC), (size[0] + _MARGIN, 0))
        caption = _to_ascii(f"{self._label_text} {self.probability:.1%}")
        ImageDraw.Draw(drawing).text((_MARGIN, size[1] + _MARGIN), caption, "black", font)
        return drawing

    def save(self, path: StrPath) -> None:
        """Write the drawing as a PNG file, with label and probability as its description.

        Raises:
            DataError: the file cannot be written.
        """
        description = PngInfo()
        description.add_itxt("Description", f"{self._label_text} {self.probability:.4f}")
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            self.draw().save(path, format="PNG", pnginfo=description)
        except OSError as cause:
            raise DataError(
                f"Cannot write {path} ({cause.strerror or cause}). Choose another folder."
            ) from cause


def _to_ascii(text: str) -> str:
    """Replace characters that Pillow's font lacks by their base letter, or by a question mark."""
    decomposed = unicodedata.normalize("NFKD", text)
    letters = "".join(letter for letter in decomposed if not unicodedata.combining(letter))
    return letters.encode("ascii", "replace").decode()


def overlay_heat(image: NDArray[np.uint8], heat: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Blend heat over an image in gray.

    Args:
        image: uint8 [height, width, 3].
        heat: 0 to 1, [height, width]; 0 leaves the image uncovered.
    """
    gray = np.asarray(Image.fromarray(image).convert("L"), np.float32)[..., None]
    opacity = _MAX_OPACITY * np.sqrt(heat)[..., None]
    blended = (1 - opacity) * _PHOTO_BRIGHTNESS * gray + opacity * color_heat(heat)
    return np.rint(blended).astype(np.uint8)


def color_heat(heat: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the sRGB colors, 0 to 255, of values from 0 to 1.

    They are interpolated in OKLab (Ottosson, 2020, "A perceptual color space for image
    processing"), in which equal steps look alike.
    """
    positions = np.linspace(0, 1, len(_OKLAB_STOPS))
    channels = [np.interp(heat, positions, values) for values in zip(*_OKLAB_STOPS, strict=True)]
    linear = (np.stack(channels, -1) @ _LMS_FROM_OKLAB.T) ** 3 @ _RGB_FROM_LMS.T
    linear = np.clip(linear, 0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.asarray(255 * encoded, np.float32)

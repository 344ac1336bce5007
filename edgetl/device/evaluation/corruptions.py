"""Corrupt images as in ImageNet-C: 15 kinds of corruption at 5 severities.

Kinds and parameters: Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common
Corruptions and Perturbations", 2019, and the program published with it. It needs OpenCV, SciPy and
ImageMagick; the functions here need NumPy and Pillow only, so that devices can run them, and differ:

- Frost is generated; the published images blend photographs of frost.
- Lengths in pixels apply to a shorter side of 256 pixels, which the published images had before
  their crop to 224 pixels, and scale with the image, so that a severity has the same effect on the
  objects of small images.
- Images are mirrored at their edges by all blurs, and values are rounded, not truncated.
- An image has the same random draws at all severities, so that their differences are not random.
- Glass blur swaps pixels in another order and uses Pillow's Gaussian; elastic transforms
  interpolate once instead of twice.

The error rates of models can be compared with each other, not with published ones.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from edgetl.core.errors import ConfigError

Pixels = NDArray[np.uint8]
Values = NDArray[np.float32]

SEVERITIES = (1, 2, 3, 4, 5)
_REFERENCE_SIDE = 256
"""Shorter side, in pixels, of images for which lengths are given."""
_GRAY_WEIGHTS = np.array([0.299, 0.587, 0.114], np.float32)
"""Weights of red, green and blue in the luma of ITU-R BT.601."""
_ICE_COLOR = np.array([0.82, 0.92, 1.0], np.float32)


def corrupt(image: Pixels, kind: str, severity: int, seed: int = 0) -> Pixels:
    """Return a corrupted copy of an image. Equal arguments have equal results.

    Args:
        image: uint8 [height, width, 3] at the resolution of the network: what a later resize
            smooths has no effect.
        kind: one of CORRUPTIONS.
        severity: 1 to 5.
        seed: at least 0; give each image its own.

    Raises:
        ConfigError: There is no such kind or severity.
    """
    if kind not in _FUNCTIONS:
        raise ConfigError(f"There is no corruption {kind!r}. Choose from {', '.join(CORRUPTIONS)}.")
    if severity not in SEVERITIES:
        raise ConfigError(f"The severity of a corruption must be 1 to 5, got {severity}.")
    generator = np.random.default_rng((seed, CORRUPTIONS.index(kind)))
    values = _FUNCTIONS[kind](image, severity - 1, generator)
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _add_gaussian_noise(image: Pixels, level: int, generator: np.random.Generator) -> Values:
    sigma = (0.08, 0.12, 0.18, 0.26, 0.38)[level]
    return image + np.float32(255 * sigma) * generator.standard_normal(image.shape, np.float32)


def _add_shot_noise(image: Pixels, level: int, generator: np.random.Generator) -> Values:
    photons = (60, 25, 12, 5, 3)[level]
    counts = generator.poisson(image * (photons / 255))
    return counts.astype(np.float32) * np.float32(255 / photons)


def _add_impulse_noise(image: Pixels, level: int, generator: np.random.Generator) -> Values:
    share = (0.03, 0.06, 0.09, 0.17, 0.27)[level]
    values = image.astype(np.float32)
    draws = generator.random(image.shape, np.float32)
    values[draws < share] = 255
    values[draws < share / 2] = 0
    return values


def _blur_out_of_focus(image: Pixels, level: int, generator: np.random.Generator) -> Values:
    radius = (3, 4, 6, 8, 10)[level] * _length_scale(image)
    half = math.ceil(radius)
    offsets = np.arange(-half, half + 1, dtype=np.float32)
    distance = np.hypot(offsets[:, None], offsets)
    # The share of a pixel within the disk falls from 1 to 0 over about a pixel.
    disk = np.clip(radius + 0.5 - distance, 0, 1)
    return _convolve(image, disk.astype(np.float32))


def _blur_through_glass(image: Pixels, level: int, generator: np.random.Generator) -> Values:
    sigma, distance, rounds = ((0.7, 1, 2), (0.9, 2, 1), (1.0, 2, 3), (1.1, 3, 2), (1.5, 4, 2))[
        level
    ]
    scale = _length_scale(image)
    order = _shuffle_locally(image.shape[:2], max(1, round(distance * scale)), rounds, generator)
    blur = ImageFilter.GaussianBlur(sigma * scale)
    blurred = np.asarray(Image.fromarray(image).filter(blur))
    shuffled = Image.fromarray(blurred.reshape(-1, 3)[order])
    return np.asarray(shuffled.filter(blur), np.float32)


def _blur_by_motion(image: Pixels, level: int, generator: np.random.Generator) -> Values:
    radius, sigma = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))[level]
    angle = math.radians(generator.uniform(-45, 45))
    return _convolve(image, _make_motion_kernel(radius, sigma, angle, _length_scale(image)))


def _blur_by_zoom(image: Pixels, level: int, generator: np.random.Generator) -> Values:
    step, steps = ((0.01, 11), (0.01, 16), (0.02, 11), (0.02, 13), (0.03, 11))[level]
    height, width = image.shape[:2]
    picture = Image.fromarray(image)
    total = image.astype(np.float32)
    for zoom in (1 + step * index for index in range(steps)):
        left, top = width / 2 * (1 - 1 / zoom), height / 2 * (1 - 1 / zoom)
        box = (left, top, width - left, height - top)
        total += np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR, box))
    return total / np.float32(steps + 1)


def _add_snow(image: Pixels, level: int, generator: np.random.Generator) -> Values:
    mean, zoom, threshold, radius, sigma, opacity = (
        (0.1, 3, 0.5, 10, 4, 0.8),
        (0.2, 2, 0.5, 12, 4, 0.7),
        (0.55, 4, 0.9, 12, 8, 0.7),
        (0.55, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 2.5, 0.85, 12, 12, 0.55),
    )[level]
    height, width = image.shape[:2]
    scale = _length_scale(image)
    flake = max(1.0, zoom * scale)
    rows, columns = math.ceil(height / flake), math.ceil(width / flake)
    noise = np.float32(mean) + np.float32(0.3) * generator.standard_normal(
        (rows, columns), np.float32
    )
    enlarged = Image.fromarray(noise).resize((width, height), Image.Resampling.BILINEAR)
    flakes = np.asarray(enlarged)
    flakes = np.where(flakes < threshold, np.float32(0), np.minimum(flakes, 1))
    angle = math.radians(generator.uniform(-135, -45))
    flakes = _convolve(flakes[..., None], _make_motion_kernel(radius, sigma, angle, scale))
    pale = np.maximum(image, (image @ _GRAY_WEIGHTS * 1.5 + 127.5)[..., None])
    # Flakes fall in two directions.
    snow = 255 * (flakes + np.rot90(flakes, 2))
    return np.asarray(opacity * image + (1 - opacity) * pale + snow, np.float32)


def _add_frost(image: Pixels, level: int, generator: np.random.Generator) -> Values:
    image_weight, frost_weight = ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))[level]
    side = _texture_side(image)
    frost = _tile(_make_frost(side, generator), image)
    ice = np.float32(255 * frost_weight) * _ICE_COLOR
    return np.float32(image_weight) * image + ice * frost[..., None]


def _add_fog(image: Pixels, level: int, generator: np.random.Generator) -> Values:
    thickness, decay = ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4))[level]
    # The published program multiplies the decay in twice.
    fog = _tile(_make_plasma(_texture_side(image), decay**2, generator), image)
    brightest = float(image.max()) / 255
    values = image + np.float32(255 * thickness) * fog[..., None]
    return values * np.float32(brightest / (brightest + thickness))


def _brighten(image: Pixels, level: int, generator: np.random.Generator) -> Values:
    increase = np.float32((0.1, 0.2, 0.3, 0.4, 0.5)[level] * 255)
    # The V of HSV is the largest channel. With equal hue and saturation, all channels scale with
    # it; black has no hue and becomes gray.
    brightness = image.max(axis=2, keepdims=True).astype(np.float32)
    target = np.minimum(brightness + increase, 255)
    scaled = image * (target / np.maximum(brightness, 1))
    return np.asarray(np.where(brightness == 0, target, scaled), np.float32)


def _reduce_contrast(image: Pixels, level: int, generator: np.random.Generator) -> Values:
    factor = (0.4, 0.3, 0.2, 0.1, 0.05)[level]
    mean = image.mean(axis=(0, 1), dtype=np.float64)
    return np.asarray((image - mean) * factor + mean, np.float32)


def _transform_elastically(image: Pixels, level: int, generator: np.random.Generator) -> Values:
    # The published parameters are multiples of 244, for images of 224 pixels. The first two levels
    # bend the whole image, the others distort locally.
    strength, sigma, jitter = (
        (2, 0.7, 0.1),
        (2, 0.08, 0.2),
        (0.05, 0.01, 0.02),
        (0.07, 0.01, 0.02),
        (0.12, 0.01, 0.02),
    )[level]
    height, width = image.shape[:2]
    scale = _length_scale(image)
    # A right angle of three points, whose corners move, defines an affine transform.
    third = min(height, width) / 3
    center = np.array([height / 2, width / 2])
    corners = center + third * np.array([[1, 1], [1, -1], [-1, -1]])
    moved = corners + generator.uniform(-1, 1, corners.shape) * jitter * 244 * scale
    matrix = np.linalg.solve(np.column_stack([corners, np.ones(3)]), moved).astype(np.float32)
    noise = generator.random((height, width, 2), np.float32) * 2 - 1
    # Noise averages out over the blur, whose width scales too: hence the square.
    shifts = _blur(noise, sigma * 244 * scale) * np.float32(strength * 244 * scale**2)
    rows = np.arange(height, dtype=np.float32)[:, None] + shifts[..., 0]
    columns = np.arange(width, dtype=np.float32) + shifts[..., 1]
    source_rows = rows * matrix[0, 0] + columns * matrix[1, 0] + matrix[2, 0]
    source_columns = rows * matrix[0, 1] + columns * matrix[1, 1] + matrix[2, 1]
    return _sample(image, source_rows, source_columns)


def _pixelate(image: Pixels, level: int, generator: np.random.Generator) -> Values:
    factor = (0.6, 0.5, 0.4, 0.3, 0.25)[level]
    height, width = image.shape[:2]
    small = (max(1, int(width * factor)), max(1, int(height * factor)))
    box = Image.Resampling.BOX
    pixelated = Image.fromarray(image).resize(small, box).resize((width, height), box)
    return np.asarray(pixelated, np.float32)


def _compress_as_jpeg(image: Pixels, level: int, generator: np.random.Generator) -> Values:
    quality = (25, 18, 15, 10, 7)[level]
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer), np.float32)


_FUNCTIONS: dict[str, Callable[[Pixels, int, np.random.Generator], Values]] = {
    "gaussian_noise": _add_gaussian_noise,
    "shot_noise": _add_shot_noise,
    "impulse_noise": _add_impulse_noise,
    "defocus_blur": _blur_out_of_focus,
    "glass_blur": _blur_through_glass,
    "motion_blur": _blur_by_motion,
    "zoom_blur": _blur_by_zoom,
    "snow": _add_snow,
    "frost": _add_frost,
    "fog": _add_fog,
    "brightness": _brighten,
    "contrast": _reduce_contrast,
    "elastic_transform": _transform_elastically,
    "pixelate": _pixelate,
    "jpeg_compression": _compress_as_jpeg,
}
CORRUPTIONS: tuple[str, ...] = tuple(_FUNCTIONS)
"""Kinds of corruption in the order of the paper: noise, blur, weather, digital."""


def _length_scale(image: Pixels) -> float:
    height, width = image.shape[:2]
    return float(min(height, width) / _REFERENCE_SIDE)


def _convolve(values: Pixels | Values, kernel: Values) -> Values:
    """Convolve [height, width, channels] with a kernel of odd size, normalized to a sum of 1."""
    height, width = values.shape[:2]
    top, left = kernel.shape[0] // 2, kernel.shape[1] // 2
    planes = np.moveaxis(values, 2, 0).astype(np.float32)
    padded = np.pad(planes, ((0, 0), (top, top), (left, left)), mode="symmetric")
    size = _round_up_for_fft(padded.shape[1]), _round_up_for_fft(padded.shape[2])
    spectrum = np.fft.rfft2(padded, size) * np.fft.rfft2(kernel / kernel.sum(), size)
    # Pixels that the periodic convolution wraps around lie in the padding.
    result = np.fft.irfft2(spectrum, size)[
        :, 2 * top : 2 * top + height, 2 * left : 2 * left + width
    ]
    return np.moveaxis(result, 0, 2).astype(np.float32)


def _round_up_for_fft(length: int) -> int:
    """Return the next product of powers of 2, 3 and 5, for which a Fourier transform is fast."""
    while True:
        rest = length
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return length
        length += 1


def _blur(values: Pixels | Values, sigma: float) -> Values:
    """Blur [height, width, channels] with a Gaussian, however wide.

    An axis and its mirror image are periodic, and the spectrum of a Gaussian is a Gaussian.
    """
    blurred = values.astype(np.float32)
    for axis in (0, 1):
        length = blurred.shape[axis]
        mirrored = np.concatenate([blurred, np.flip(blurred, axis)], axis)
        frequencies = np.fft.rfftfreq(2 * length)
        gains = np.exp(-2 * (math.pi * sigma * frequencies) ** 2).astype(np.float32)
        shape = [1, 1, 1]
        shape[axis] = len(gains)
        spectrum = np.fft.rfft(mirrored, axis=axis) * gains.reshape(shape)
        blurred = np.fft.irfft(spectrum, 2 * length, axis).astype(np.float32)
        blurred = blurred[:length] if axis == 0 else blurred[:, :length]
    return blurred


def _make_motion_kernel(radius: float, sigma: float, angle: float, scale: float) -> Values:
    """Return the path of a point with weights of half a Gaussian, as ImageMagick blurs."""
    steps = np.arange(0, 2 * radius * scale + 1)
    weights = np.exp(-(steps**2) / (2 * (sigma * scale) ** 2))
    side = 2 * len(steps) + 1
    kernel = np.zeros((side, side), np.float32)
    center = len(steps)
    _add_points(kernel, center + steps * math.sin(angle), center + steps * math.cos(angle), weights)
    return kernel


def _add_points(
    canvas: Values,
    rows: NDArray[np.float64],
    columns: NDArray[np.float64],
    weights: NDArray[np.float64],
) -> None:
    """Add points to a periodic canvas, each distributed over the four nearest pixels."""
    top, left = np.floor(rows).astype(int), np.floor(columns).astype(int)
    down, right = rows - top, columns - left
    height, width = canvas.shape
    for row, row_share in ((top, 1 - down), (top + 1, down)):
        for column, column_share in ((left, 1 - right), (left + 1, right)):
            shares = (weights * row_share * column_share).astype(np.float32)
            np.add.at(canvas, (row % height, column % width), shares)


def _shuffle_locally(
    size: tuple[int, int], distance: int, rounds: int, generator: np.random.Generator
) -> NDArray[np.intp]:
    """Return the indices of pixels after every pixel was swapped with one nearby."""
    height, width = size
    order = np.arange(height * width).reshape(height, width)
    # Pixels this far apart cannot meet, so that all of them are swapped at once.
    spacing = 2 * distance + 1
    for _ in range(rounds):
        shifts = generator.integers(-distance, distance, (2, height, width), np.int8, True)
        for top in range(min(spacing, height)):
            for left in range(min(spacing, width)):
                rows = np.arange(top, height, spacing)[:, None]
                columns = np.arange(left, width, spacing)
                shift = shifts[:, top::spacing, left::spacing]
                other_rows = np.clip(rows + shift[0], 0, height - 1)
                other_columns = np.clip(columns + shift[1], 0, width - 1)
                swapped = order[other_rows, other_columns]
                order[other_rows, other_columns] = order[rows, columns]
                order[rows, columns] = swapped
    return order


def _sample(image: Pixels, rows: Values, columns: Values) -> Values:
    """Interpolate an image linearly at positions, mirrored outside of it."""
    height, width = image.shape[:2]
    pixels = image.reshape(-1, 3).astype(np.float32)
    top, left = np.floor(rows), np.floor(columns)
    down, right = rows - top, columns - left
    result = np.zeros((*rows.shape, 3), np.float32)
    for row, row_share in ((top, 1 - down), (top + 1, down)):
        row_indices = _mirror(row, height) * width
        for column, column_share in ((left, 1 - right), (left + 1, right)):
            indices = row_indices + _mirror(column, width)
            result += (row_share * column_share)[..., None] * pixels[indices]
    return result


def _mirror(positions: Values, length: int) -> NDArray[np.intp]:
    """Return the indices of whole positions on an axis that is mirrored at its ends."""
    indices = positions.astype(np.intp) % (2 * length)
    return np.minimum(indices, 2 * length - 1 - indices)


def _texture_side(image: Pixels) -> int:
    """Return the side of a periodic texture that covers the image's shorter side."""
    height, width = image.shape[:2]
    return 1 << (int(min(height, width)) - 1).bit_length()


def _tile(texture: Values, image: Pixels) -> Values:
    """Repeat a periodic texture up to the size of the image."""
    height, width = image.shape[:2]
    side = len(texture)
    return texture[np.arange(height)[:, None] % side, np.arange(width) % side]


def _make_plasma(side: int, decay: float, generator: np.random.Generator) -> Values:
    """Return fractal noise from 0 to 1, [side, side], periodic (Fournier et al., 1982).

    The grid is doubled until it has the side, a power of 2. New points are the mean of their four
    neighbors, first diagonal ones and then direct ones, plus noise that decays with each doubling.
    """
    grid = np.zeros((1, 1), np.float32)
    amplitude = 1.0
    while len(grid) < side:
        size = len(grid)
        noise = generator.random((3, size, size), np.float32) * 2 - 1
        noise *= np.float32(amplitude)
        below, right = np.roll(grid, -1, 0), np.roll(grid, -1, 1)
        centers = (grid + below + right + np.roll(below, -1, 1)) / 4 + noise[0]
        doubled = np.empty((2 * size, 2 * size), np.float32)
        doubled[::2, ::2] = grid
        doubled[1::2, 1::2] = centers
        doubled[::2, 1::2] = (grid + right + centers + np.roll(centers, 1, 0)) / 4 + noise[1]
        doubled[1::2, ::2] = (grid + below + centers + np.roll(centers, 1, 1)) / 4 + noise[2]
        grid = doubled
        amplitude /= decay
    grid -= grid.min()
    return np.asarray(grid / max(float(grid.max()), 1e-6), np.float32)


def _make_frost(side: int, generator: np.random.Generator) -> Values:
    """Return a periodic texture of frost from 0 to 1, [side, side]: ice crystals on a film."""
    cover = _make_plasma(side, 3, generator)
    crystals = np.zeros((side, side), np.float32)
    for arm_share, density in ((0.3, 0.0005), (0.12, 0.002), (0.05, 0.008)):
        crystal = np.zeros((side, side), np.float32)
        _draw_crystal(crystal, arm_share * side, generator.uniform(0, math.pi / 3))
        draws = generator.random((2, side, side), np.float32)
        # As many crystals per image at every size.
        is_seed = draws[0] < density * (_REFERENCE_SIDE / side) ** 2
        seeds = np.where(is_seed, cover * draws[1], np.float32(0))
        spectrum = np.fft.rfft2(seeds) * np.fft.rfft2(crystal)
        crystals += np.fft.irfft2(spectrum, (side, side)).astype(np.float32)
    film = np.float32(0.3) * cover
    ice = 1 - np.exp(np.float32(-1.6) * np.maximum(crystals, 0))
    return np.asarray(film + (1 - film) * ice, np.float32)


def _draw_crystal(canvas: Values, arm: float, angle: float) -> None:
    """Draw six arms with branches around the corner of a periodic canvas."""
    rows, columns, weights = [], [], []
    along = np.arange(0, arm, 0.5)
    for direction in angle + np.arange(6) * math.pi / 3:
        rows.append(along * math.sin(direction))
        columns.append(along * math.cos(direction))
        weights.append(0.5 * (1 - along / arm))
        for start in np.arange(arm / 10, arm, max(1.5, arm / 10)):
            length = 0.4 * (arm - start)
            branch = np.arange(0, length, 0.5)
            for turn in (-math.pi / 3, math.pi / 3):
                rows.append(start * math.sin(direction) + branch * math.sin(direction + turn))
                columns.append(start * math.cos(direction) + branch * math.cos(direction + turn))
                weights.append(0.3 * (1 - start / arm) * (1 - branch / length))
    _add_points(canvas, np.concatenate(rows), np.concatenate(columns), np.concatenate(weights))

from __future__ import annotations

import colorsys
import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

from edgetl.core.errors import ConfigError
from edgetl.device.evaluation import corruptions
from edgetl.device.evaluation.corruptions import CORRUPTIONS, SEVERITIES, corrupt

RANDOM_KINDS = {
    "gaussian_noise", "shot_noise", "impulse_noise", "glass_blur", "motion_blur", "snow", "frost",
    "fog", "elastic_transform",
}  # fmt: skip


ORDERED_LEVELS = {
    # Levels 1 and 2 bend the whole image, which moves more than the distortions of levels 3 to 5.
    "elastic_transform": ((1, 2), (3, 4, 5)),
    # Levels 3 and 4 have the same thickness.
    "fog": ((1, 2, 3, 5),),
}
"""Severities with rising parameters, for kinds of which not all have."""


def make_photo(seed: int, size: tuple[int, int] = (224, 224)) -> NDArray[np.uint8]:
    """Return an image with the statistics of a photo: a 1/f spectrum, edges and dark to light."""
    generator = np.random.default_rng(seed)
    height, width = size
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width))
    spectrum = np.fft.fft2(generator.standard_normal((3, height, width)))
    texture = np.fft.ifft2(spectrum / np.maximum(frequency, 1 / width)).real
    texture = 110 + 45 * (texture - texture.mean()) / texture.std()
    picture = Image.fromarray(np.clip(texture, 0, 255).astype(np.uint8).transpose(1, 2, 0))
    draw = ImageDraw.Draw(picture)
    for _ in range(6):
        x, y = generator.integers(0, (width, height))
        reach = int(generator.integers(10, 60))
        color = tuple(int(value) for value in generator.integers(20, 235, 3))
        draw.ellipse((int(x), int(y), int(x) + reach, int(y) + reach), fill=color)
    return np.asarray(picture)


def squared_error(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> float:
    return float(np.square(first.astype(float) - second).mean())


def hash_all(photo: NDArray[np.uint8]) -> str:
    digest = hashlib.sha256()
    for kind in CORRUPTIONS:
        digest.update(corrupt(photo, kind, 3, seed=7).tobytes())
    return digest.hexdigest()


def test_kinds_are_those_of_imagenet_c_in_its_order() -> None:
    assert CORRUPTIONS == (
        "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur",
        "motion_blur", "zoom_blur", "snow", "frost", "fog", "brightness", "contrast",
        "elastic_transform", "pixelate", "jpeg_compression",
    )  # fmt: skip
    assert SEVERITIES == (1, 2, 3, 4, 5)


def test_result_is_equal_in_another_process() -> None:
    program = (
        "from tests.device.evaluation.test_corruptions import hash_all, make_photo;"
        "print(hash_all(make_photo(0, (96, 130))))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "77"}
    answer = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == hash_all(make_photo(0, (96, 130)))


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_seed_matters_only_to_random_kinds(kind: str) -> None:
    photo = make_photo(1, (64, 64))
    original = photo.copy()
    results = [corrupt(photo, kind, 3, seed) for seed in (0, 0, 1)]
    assert np.array_equal(results[0], results[1])
    assert np.array_equal(results[0], results[2]) == (kind not in RANDOM_KINDS)
    assert np.array_equal(photo, original)


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (37, 53), (90, 61), (2, 200)])
def test_size_and_type_are_kept(size: tuple[int, int]) -> None:
    photo = make_photo(2, size)
    for kind in CORRUPTIONS:
        for severity in (1, 5):
            result = corrupt(photo, kind, severity)
            assert result.shape == photo.shape, kind
            assert result.dtype == np.uint8, kind


def lost_detail(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> float:
    """Return the share of the first image's variance that a linear fit cannot explain."""
    return 1 - float(np.corrcoef(first.ravel(), second.ravel())[0, 1]) ** 2


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_error_rises_with_severity(kind: str) -> None:
    photos = [make_photo(seed) for seed in range(3)]
    # Frost and fog brighten and darken at once, which says little about what is still visible.
    measure = lost_detail if kind in ("frost", "fog") else squared_error
    errors = [
        np.mean([measure(photo, corrupt(photo, kind, severity)) for photo in photos])
        for severity in SEVERITIES
    ]
    for levels in ORDERED_LEVELS.get(kind, (SEVERITIES,)):
        values = [errors[level - 1] for level in levels]
        assert values == sorted(set(values)), errors


MEAN_CHANGES = {
    "gaussian_noise": (16.06, 35.1, 64.32),
    "shot_noise": (16.76, 36.51, 67.62),
    "impulse_noise": (3.84, 11.71, 34.57),
    "defocus_blur": (16.68, 20.9, 23.84),
    "glass_blur": (18.9, 22.34, 24.12),
    "motion_blur": (15.94, 22.67, 26.68),
    "zoom_blur": (20.62, 24.05, 25.95),
    "snow": (44.35, 73.1, 107.32),
    "frost": (39.84, 40.86, 39.56),
    "fog": (35.13, 44.57, 43.16),
    "brightness": (18.71, 53.59, 74.78),
    "contrast": (22.44, 29.93, 35.52),
    "elastic_transform": (39.62, 27.59, 28.95),
    "pixelate": (12.02, 15.58, 18.57),
    "jpeg_compression": (18.95, 20.44, 23.77),
}
"""Mean absolute change in gray levels of a fixed photo at severities 1, 3 and 5."""


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_mean_change_is_the_recorded_value(kind: str) -> None:
    photo = make_photo(0)
    changes = [
        np.abs(photo.astype(float) - corrupt(photo, kind, severity)).mean()
        for severity in (1, 3, 5)
    ]
    assert changes == pytest.approx(MEAN_CHANGES[kind], abs=0.1), kind


@pytest.mark.parametrize(
    ("kind", "lowest", "highest"),
    [
        ("gaussian_noise", -3, 3),
        ("shot_noise", -3, 3),
        ("impulse_noise", -1, 5),
        ("defocus_blur", -1, 1),
        ("glass_blur", -1, 1),
        ("motion_blur", -2, 2),
        ("zoom_blur", -5, 5),
        ("snow", 20, 90),
        ("frost", 10, 70),
        ("fog", 10, 70),
        ("brightness", 30, 80),
        ("contrast", -1, 1),
        ("elastic_transform", -4, 4),
        ("pixelate", -1, 1),
        ("jpeg_compression", -1, 1),
    ],
)
def test_brightness_changes_as_the_kind_suggests(kind: str, lowest: float, highest: float) -> None:
    photo = make_photo(3)
    change = corrupt(photo, kind, 3).mean() - photo.mean()
    assert lowest < change < highest


def test_gaussian_noise_has_the_published_sigma() -> None:
    gray = np.full((200, 200, 3), 128, np.uint8)
    noise = corrupt(gray, "gaussian_noise", 1).astype(float) - 128
    assert noise.std() == pytest.approx(0.08 * 255, rel=0.01)


def test_impulse_noise_replaces_the_published_share() -> None:
    gray = np.full((200, 200, 3), 128, np.uint8)
    result = corrupt(gray, "impulse_noise", 5)
    assert np.mean(result == 0) == pytest.approx(0.135, abs=0.005)
    assert np.mean(result == 255) == pytest.approx(0.135, abs=0.005)
    assert set(np.unique(result)) == {0, 128, 255}


def test_gaussian_blur_equals_scipy() -> None:
    values = make_photo(4, (40, 61)).astype(np.float32)
    for sigma in (2.0, 5.0, 50.0):
        expected = ndimage.gaussian_filter(
            values.astype(float), (sigma, sigma, 0), mode="reflect", truncate=8
        )
        assert corruptions._blur(values, sigma) == pytest.approx(expected, abs=0.02)


def test_convolution_equals_scipy() -> None:
    values = make_photo(5, (30, 47)).astype(np.float32)
    kernel = np.random.default_rng(0).random((9, 13)).astype(np.float32)
    normalized = (kernel / kernel.sum())[..., None].astype(float)
    expected = ndimage.convolve(values.astype(float), normalized, mode="reflect")
    assert corruptions._convolve(values, kernel) == pytest.approx(expected, abs=0.01)


def test_sampling_equals_scipy() -> None:
    image = make_photo(6, (23, 31))
    generator = np.random.default_rng(1)
    rows = generator.uniform(-30, 60, (23, 31)).astype(np.float32)
    columns = generator.uniform(-40, 80, (23, 31)).astype(np.float32)
    expected = np.stack(
        [
            ndimage.map_coordinates(
                image[..., channel].astype(float), [rows, columns], order=1, mode="reflect"
            )
            for channel in range(3)
        ],
        axis=2,
    )
    assert corruptions._sample(image, rows, columns) == pytest.approx(expected, abs=0.01)


def test_brightness_equals_hsv_of_the_standard_library() -> None:
    photo = make_photo(7, (8, 8))
    photo = photo.copy()
    photo[0, 0] = 0
    result = corrupt(photo, "brightness", 2)
    for before, after in zip(photo.reshape(-1, 3), result.reshape(-1, 3), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*(before / 255))
        expected = np.array(colorsys.hsv_to_rgb(hue, saturation, min(1, value + 0.2))) * 255
        assert after == pytest.approx(expected, abs=0.51)


def test_motion_blur_moves_a_point_along_a_line() -> None:
    image = np.zeros((101, 101, 3), np.float32)
    image[50, 50] = 1
    kernel = corruptions._make_motion_kernel(10, 3, np.pi / 2, 1)
    trace = corruptions._convolve(image, kernel)[..., 0]
    weights = np.exp(-(np.arange(21) ** 2) / (2 * 3**2))
    assert trace[50:71, 50] == pytest.approx(weights / weights.sum(), abs=1e-6)
    assert trace[50:71, 50].sum() == pytest.approx(1, abs=1e-5)


def test_shuffled_pixels_are_a_permutation_of_near_ones() -> None:
    order = corruptions._shuffle_locally((30, 41), 2, 1, np.random.default_rng(0))
    assert sorted(order.ravel()) == list(range(30 * 41))
    rows, columns = np.divmod(order, 41)
    # A pixel is swapped once on its turn, and by any of its neighbors on theirs.
    assert np.median(np.abs(rows - np.arange(30)[:, None])) <= 2
    assert np.median(np.abs(columns - np.arange(41))) <= 2
    assert np.mean(order == np.arange(30 * 41).reshape(30, 41)) < 0.2


def test_textures_are_periodic() -> None:
    for texture in (
        corruptions._make_plasma(64, 2, np.random.default_rng(0)),
        corruptions._make_frost(64, np.random.default_rng(0)),
    ):
        assert texture.min() >= 0
        assert texture.max() <= 1
        inner = np.abs(np.diff(texture, axis=0)).mean()
        seam = np.abs(texture[0] - texture[-1]).mean()
        assert seam < 2 * inner


def test_lengths_scale_with_the_image() -> None:
    photo = make_photo(8, (128, 128))
    larger = np.asarray(Image.fromarray(photo).resize((256, 256), Image.Resampling.BICUBIC))
    for kind in ("defocus_blur", "zoom_blur"):
        large = Image.fromarray(corrupt(larger, kind, 3)).resize((128, 128), Image.Resampling.BOX)
        small = corrupt(photo, kind, 3)
        difference = squared_error(np.asarray(large), small)
        assert difference < 0.1 * squared_error(photo, small), kind


def test_unknown_kind_or_severity_is_refused() -> None:
    photo = make_photo(0, (8, 8))
    with pytest.raises(ConfigError, match=r"no corruption 'rain'\. Choose from gaussian_noise"):
        corrupt(photo, "rain", 1)
    for severity in (0, 6):
        with pytest.raises(ConfigError, match=f"must be 1 to 5, got {severity}"):
            corrupt(photo, "fog", severity)

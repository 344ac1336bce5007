"""GPU augmentation: same parameters as on the CPU, and pixels equal up to rounding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from edgetl.core.config.finetune import AugmentationStrength
from edgetl.core.errors import ConfigError
from edgetl.core.preprocessing import Preprocessing
from edgetl.device.runtime.images import load_image
from edgetl.train.data.augmentation import Augmentation
from edgetl.train.data.gpu_augmentation import augment
from edgetl.train.data.view_parameters import ViewParameters, ViewSampler

SIDE = 64
STRENGTHS: list[AugmentationStrength] = ["light", "medium", "strong"]
Pixels = NDArray[np.uint8]


def augmentation(strength: AugmentationStrength, seed: int = 0) -> Augmentation:
    return Augmentation(strength, Preprocessing.for_image_size(SIDE), seed)


def scene(height: int, width: int, seed: int = 0) -> Pixels:
    """Return an image with waves, edges and colors like a photo."""
    y, x = np.mgrid[:height, :width]
    channels = [
        128 + 90 * np.sin(x / (9 + seed) + y / 31),
        255 * ((x // 16 + y // 12) % 2),
        128 + 60 * np.sin(x / 5 + seed),
    ]
    return np.stack(channels, axis=2).astype(np.uint8)


def on_device(images: list[Pixels]) -> list[torch.Tensor]:
    return [torch.from_numpy(image).permute(2, 0, 1).contiguous() for image in images]


def sample_parameters(
    strength: AugmentationStrength, shape: tuple[int, int], views: int
) -> list[ViewParameters]:
    sampler = ViewSampler(augmentation(strength), SIDE)
    return [sampler(*shape, view, 3) for view in range(1, views + 1)]


@pytest.fixture(scope="module", params=["scenes", "photos"])
def images(request: pytest.FixtureRequest) -> list[Pixels]:
    if request.param == "scenes":
        sizes = [(90, 130), (64, 64), (200, 60), (50, 40), (300, 400), (70, 58)]
        return [scene(*size, seed) for seed, size in enumerate(sizes)]
    shared: Path = request.getfixturevalue("shared")
    paths = sorted((shared / "data" / "flowers5" / "train").rglob("*.jpg"))[::60][:6]
    return [load_image(path) for path in paths]


@pytest.mark.parametrize("strength", STRENGTHS)
def test_views_equal_cpu_up_to_rounding(
    strength: AugmentationStrength, images: list[Pixels]
) -> None:
    cpu = augmentation(strength)
    sampler = ViewSampler(cpu, SIDE)
    compared = 0
    for view in range(1, 13):
        parameters = [sampler(*image.shape[:2], view, index) for index, image in enumerate(images)]
        views = augment(on_device(images), parameters, SIDE).numpy()
        for index, image in enumerate(images):
            if parameters[index].noise is not None:
                continue
            difference = abs(views[index].astype(int) - cpu(image, view, index))
            compared += 1
            if strength == "light":
                assert difference.max() <= 1
            else:
                # A step of OpenCV's 8-bit hue, two degrees, is up to a dozen gray levels in a
                # saturated pixel.
                assert difference.mean() < 0.6
                assert np.percentile(difference, 99) <= 8
    assert compared > 6 * 8


def test_pixel_mean_and_deviation_equal_cpu_with_noise() -> None:
    image, cpu, views = scene(120, 90), augmentation("strong"), range(1, 201)
    sampler = ViewSampler(cpu, SIDE)
    parameters = [sampler(120, 90, view, 0) for view in views]
    assert sum(view.noise is not None for view in parameters) > 20
    computed = augment(on_device([image] * len(views)), parameters, SIDE).numpy().astype(float)
    expected = np.stack([cpu(image, view, 0) for view in views]).astype(float)
    assert abs(computed.mean(axis=0) - expected.mean(axis=0)).mean() < 1
    assert abs(computed.std(axis=0) - expected.std(axis=0)).mean() < 1
    noisy = [row for row, view in enumerate(parameters) if view.noise is not None]
    spread = (computed - expected)[noisy].std()
    # Two independent noises of 5 to 20 gray levels each, in part clipped at black and white.
    assert 6 < spread < 25


def test_view_depends_only_on_its_key() -> None:
    images = [scene(90, 130, seed) for seed in range(5)]
    sampler = ViewSampler(augmentation("strong"), SIDE)

    def views(indices: list[int]) -> dict[int, bytes]:
        parameters = [sampler(90, 130, 7, index) for index in indices]
        pixels = augment(on_device([images[index] for index in indices]), parameters, SIDE)
        return {index: view.numpy().tobytes() for index, view in zip(indices, pixels, strict=True)}

    together = views([0, 1, 2, 3, 4])
    assert len(set(together.values())) == 5
    assert {**views([4, 2]), **views([0]), **views([1, 3])} == together


def test_parameters_differ_by_seed_view_and_image() -> None:
    first = ViewSampler(augmentation("light"), SIDE)
    crops = {
        sampler(500, 400, *key).crop
        for sampler in (first, ViewSampler(augmentation("light", 1), SIDE))
        for key in [(1, 0), (2, 0), (1, 1)]
    }
    assert len(crops) == 6


def test_parameters_follow_pipeline_distributions() -> None:
    shape, views = (500, 400), 1500
    view_parameters = sample_parameters("medium", shape, views)
    area = np.array(
        [(view.crop[2] - view.crop[0]) * (view.crop[3] - view.crop[1]) for view in view_parameters]
    ) / (500 * 400)
    assert 0.34 < area.min() < 0.37
    assert 0.97 < area.max() <= 1
    # A uniform share of the area, without boxes whose aspect ratio does not fit the image.
    assert 0.58 < area.mean() < 0.68
    aspect = np.array(
        [(view.crop[2] - view.crop[0]) / (view.crop[3] - view.crop[1]) for view in view_parameters]
    )
    assert 0.74 < aspect.min() < 0.78
    assert 1.27 < aspect.max() < 1.34
    assert abs(np.mean([view.flip for view in view_parameters]) - 0.5) < 0.05
    colored = [dict(view.color) for view in view_parameters if view.color]
    assert abs(len(colored) / views - 0.8) < 0.04
    for operation, low, high in [
        ("brightness", 0.8, 1.2),
        ("contrast", 0.8, 1.2),
        ("saturation", 0.8, 1.2),
        ("hue", -0.03, 0.03),
    ]:
        uniform = (np.sort([factors[operation] for factors in colored]) - low) / (high - low)  # type: ignore[index]
        # Kolmogorov-Smirnov: 1200 uniform samples exceed 0.056 with a probability of 0.001.
        assert abs(uniform - np.linspace(0, 1, len(uniform))).max() < 0.056
    firsts = [view.color[0][0] for view in view_parameters if view.color]
    assert all(
        0.2 < firsts.count(operation) / len(firsts) < 0.3
        for operation in ("brightness", "contrast", "saturation", "hue")
    )  # type: ignore[arg-type]
    angles = np.array(
        [
            np.degrees(np.arctan2(view.affine[0, 1], view.affine[0, 0]))
            for view in view_parameters
            if view.affine is not None
        ]
    )
    assert abs(len(angles) / views - 0.5) < 0.05
    assert abs((np.sort(angles) + 15) / 30 - np.linspace(0, 1, len(angles))).max() < 0.072


def test_strong_samples_all_transforms() -> None:
    view_parameters = sample_parameters("strong", (300, 300), 600)
    shares = {
        "perspective": (0.3, np.mean([view.perspective is not None for view in view_parameters])),
        "blur": (0.2, np.mean([view.blur is not None for view in view_parameters])),
        "noise": (0.2, np.mean([view.noise is not None for view in view_parameters])),
        "gray": (0.1, np.mean([view.gray for view in view_parameters])),
        "holes": (0.4, np.mean([len(view.holes) > 0 for view in view_parameters])),
    }
    for expected, share in shares.values():
        assert abs(share - expected) < 0.07
    assert {len(view.holes) for view in view_parameters} == {0, 1, 2, 3, 4}
    assert all(
        255 * 0.02 <= view.noise[0] <= 255 * 0.08
        for view in view_parameters
        if view.noise is not None
    )


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("size", [(20, 31), (1, 1), (5, 300), (64, 63)])
def test_augment_accepts_images_of_any_size(
    strength: AugmentationStrength, size: tuple[int, int]
) -> None:
    image = scene(*size)
    parameters = [ViewSampler(augmentation(strength), SIDE)(*size, 1, 0)]
    view = augment(on_device([image]), parameters, SIDE)
    assert view.shape == (1, SIDE, SIDE, 3)
    assert view.dtype == torch.uint8
    assert abs(view[0].numpy().astype(int) - augmentation(strength)(image, 1, 0)).mean() < 1


def test_autocast_does_not_change_pixels() -> None:
    image = on_device([scene(200, 300)])
    parameters = [ViewSampler(augmentation("medium"), SIDE)(200, 300, 1, 0)]
    expected = augment(image, parameters, SIDE)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(augment(image, parameters, SIDE), expected)


def test_pipeline_file_is_rejected_on_device(tmp_path: Path) -> None:
    import albumentations as A

    path = tmp_path / "flip.json"
    A.save(A.Compose([A.HorizontalFlip(p=1)]), path)
    pipelines: list[Any] = [
        Augmentation("light", Preprocessing.for_image_size(SIDE), 0, path),
        augmentation("none"),
    ]
    for pipeline in pipelines:
        with pytest.raises(ConfigError, match="only supported on the CPU"):
            ViewSampler(pipeline, SIDE)

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import albumentations as A
import numpy as np
import pytest
import torch
from PIL import Image

from edgetl.core.artifacts.split import SplitEntry
from edgetl.core.config.finetune import AugmentationStrength, Precision
from edgetl.core.errors import ConfigError
from edgetl.core.preprocessing import Preprocessing
from edgetl.device.runtime.images import load_image
from edgetl.device.runtime.preprocessing import normalize, resize_and_crop
from edgetl.train.common.precision import choose_compute_config
from edgetl.train.data.augmentation import Augmentation
from edgetl.train.data.decoded_cache import DecodedImageCache
from edgetl.train.data.loader import (
    ImageDataset,
    ImageLoader,
    ViewKey,
    default_workers,
    group_into_batches,
)

PREPROCESSING = Preprocessing.for_image_size(32)
STRENGTHS: list[AugmentationStrength] = ["light", "medium", "strong"]


@pytest.fixture
def entries(make_images: Callable[..., Path]) -> list[SplitEntry]:
    return [
        SplitEntry(path, path.parent.name, "train")
        for path in sorted(make_images("data", ["a", "b"], count=5).rglob("*.png"))
    ]


def photo(height: int = 90, width: int = 70) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    y, x = np.mgrid[:height, :width]
    return np.stack([y * 255 // height, x * 255 // width, (x * y) % 256], axis=2).astype(np.uint8)


def test_none_equals_evaluation_preprocessing() -> None:
    assert np.array_equal(
        Augmentation("none", PREPROCESSING, 0)(photo(), 1, 2),
        resize_and_crop(photo(), PREPROCESSING),
    )


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("size", [(90, 70), (20, 31), (1, 1), (5, 300)])
def test_views_have_model_size_for_any_image(
    strength: AugmentationStrength, size: tuple[int, int]
) -> None:
    view = Augmentation(strength, PREPROCESSING, 0)(photo(*size), 1, 0)
    assert view.shape == (32, 32, 3)
    assert view.dtype == np.uint8


@pytest.mark.parametrize("strength", STRENGTHS)
def test_views_depend_only_on_seed_view_and_index(
    strength: AugmentationStrength,
) -> None:
    augmentation = Augmentation(strength, PREPROCESSING, 0)
    first = augmentation(photo(), 1, 0)
    others = [
        augmentation(photo(), 2, 0),
        augmentation(photo(), 1, 1),
        Augmentation(strength, PREPROCESSING, 1)(photo(), 1, 0),
    ]
    assert not any(np.array_equal(first, other) for other in others)
    assert np.array_equal(augmentation(photo(), 1, 0), first), "independent of earlier calls"
    assert np.array_equal(Augmentation(strength, PREPROCESSING, 0)(photo(), 1, 0), first)


def test_augmentation_antialiases() -> None:
    stripes = np.zeros((512, 512, 3), np.uint8)
    stripes[:, ::2] = 255
    # Without antialiasing a view of one-pixel stripes keeps full contrast.
    assert Augmentation("light", PREPROCESSING, 0)(stripes, 1, 0).std() < 40


def images(
    entries: list[SplitEntry],
    strength: AugmentationStrength = "none",
    seed: int = 0,
    budget: int = 0,
    labels: str = "ab",
) -> ImageDataset:
    return ImageDataset(
        entries,
        list(labels),
        Augmentation(strength, PREPROCESSING, seed),
        PREPROCESSING,
        DecodedImageCache(budget, 64),
    )


@pytest.mark.parametrize("strength", STRENGTHS)
def test_pixels_do_not_depend_on_workers_or_cache(
    entries: list[SplitEntry], strength: AugmentationStrength
) -> None:
    def passes(workers: int, budget: int) -> list[torch.Tensor]:
        loader = ImageLoader(images(entries, strength, 7, budget), workers)
        epochs = [
            group_into_batches([(epoch, index) for index in range(len(entries))], 4)
            for epoch in (1, 2)
        ]
        plain = torch.cat(
            [pixels for pixels, _ in loader.iter_eval_batches(range(len(entries)), 4)]
        )
        return [*(torch.cat([pixels for pixels, _ in loader(keys)]) for keys in epochs), plain]

    threads, workers, cached = passes(0, 0), passes(2, 0), passes(0, 10**8)
    assert all(torch.equal(left, right) for left, right in zip(threads, workers, strict=True))
    assert all(torch.equal(left, right) for left, right in zip(threads, cached, strict=True))
    assert not torch.equal(threads[0], threads[1])


def test_augmentation_differs_between_workers_and_epochs(entries: list[SplitEntry]) -> None:
    """Unseeded, albumentations uses the same random numbers in every worker and every epoch."""
    same = [SplitEntry(entries[0].path, "a", "train")] * 16
    loader = ImageLoader(images(same, "medium"), workers=2)
    views = [
        view
        for epoch in (1, 2)
        for pixels, _ in loader([[(epoch, index)] for index in range(16)])
        for view in pixels
    ]
    assert len({view.numpy().tobytes() for view in views}) == 32


def test_eval_batches_equal_device_preprocessing(entries: list[SplitEntry]) -> None:
    batches = list(
        ImageLoader(images(entries, "strong", labels="ba"), 0).iter_eval_batches([9, 0], 3)
    )
    assert torch.cat([labels for _, labels in batches]).tolist() == [0, 1]
    assert np.array_equal(
        batches[0][0][0].numpy(), resize_and_crop(load_image(entries[9].path), PREPROCESSING)
    )


def test_decoded_cache_stays_within_budget(entries: list[SplitEntry]) -> None:
    image_bytes = load_image(entries[0].path).nbytes
    decoded_cache = DecodedImageCache(3 * image_bytes, 64)
    for entry in entries:
        assert np.array_equal(decoded_cache[entry.path], load_image(entry.path))
    assert 0 < decoded_cache.cached_bytes <= 3 * image_bytes
    decoded_cache.clear()
    assert decoded_cache.cached_bytes == 0


def test_fill_decoded_cache_stops_when_full(
    make_images: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = sorted(make_images("many", ["a", "b"], count=50).rglob("*.png"))
    entries = [SplitEntry(path, path.parent.name, "train") for path in paths]
    capacity = 7
    decodes: list[Path] = []

    def count_decode(
        path: Path, min_side: int | None = None
    ) -> np.ndarray[Any, np.dtype[np.uint8]]:
        decodes.append(path)
        return load_image(path, min_side)

    monkeypatch.setattr("edgetl.train.data.decoded_cache.load_image", count_decode)
    monkeypatch.setattr("edgetl.train.data.loader.available_cores", lambda: 2)
    images(entries, budget=capacity * load_image(entries[0].path).nbytes + 1).fill_decoded_cache()
    # The files differ by up to two rows of pixels, and two threads may decode one more each.
    assert capacity - 1 <= len(decodes) <= capacity + 2


def test_large_jpegs_are_reduced_for_training_only(tmp_path: Path) -> None:
    path = tmp_path / "large.jpg"
    y, x = np.mgrid[:1600, :2000]
    # Edges, a gradient and fine stripes, as in a photo: the mean of noise would hide an error.
    scene = np.stack(
        [
            128 + 90 * np.sin(x / 37 + y / 91),
            255 * ((x // 160 + y // 120) % 2),
            128 + 60 * np.sin(x / 2),
        ],
        axis=2,
    )
    Image.fromarray(scene.astype(np.uint8)).save(path, quality=92)
    preprocessing, full = Preprocessing.for_image_size(160), load_image(path)
    decoded_cache = DecodedImageCache(10**9, 768)
    assert decoded_cache[path].shape == (800, 1000, 3)
    # Equal to a gray level; the edges of a random crop are rounded to the coarser pixels.
    assert (
        abs(
            resize_and_crop(decoded_cache[path], preprocessing).astype(int)
            - resize_and_crop(full, preprocessing)
        ).mean()
        < 1
    )
    row = SplitEntry(path, "a", "val")
    plain = ImageDataset(
        [row], ["a"], Augmentation("light", preprocessing, 0), preprocessing, decoded_cache
    ).load_view((None, 0))
    assert np.array_equal(plain, resize_and_crop(full, preprocessing))
    decoded_cache.add_full_decode(path, full)
    assert decoded_cache[path].shape == (800, 1000, 3), (
        "a full decode must not replace the reduced image"
    )


def test_pipeline_file_is_used_or_rejected(tmp_path: Path) -> None:
    def save(name: str, *transforms: object) -> Path:
        path = tmp_path / name
        A.save(
            A.Compose(list(transforms)),
            path,
            data_format="yaml" if path.suffix == ".yaml" else "json",
        )
        return path

    flip = save("flip.json", A.HorizontalFlip(p=1))
    view = Augmentation("light", PREPROCESSING, 0, flip)(photo(), 1, 0)
    assert np.array_equal(
        view, resize_and_crop(np.ascontiguousarray(photo()[:, ::-1]), PREPROCESSING)
    )
    assert save("crop.yaml", A.RandomCrop(32, 32)).is_file()
    assert Augmentation("light", PREPROCESSING, 0, tmp_path / "crop.yaml")(photo(), 1, 0).shape == (
        32,
        32,
        3,
    )
    assert (
        Augmentation("light", PREPROCESSING, 0, flip).name
        != Augmentation("light", PREPROCESSING, 0, tmp_path / "crop.yaml").name
    )
    (tmp_path / "broken.json").write_text("{}")
    deep, aliases = tmp_path / "deep.json", tmp_path / "aliases.yaml"
    deep.write_text('{"transform": ' + "[" * 100_000)
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [
        f"a{number}: &a{number} [{', '.join([f'*a{number - 1}'] * 10)}]" for number in range(1, 9)
    ]
    aliases.write_text("\n".join(lines))
    for path, message in [
        (tmp_path / "none.json", "file not found"),
        (tmp_path / "broken.json", "is not a pipeline"),
        (save("float.json", A.Normalize()), "must return RGB images of type uint8"),
        (save("large.json", A.RandomCrop(5000, 5000)), "fails on an image"),
        (save("huge.json", A.Resize(60_000, 60_000)), "must be <= 32,768, got 60000"),
        (
            save("wide.yaml", A.PadIfNeeded(5000, 5000), A.LongestMaxSize(5000)),
            "must be <= 8192 pixels per side, got 10000",
        ),
        (
            save("scaled.json", A.RandomScale((0, 30)), A.RandomScale((0, 30))),
            "got 123008",
        ),
        (deep, "nested too deeply"),
        (aliases, "more than 20,000 values"),
    ]:
        with pytest.raises(ConfigError, match=message):
            Augmentation("light", PREPROCESSING, 0, path)


def test_model_input_equals_device_preprocessing() -> None:
    pixels = np.stack([resize_and_crop(photo(), PREPROCESSING)] * 2)
    inputs = choose_compute_config("cpu", "fp32").to_model_input(
        torch.from_numpy(pixels), PREPROCESSING
    )
    assert inputs.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(inputs.numpy(), normalize(pixels, PREPROCESSING), atol=1e-6)


@pytest.mark.parametrize(
    ("has_bf16", "capability", "precision", "expected"),
    [
        (True, 8, "auto", "bf16"),
        (False, 7, "auto", "fp16"),
        (False, 6, "auto", "fp32"),
        (True, 8, "fp32", "fp32"),
        (True, 8, "fp16", "fp16"),
        (False, 7, "bf16", "this GPU has no bfloat16"),
    ],
)
def test_gpu_precision_depends_on_capability(
    monkeypatch: pytest.MonkeyPatch,
    has_bf16: bool,
    capability: int,
    precision: Precision,
    expected: str,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bf16)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (capability, 0))
    if " " in expected:
        with pytest.raises(ConfigError, match=expected):
            choose_compute_config("cuda", precision)
    else:
        assert choose_compute_config("cuda", precision).precision == expected


def test_fp16_is_rejected_on_cpu() -> None:
    with pytest.raises(ConfigError, match="for GPUs"):
        choose_compute_config("cpu", "fp16")


@pytest.mark.parametrize(
    ("images", "size", "expected"),
    [
        (10, 4, [4, 4, 2]),
        (9, 4, [4, 5]),
        (1, 4, [1]),
        (3, 4, [3]),
        (8, 4, [4, 4]),
        (5, 4, [5]),
        (3, 1, [1, 1, 1]),
        (0, 4, []),
    ],
)
def test_single_last_image_joins_previous_batch(
    images: int, size: int, expected: list[int]
) -> None:
    keys: list[ViewKey] = [(1, index) for index in range(images)]
    batches = group_into_batches(keys, size)
    assert [len(batch) for batch in batches] == expected
    assert [index for batch in batches for _, index in batch] == list(range(images))


def test_default_workers_are_the_free_cores() -> None:
    assert default_workers(100_000, 16, "cpu") == 0
    assert default_workers(10, 16, "cuda") == 0
    assert default_workers(500, 4, "cuda") == 3
    assert default_workers(100_000, 64, "cuda") == 16
    assert default_workers(500, 1, "cuda") == 1

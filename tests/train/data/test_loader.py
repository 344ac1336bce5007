from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import albumentations as A
import numpy as np
import pytest
import torch
from PIL import Image

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
from edgetl.train.data.splits import SplitEntry

CONTRACT = Preprocessing.for_image_size(32)
STRENGTHS: list[AugmentationStrength] = ["light", "medium", "strong"]


@pytest.fixture
def rows(make_images: Callable[..., Path]) -> list[SplitEntry]:
    return [
        SplitEntry(path, path.parent.name, "train")
        for path in sorted(make_images("data", ["a", "b"], count=5).rglob("*.png"))
    ]


def photo(height: int = 90, width: int = 70) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    y, x = np.mgrid[:height, :width]
    return np.stack([y * 255 // height, x * 255 // width, (x * y) % 256], axis=2).astype(np.uint8)


def test_none_is_evaluation_s_preprocessing() -> None:
    assert np.array_equal(
        Augmentation("none", CONTRACT, 0)(photo(), 1, 2), resize_and_crop(photo(), CONTRACT)
    )


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("size", [(90, 70), (20, 31), (1, 1), (5, 300)])
def test_views_have_the_network_s_size_whatever_comes_in(
    strength: AugmentationStrength, size: tuple[int, int]
) -> None:
    view = Augmentation(strength, CONTRACT, 0)(photo(*size), 1, 0)
    assert view.shape == (32, 32, 3)
    assert view.dtype == np.uint8


@pytest.mark.parametrize("strength", STRENGTHS)
def test_views_differ_between_epochs_images_and_seeds_and_are_otherwise_the_same(
    strength: AugmentationStrength,
) -> None:
    augmentation = Augmentation(strength, CONTRACT, 0)
    first = augmentation(photo(), 1, 0)
    others = [
        augmentation(photo(), 2, 0),
        augmentation(photo(), 1, 1),
        Augmentation(strength, CONTRACT, 1)(photo(), 1, 0),
    ]
    assert not any(np.array_equal(first, other) for other in others)
    assert np.array_equal(augmentation(photo(), 1, 0), first), "calls in between change nothing"
    assert np.array_equal(Augmentation(strength, CONTRACT, 0)(photo(), 1, 0), first)


def test_shrinking_is_antialiased() -> None:
    stripes = np.zeros((512, 512, 3), np.uint8)
    stripes[:, ::2] = 255
    # Without antialiasing a view of one-pixel stripes keeps full contrast.
    assert Augmentation("light", CONTRACT, 0)(stripes, 1, 0).std() < 40


def images(
    rows: list[SplitEntry],
    strength: AugmentationStrength = "none",
    seed: int = 0,
    budget: int = 0,
    labels: str = "ab",
) -> ImageDataset:
    return ImageDataset(
        rows,
        list(labels),
        Augmentation(strength, CONTRACT, seed),
        CONTRACT,
        DecodedImageCache(budget, 64),
    )


@pytest.mark.parametrize("strength", STRENGTHS)
def test_neither_workers_nor_the_cache_change_a_pixel(
    rows: list[SplitEntry], strength: AugmentationStrength
) -> None:
    def passes(workers: int, budget: int) -> list[torch.Tensor]:
        loader = ImageLoader(images(rows, strength, 7, budget), workers)
        epochs = [
            group_into_batches([(epoch, index) for index in range(len(rows))], 4)
            for epoch in (1, 2)
        ]
        plain = torch.cat([pixels for pixels, _ in loader.iter_eval_batches(range(len(rows)), 4)])
        return [*(torch.cat([pixels for pixels, _ in loader(keys)]) for keys in epochs), plain]

    alone, pooled, kept = passes(0, 0), passes(2, 0), passes(0, 10**8)
    assert all(torch.equal(left, right) for left, right in zip(alone, pooled, strict=True))
    assert all(torch.equal(left, right) for left, right in zip(alone, kept, strict=True))
    assert not torch.equal(alone[0], alone[1])


def test_no_two_workers_and_no_two_epochs_repeat_an_augmentation(rows: list[SplitEntry]) -> None:
    """albumentations left to itself gives every worker the same random numbers, and every epoch again."""
    same = [SplitEntry(rows[0].path, "a", "train")] * 16
    loader = ImageLoader(images(same, "medium"), workers=2)
    views = [
        view
        for epoch in (1, 2)
        for pixels, _ in loader([[(epoch, index)] for index in range(16)])
        for view in pixels
    ]
    assert len({view.numpy().tobytes() for view in views}) == 32


def test_evaluation_gives_the_device_s_pixels_and_the_labels(rows: list[SplitEntry]) -> None:
    found = list(ImageLoader(images(rows, "strong", labels="ba"), 0).iter_eval_batches([9, 0], 3))
    assert torch.cat([labels for _, labels in found]).tolist() == [0, 1]
    assert np.array_equal(
        found[0][0][0].numpy(), resize_and_crop(load_image(rows[9].path), CONTRACT)
    )


def test_decoded_images_stay_within_the_budget(rows: list[SplitEntry]) -> None:
    one = load_image(rows[0].path).nbytes
    decoded = DecodedImageCache(3 * one, 64)
    for row in rows:
        assert np.array_equal(decoded[row.path], load_image(row.path))
    assert 0 < decoded.cached_bytes <= 3 * one
    decoded.clear()
    assert decoded.cached_bytes == 0


def test_decode_ahead_stops_when_the_budget_is_full(
    make_images: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = sorted(make_images("many", ["a", "b"], count=50).rglob("*.png"))
    rows = [SplitEntry(path, path.parent.name, "train") for path in paths]
    kept = 7
    decodes: list[Path] = []

    def counted(path: Path, least_side: int | None = None) -> np.ndarray[Any, np.dtype[np.uint8]]:
        decodes.append(path)
        return load_image(path, least_side)

    monkeypatch.setattr("edgetl.train.data.decoded_cache.load_image", counted)
    monkeypatch.setattr("edgetl.train.data.loader.available_cores", lambda: 2)
    images(rows, budget=kept * load_image(rows[0].path).nbytes + 1).fill_decoded_cache()
    # The files differ by up to two rows of pixels, and each of two threads may be at one image more.
    assert kept - 1 <= len(decodes) <= kept + 2


def test_large_jpegs_are_decoded_at_a_part_of_their_size_for_training_only(tmp_path: Path) -> None:
    path = tmp_path / "large.jpg"
    y, x = np.mgrid[:1600, :2000]
    # Edges, a gradient and fine stripes, as a photo has; noise alone would hide an error in its average.
    scene = np.stack(
        [
            128 + 90 * np.sin(x / 37 + y / 91),
            255 * ((x // 160 + y // 120) % 2),
            128 + 60 * np.sin(x / 2),
        ],
        axis=2,
    )
    Image.fromarray(scene.astype(np.uint8)).save(path, quality=92)
    contract, full = Preprocessing.for_image_size(160), load_image(path)
    decoded = DecodedImageCache(10**9, 768)
    assert decoded[path].shape == (800, 1000, 3)
    # The same picture to a grey level; a random crop's edges then round to the coarser pixels, which only moves the crop.
    assert (
        abs(
            resize_and_crop(decoded[path], contract).astype(int) - resize_and_crop(full, contract)
        ).mean()
        < 1
    )
    row = SplitEntry(path, "a", "val")
    plain = ImageDataset(
        [row], ["a"], Augmentation("light", contract, 0), contract, decoded
    ).load_view((None, 0))
    assert np.array_equal(plain, resize_and_crop(full, contract))
    decoded.add_full_decode(path, full)
    assert decoded[path].shape == (800, 1000, 3), (
        "a full decode must not take the place of what streaming would see"
    )


def test_a_saved_pipeline_augments(tmp_path: Path) -> None:
    def saved(name: str, *transforms: object) -> Path:
        path = tmp_path / name
        A.save(
            A.Compose(list(transforms)),
            path,
            data_format="yaml" if path.suffix == ".yaml" else "json",
        )
        return path

    flip = saved("flip.json", A.HorizontalFlip(p=1))
    view = Augmentation("light", CONTRACT, 0, flip)(photo(), 1, 0)
    assert np.array_equal(view, resize_and_crop(np.ascontiguousarray(photo()[:, ::-1]), CONTRACT))
    assert saved("crop.yaml", A.RandomCrop(32, 32)).is_file()
    assert Augmentation("light", CONTRACT, 0, tmp_path / "crop.yaml")(photo(), 1, 0).shape == (
        32,
        32,
        3,
    )
    assert (
        Augmentation("light", CONTRACT, 0, flip).name
        != Augmentation("light", CONTRACT, 0, tmp_path / "crop.yaml").name
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
        (saved("float.json", A.Normalize()), "must return RGB images of type uint8"),
        (saved("large.json", A.RandomCrop(5000, 5000)), "fails on an image"),
        (saved("huge.json", A.Resize(60_000, 60_000)), "must be <= 32,768, got 60000"),
        (
            saved("wide.yaml", A.PadIfNeeded(5000, 5000), A.LongestMaxSize(5000)),
            "must be <= 8192 pixels per side, got 10000",
        ),
        (
            saved("scaled.json", A.RandomScale((0, 30)), A.RandomScale((0, 30))),
            "got 123008",
        ),
        (deep, "nested too deeply"),
        (aliases, "more than 20,000 values"),
    ]:
        with pytest.raises(ConfigError, match=message):
            Augmentation("light", CONTRACT, 0, path)


def test_the_network_s_input_is_the_device_s() -> None:
    pixels = np.stack([resize_and_crop(photo(), CONTRACT)] * 2)
    given = choose_compute_config("cpu", "fp32").to_model_input(torch.from_numpy(pixels), CONTRACT)
    assert given.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(given.numpy(), normalize(pixels, CONTRACT), atol=1e-6)


@pytest.mark.parametrize(
    ("has_bf16", "capability", "asked", "expected"),
    [
        (True, 8, "auto", "bf16"),
        (False, 7, "auto", "fp16"),
        (False, 6, "auto", "fp32"),
        (True, 8, "fp32", "fp32"),
        (True, 8, "fp16", "fp16"),
        (False, 7, "bf16", "this GPU has no bfloat16"),
    ],
)
def test_the_arithmetic_of_a_gpu(
    monkeypatch: pytest.MonkeyPatch,
    has_bf16: bool,
    capability: int,
    asked: Precision,
    expected: str,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bf16)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (capability, 0))
    if " " in expected:
        with pytest.raises(ConfigError, match=expected):
            choose_compute_config("cuda", asked)
    else:
        assert choose_compute_config("cuda", asked).precision == expected


def test_float16_is_for_gpus() -> None:
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
def test_one_image_left_over_joins_the_batch_before(
    images: int, size: int, expected: list[int]
) -> None:
    keys: list[ViewKey] = [(1, index) for index in range(images)]
    cut = group_into_batches(keys, size)
    assert [len(batch) for batch in cut] == expected
    assert [index for batch in cut for _, index in batch] == list(range(images))


def test_workers_come_from_the_cores_that_training_leaves_free() -> None:
    assert default_workers(100_000, 16, "cpu") == 0
    assert default_workers(10, 16, "cuda") == 0
    assert default_workers(500, 4, "cuda") == 3
    assert default_workers(100_000, 64, "cuda") == 16
    assert default_workers(500, 1, "cuda") == 1

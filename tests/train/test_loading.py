from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from edgetl.core.config import Augment
from edgetl.core.preprocessing import Preprocessing
from edgetl.device.images import load_image
from edgetl.device.preprocessing import normalise, resize_and_crop
from edgetl.train.augmentation import Augmentation
from edgetl.train.computing import choose_computing
from edgetl.train.loading import Images, Loader, batches, default_workers
from edgetl.train.splits import SplitRow

CONTRACT = Preprocessing.for_image_size(32)
STRENGTHS: list[Augment] = ["light", "medium", "strong"]


@pytest.fixture
def rows(make_images: Callable[..., Path]) -> list[SplitRow]:
    return [SplitRow(path, path.parent.name, "train") for path in sorted(make_images("data", ["a", "b"], count=5).rglob("*.png"))]


def photo(height: int = 90, width: int = 70) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    y, x = np.mgrid[:height, :width]
    return np.stack([y * 255 // height, x * 255 // width, (x * y) % 256], axis=2).astype(np.uint8)


def test_none_is_evaluation_s_preprocessing() -> None:
    assert np.array_equal(Augmentation("none", CONTRACT, 0)(photo(), 1, 2), resize_and_crop(photo(), CONTRACT))


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("size", [(90, 70), (20, 31), (1, 1), (5, 300)])
def test_views_have_the_network_s_size_whatever_comes_in(strength: Augment, size: tuple[int, int]) -> None:
    view = Augmentation(strength, CONTRACT, 0)(photo(*size), 1, 0)
    assert view.shape == (32, 32, 3)
    assert view.dtype == np.uint8


@pytest.mark.parametrize("strength", STRENGTHS)
def test_views_differ_between_epochs_images_and_seeds_and_are_otherwise_the_same(strength: Augment) -> None:
    augmentation = Augmentation(strength, CONTRACT, 0)
    first = augmentation(photo(), 1, 0)
    others = [augmentation(photo(), 2, 0), augmentation(photo(), 1, 1), Augmentation(strength, CONTRACT, 1)(photo(), 1, 0)]
    assert not any(np.array_equal(first, other) for other in others)
    assert np.array_equal(augmentation(photo(), 1, 0), first), "calls in between change nothing"
    assert np.array_equal(Augmentation(strength, CONTRACT, 0)(photo(), 1, 0), first)


def test_shrinking_is_antialiased() -> None:
    stripes = np.zeros((512, 512, 3), np.uint8)
    stripes[:, ::2] = 255
    # Without antialiasing a view of one-pixel stripes keeps full contrast.
    assert Augmentation("light", CONTRACT, 0)(stripes, 1, 0).std() < 40


@pytest.mark.parametrize("strength", STRENGTHS)
def test_workers_change_nothing(rows: list[SplitRow], strength: Augment) -> None:
    def passes(workers: int) -> list[torch.Tensor]:
        loader = Loader(Images(rows, ["a", "b"], Augmentation(strength, CONTRACT, 7), CONTRACT), 4, workers, 7, pin_memory=False)
        indices = list(range(len(rows)))
        return [torch.cat([pixels for pixels, _ in loader.training(indices, epoch)]) for epoch in (1, 2)] + [
            torch.cat([pixels for pixels, _ in loader.evaluation(indices)])
        ]

    alone, pooled = passes(0), passes(2)
    assert all(torch.equal(left, right) for left, right in zip(alone, pooled, strict=True))
    assert not torch.equal(alone[0], alone[1])


def test_every_image_once_an_epoch_in_a_new_order(rows: list[SplitRow]) -> None:
    loader = Loader(Images(rows, ["a", "b"], Augmentation("none", CONTRACT, 0), CONTRACT), 4, 0, 0, pin_memory=False)
    plain = torch.cat([pixels for pixels, _ in loader.evaluation(range(10))])

    def order(epoch: int) -> list[int]:
        views = torch.cat([pixels for pixels, _ in loader.training(range(10), epoch)])
        return [next(index for index in range(10) if torch.equal(view, plain[index])) for view in views]

    assert sorted(order(1)) == sorted(order(2)) == list(range(10))
    assert order(1) == order(1) != order(2)


def test_evaluation_gives_the_device_s_pixels_and_the_labels(rows: list[SplitRow]) -> None:
    loader = Loader(Images(rows, ["b", "a"], Augmentation("strong", CONTRACT, 0), CONTRACT), 3, 0, 0, pin_memory=False)
    found = list(loader.evaluation([9, 0]))
    assert torch.cat([labels for _, labels in found]).tolist() == [0, 1]
    assert np.array_equal(found[0][0][0].numpy(), resize_and_crop(load_image(rows[9].path), CONTRACT))


def test_the_network_s_input_is_the_device_s() -> None:
    pixels = np.stack([resize_and_crop(photo(), CONTRACT)] * 2)
    given = choose_computing("cpu", "fp32").network_input(torch.from_numpy(pixels), CONTRACT)
    assert given.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(given.numpy(), normalise(pixels, CONTRACT), atol=1e-6)


@pytest.mark.parametrize(
    ("images", "size", "expected"),
    [(10, 4, [4, 4, 2]), (9, 4, [4, 5]), (1, 4, [1]), (3, 4, [3]), (8, 4, [4, 4]), (5, 4, [5]), (3, 1, [1, 1, 1]), (0, 4, [])],
)
def test_one_image_left_over_joins_the_batch_before(images: int, size: int, expected: list[int]) -> None:
    cut = batches([(1, index) for index in range(images)], size)
    assert [len(batch) for batch in cut] == expected
    assert [index for batch in cut for _, index in batch] == list(range(images))


def test_small_sets_need_no_workers() -> None:
    assert default_workers(10, 16) == 0
    assert default_workers(500, 2) == 2
    assert default_workers(100_000, 64) == 8

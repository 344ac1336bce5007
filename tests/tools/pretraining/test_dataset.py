"""Image generators: reproducible images, and classes that differ more than their images do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tools.pretraining.dataset import FAMILIES, Classes
from tools.pretraining.prefetch import ImagePool, draw_shard, pool_name, shard_labels, shard_path
from tools.pretraining.recipe import Recipe
from tools.pretraining.textures import Image

CLASSES_PER_FAMILY = 6
CLASSES = Classes(3, (CLASSES_PER_FAMILY,) * len(FAMILIES))


@pytest.mark.parametrize("number", range(0, CLASSES.total, 5))
@pytest.mark.parametrize("side", [40, 96])
def test_draw_is_reproducible_and_depends_on_arguments(number: int, side: int) -> None:
    image = CLASSES.draw(number, 7, side)
    assert (image.shape, image.dtype) == ((side, side, 3), np.uint8)
    assert np.array_equal(image, CLASSES.draw(number, 7, side))
    for other in (CLASSES.draw(number, 8, side), Classes(4, CLASSES.counts).draw(number, 7, side)):
        assert not np.array_equal(image, other)
    assert image.std() > 2, "the image is empty"


def test_every_number_belongs_to_one_family() -> None:
    families = [CLASSES.family(number) for number in range(CLASSES.total)]
    assert [name for name, _ in families] == [
        name for name in FAMILIES for _ in range(CLASSES_PER_FAMILY)
    ]
    assert len(set(families)) == CLASSES.total
    with pytest.raises(IndexError, match=f"no class {CLASSES.total}"):
        CLASSES.family(CLASSES.total)


def test_more_classes_of_a_family_keep_the_others_unchanged() -> None:
    more = Classes(
        3, (CLASSES_PER_FAMILY, CLASSES_PER_FAMILY + 2, CLASSES_PER_FAMILY, CLASSES_PER_FAMILY)
    )
    assert more.family(2 * CLASSES_PER_FAMILY + 2) == ("solids", 0)
    assert np.array_equal(CLASSES.draw(0, 5, 48), more.draw(0, 5, 48))


def describe(image: Image) -> NDArray[np.float64]:
    """Return features of color and fineness, which do not depend on rotation and position."""
    colors = (
        np.bincount((image // 64).reshape(-1, 3) @ np.array([16, 4, 1]), minlength=64)
        / image[..., 0].size
    )
    spectrum = np.abs(np.fft.rfft2(image.mean(2) - image.mean()))[:24, :24]
    fineness = [np.log1p(spectrum[:size, :size].mean()) / 10 for size in (2, 4, 8, 16, 24)]
    return np.concatenate([np.sqrt(colors), fineness])


@pytest.mark.parametrize("family", range(len(FAMILIES)))
def test_classes_of_a_family_are_distinguishable(family: int) -> None:
    numbers = range(family * CLASSES_PER_FAMILY, (family + 1) * CLASSES_PER_FAMILY)

    def features(instances: range) -> NDArray[np.float64]:
        return np.array(
            [
                [describe(CLASSES.draw(number, index, 64)) for index in instances]
                for number in numbers
            ]
        )

    train, test = features(range(30)), features(range(30, 50))
    distances = np.linalg.norm(test[:, :, None] - train.mean(1), axis=-1)
    accuracy = (distances.argmin(2) == np.arange(CLASSES_PER_FAMILY)[:, None]).mean()
    assert accuracy > 1.7 / CLASSES_PER_FAMILY


def small_recipe(**overrides: object) -> Recipe:
    fields = {
        "fractals": 2, "textures": 2, "solids": 2, "bodies": 2, "image_side": 32,
        "shard_images": 24, "first_shards": 1, "window_shards": 2, "reuse": 1, "batch_size": 8,
        "steps": 9,
    }  # fmt: skip
    return Recipe(**{**fields, **overrides})  # type: ignore[arg-type]


def test_shard_has_every_class_equally_often() -> None:
    recipe = small_recipe()
    assert np.bincount(shard_labels(recipe, 0)).tolist() == [3] * 8
    assert not np.array_equal(shard_labels(recipe, 0), shard_labels(recipe, 1))
    assert np.array_equal(
        draw_shard(recipe, 1)[4], recipe.classes.draw(int(shard_labels(recipe, 1)[4]), 28, 32)
    )


def test_images_of_a_step_depend_only_on_its_number(tmp_path: Path) -> None:
    folder, recipe = tmp_path, small_recipe()
    with ImagePool(folder / "first", recipe) as pool:
        batches = [pool.batch(step) for step in range(9)]
        assert [pool.window(step) for step in (0, 2, 3, 6, 8)] == [
            range(1),
            range(1),
            range(2),
            range(1, 3),
            range(1, 3),
        ]
        assert not shard_path(folder / "first", 0).exists(), "old shards are removed"
    with ImagePool(folder / "second", recipe, workers=2) as pool:
        images, labels = pool.batch(7)
    assert np.array_equal(images, batches[7][0])
    assert np.array_equal(labels, batches[7][1])
    assert not np.array_equal(images, batches[6][0])


def test_pool_name_differs_when_images_differ() -> None:
    others = [
        small_recipe(seed=1),
        small_recipe(fractals=3),
        small_recipe(image_side=40),
        small_recipe(shard_images=25),
    ]
    assert len({pool_name(recipe) for recipe in (small_recipe(), *others)}) == 5
    assert pool_name(small_recipe()) == pool_name(small_recipe(lr=1.0, steps=3))

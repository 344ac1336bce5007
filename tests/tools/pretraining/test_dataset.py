"""The generators: the same image at every call, and classes that differ more than their images do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tools.pretraining.dataset import FAMILIES, Classes
from tools.pretraining.prefetch import ImagePool, draw_shard, pool_name, shard_labels, shard_path
from tools.pretraining.recipe import Recipe
from tools.pretraining.textures import Image

EACH = 6
CLASSES = Classes(3, (EACH,) * len(FAMILIES))


@pytest.mark.parametrize("number", range(0, CLASSES.total, 5))
@pytest.mark.parametrize("side", [40, 96])
def test_equal_arguments_give_equal_images_and_others_do_not(number: int, side: int) -> None:
    image = CLASSES.draw(number, 7, side)
    assert (image.shape, image.dtype) == ((side, side, 3), np.uint8)
    assert np.array_equal(image, CLASSES.draw(number, 7, side))
    for other in (CLASSES.draw(number, 8, side), Classes(4, CLASSES.counts).draw(number, 7, side)):
        assert not np.array_equal(image, other)
    assert image.std() > 2, "an empty image teaches nothing"


def test_every_number_belongs_to_one_family() -> None:
    places = [CLASSES.family(number) for number in range(CLASSES.total)]
    assert [name for name, _ in places] == [name for name in FAMILIES for _ in range(EACH)]
    assert len(set(places)) == CLASSES.total
    with pytest.raises(IndexError, match=f"no class {CLASSES.total}"):
        CLASSES.family(CLASSES.total)


def test_more_classes_of_a_family_leave_the_others_as_they_are() -> None:
    more = Classes(3, (EACH, EACH + 2, EACH, EACH))
    assert more.family(2 * EACH + 2) == ("solids", 0)
    one, other = CLASSES.draw(0, 5, 48), more.draw(0, 5, 48)
    assert np.array_equal(one, other)


def described(image: Image) -> NDArray[np.float64]:
    """Colors and fineness: what survives turning and moving."""
    colors = (
        np.bincount((image // 64).reshape(-1, 3) @ np.array([16, 4, 1]), minlength=64)
        / image[..., 0].size
    )
    spectrum = np.abs(np.fft.rfft2(image.mean(2) - image.mean()))[:24, :24]
    fineness = [np.log1p(spectrum[:at, :at].mean()) / 10 for at in (2, 4, 8, 16, 24)]
    return np.concatenate([np.sqrt(colors), fineness])


@pytest.mark.parametrize("family", range(len(FAMILIES)))
def test_classes_of_a_family_can_be_told_apart(family: int) -> None:
    numbers = range(family * EACH, (family + 1) * EACH)
    seen, new = (np.array([[described(CLASSES.draw(number, at, 64)) for at in instances] for number in numbers])
                 for instances in (range(30), range(30, 50)))  # fmt: skip
    distances = np.linalg.norm(new[:, :, None] - seen.mean(1), axis=-1)
    accuracy = (distances.argmin(2) == np.arange(EACH)[:, None]).mean()
    assert accuracy > 1.7 / EACH


def small(**given: object) -> Recipe:
    fields = {"fractals": 2, "textures": 2, "solids": 2, "bodies": 2, "image_side": 32, "shard_images": 24, "first_shards": 1,
              "window_shards": 2, "reuse": 1, "batch_size": 8, "steps": 9}  # fmt: skip
    return Recipe(**{**fields, **given})  # type: ignore[arg-type]


def test_a_file_of_the_pool_has_every_class_equally_often() -> None:
    recipe = small()
    assert np.bincount(shard_labels(recipe, 0)).tolist() == [3] * 8
    assert not np.array_equal(shard_labels(recipe, 0), shard_labels(recipe, 1))
    assert np.array_equal(
        draw_shard(recipe, 1)[4], recipe.classes.draw(int(shard_labels(recipe, 1)[4]), 28, 32)
    )


def test_a_step_s_images_depend_on_its_number_alone(tmp_path: Path) -> None:
    folder, recipe = tmp_path, small()
    with ImagePool(folder / "one", recipe) as pool:
        seen = [pool.batch(step) for step in range(9)]
        assert [pool.window(step) for step in (0, 2, 3, 6, 8)] == [
            range(1),
            range(1),
            range(2),
            range(1, 3),
            range(1, 3),
        ]
        assert not shard_path(folder / "one", 0).exists(), "what no step will see is removed"
    with ImagePool(folder / "other", recipe, workers=2) as pool:
        images, labels = pool.batch(7)
    assert np.array_equal(images, seen[7][0])
    assert np.array_equal(labels, seen[7][1])
    assert not np.array_equal(images, seen[6][0])


def test_what_was_drawn_for_one_recipe_is_not_taken_for_another_s() -> None:
    others = [small(seed=1), small(fractals=3), small(image_side=40), small(shard_images=25)]
    assert len({pool_name(recipe) for recipe in (small(), *others)}) == 5
    assert pool_name(small()) == pool_name(small(lr=1.0, steps=3))

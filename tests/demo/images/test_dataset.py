"""Inspection images: reproducible, balanced, and different only in the defect."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgetl.core.files import sha256_file
from edgetl.demo.images.dataset import CLASSES, generate_inspection_dataset, render_image
from edgetl.demo.images.shapes import SHAPES
from edgetl.demo.images.textures import UNIT_PIXELS
from edgetl.device.runtime.images import load_image

DEFECTS = [label for label in CLASSES if label != "good"]


def test_dataset_has_equal_counts_per_class(tmp_path: Path) -> None:
    generate_inspection_dataset(tmp_path, train=3, val=2, size=96)
    counts = {
        split: {folder.name: len(list(folder.iterdir())) for folder in (tmp_path / split).iterdir()}
        for split in ("train", "val")
    }
    assert counts == {"train": dict.fromkeys(CLASSES, 3), "val": dict.fromkeys(CLASSES, 2)}
    assert {load_image(path).shape for path in tmp_path.rglob("*.jpg")} == {(96, 96, 3)}


def test_dataset_is_reproducible_and_has_no_duplicates(tmp_path: Path) -> None:
    hashes = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        folder = generate_inspection_dataset(tmp_path / name, train=3, val=3, size=96, seed=seed)
        hashes.append([sha256_file(path) for path in sorted(folder.rglob("*.jpg"))])
    assert hashes[0] == hashes[1]
    assert len(set(hashes[0] + hashes[2])) == 2 * len(hashes[0])


@pytest.mark.parametrize("label", DEFECTS)
def test_defect_is_visible_and_the_only_difference(label: str) -> None:
    for index in range(12):
        key = (5, 0, index)
        bad, good = (
            render_image(label, key, with_defect=with_defect)[0].astype(np.float32).mean(axis=2)
            for with_defect in (True, False)
        )
        changed = np.abs(bad - good) > 4
        assert 0.0008 < changed.mean() < 0.4
        assert np.abs(bad - good).max() > 10
        assert np.median(np.abs(bad - good)) < 0.5
        rows, columns = np.nonzero(changed)
        assert np.ptp(rows) < 192
        assert np.ptp(columns) < 192


def test_good_part_is_unchanged_without_defect() -> None:
    assert np.array_equal(
        render_image("good", (3,))[0], render_image("good", (3,), with_defect=False)[0]
    )


def test_part_and_light_do_not_depend_on_the_class() -> None:
    images = [render_image(label, (7,), with_defect=False)[0] for label in CLASSES]
    assert all(np.array_equal(image, images[0]) for image in images)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.__name__.strip("_"))
def test_holes_are_inside_the_part_and_do_not_touch(shape: object) -> None:
    for seed in range(30):
        part_shape = shape(np.random.default_rng(seed))  # type: ignore[operator]
        mask = part_shape.metal_mask()
        for index, (x, y, radius) in enumerate(part_shape.holes):
            mask_without_hole = part_shape.metal_mask(missing=index)
            hole = (mask_without_hole - mask).sum() / (np.pi * (radius * UNIT_PIXELS) ** 2)
            assert 0.96 < hole < 1.2, (seed, index)
            assert all(
                np.hypot(x - u, y - v) > radius + r
                for u, v, r in (*part_shape.center_bores, *part_shape.holes)
                if (u, v) != (x, y)
            )

"""The generated data set: complete, the same at every call, different from picture to picture."""

from __future__ import annotations

from pathlib import Path

from edgetl.core.files import sha256_file
from edgetl.device.images import load_image
from edgetl.train.pictures import PARTS, generate_parts


def test_writes_every_class_and_split(tmp_path: Path) -> None:
    generate_parts(tmp_path, train=3, val=2, size=48)
    counts = {split: {folder.name: len(list(folder.iterdir())) for folder in (tmp_path / split).iterdir()} for split in ("train", "val")}
    assert counts == {"train": dict.fromkeys(PARTS, 3), "val": dict.fromkeys(PARTS, 2)}
    assert {load_image(path).shape for path in tmp_path.rglob("*.jpg")} == {(48, 48, 3)}


def test_equal_seeds_give_equal_pictures_and_all_differ(tmp_path: Path) -> None:
    hashes = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        folder = generate_parts(tmp_path / name, train=3, val=2, size=48, seed=seed)
        hashes.append([sha256_file(path) for path in sorted(folder.rglob("*.jpg"))])
    assert hashes[0] == hashes[1]
    assert not set(hashes[0]) & set(hashes[2])
    assert len(set(hashes[0])) == len(hashes[0])

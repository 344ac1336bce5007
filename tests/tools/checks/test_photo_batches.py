"""Mutated images, each counted or reported by `edgetl check`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.checks.fuzz.photo_batches import FORMATS, encode_seed_images, fuzz, write_batch


def test_every_mutated_photo_is_counted_or_reported(shared: Path) -> None:
    counts = fuzz(shared / "data" / "flowers5", 2000, seed=0)
    assert counts.files == 2000
    assert counts.decoded + sum(counts.reasons.values()) == 2000
    assert 200 < counts.decoded < 1800, "some mutations are harmless, most are not"
    # A header may declare a large image; below the limit for bombs it is decoded.
    assert max(counts.peak_bytes) < 5 * 2**29


def test_mutations_are_seeded_and_change_something(parts: Path, tmp_path: Path) -> None:
    encoded = encode_seed_images(parts, 4)
    assert encoded.keys() == FORMATS.keys()
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_batch(tmp_path / name, encoded, 12, seed)
    contents = {
        name: [path.read_bytes() for path in sorted((tmp_path / name).rglob("0*"))]
        for name in "abc"
    }
    assert contents["a"] == contents["b"] != contents["c"]


def test_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="No images found in"):
        encode_seed_images(tmp_path)

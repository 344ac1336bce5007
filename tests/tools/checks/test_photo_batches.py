"""Two thousand mutated images, each of which is counted or reported by `edgetl check`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.checks.fuzz.photo_batches import FORMATS, fuzz, seeds_of, write_batch


def test_two_thousand_mutated_photos(shared: Path) -> None:
    outcome = fuzz(shared / "data" / "flowers5", 2000, seed=0)
    assert outcome.files == 2000
    assert outcome.decoded + sum(outcome.reasons.values()) == 2000
    assert 200 < outcome.decoded < 1800, "some mutations are to be harmless, most are not"
    assert max(outcome.peak_bytes) < 5 * 2**29, (
        "a header may declare a large image, and what is not a bomb is decoded"
    )


def test_mutations_are_seeded_and_change_something(parts: Path, tmp_path: Path) -> None:
    encoded = seeds_of(parts, 4)
    assert encoded.keys() == FORMATS.keys()
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_batch(tmp_path / name, encoded, 12, seed)
    contents = {
        name: [path.read_bytes() for path in sorted((tmp_path / name).rglob("0*"))]
        for name in "abc"
    }
    assert contents["a"] == contents["b"] != contents["c"]


def test_no_photos(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="No images in"):
        seeds_of(tmp_path)

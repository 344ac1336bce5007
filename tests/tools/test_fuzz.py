"""Two thousand mutated images, each of which is counted or reported; `make fuzz` takes twenty thousand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tools.fuzz import FORMATS, fuzz, mutate, seeds_of, write_batch


def test_two_thousand_mutated_photos(shared: Path) -> None:
    outcome = fuzz(shared / "data" / "flowers5", 2000, seed=0)
    assert outcome.files == 2000
    assert outcome.decoded + sum(outcome.reasons.values()) == 2000
    assert 200 < outcome.decoded < 1800, "some mutations are to be harmless, most are not"
    assert max(outcome.peak_bytes) < 5 * 2**29, "a header may declare a large image, and what is not a bomb is decoded"


def test_mutations_are_seeded_and_change_something(parts: Path, tmp_path: Path) -> None:
    encoded = seeds_of(parts, 4)
    assert encoded.keys() == FORMATS.keys()
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_batch(tmp_path / name, encoded, 12, seed)
    contents = {name: [path.read_bytes() for path in sorted((tmp_path / name).rglob("0*"))] for name in "abc"}
    assert contents["a"] == contents["b"] != contents["c"]
    original = encoded[".png"][0]
    changed = [mutate(original, original, np.random.default_rng(seed)) != original for seed in range(50)]
    assert sum(changed) > 40


def test_no_photos(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="No images in"):
        seeds_of(tmp_path)

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetl.train.features.store import (
    Features,
    FeatureStore,
    TensorSpec,
    empty_features,
    hash_feature_key,
)

ROWS = (TensorSpec((2, 3), torch.bfloat16), TensorSpec((4,), torch.float32))
TRAIN, VAL = [(2, 5)] * 2, [(3,)] * 2


def filled(made: Features) -> Features:
    for value in (*made.train, *made.val):
        value.copy_(
            torch.randn(value.shape, generator=torch.Generator().manual_seed(value.numel()))
        )
    return made


def test_what_was_kept_comes_back(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path / "store", 10**9)
    assert store.open("key") is None
    with store.create("key", TRAIN, VAL, ROWS) as made:
        expected = Features(
            *(tuple(value.clone() for value in part) for part in (filled(made).train, made.val))
        )
    found = store.open("key")
    assert found is not None
    assert [value.dtype for value in (*found.train, *found.val)] == [
        torch.bfloat16,
        torch.float32,
        torch.float32,
        torch.float32,
    ]
    for left, right in zip(
        (*found.train, *found.val), (*expected.train, *expected.val), strict=True
    ):
        assert torch.equal(left, right)
    assert found.views == 2
    assert found.total_bytes == 2 * 5 * (6 * 2 + 4 * 4) + 3 * (6 + 4) * 4


def test_readers_cannot_change_the_files(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, 10**9)
    with store.create("key", TRAIN, VAL, ROWS) as made:
        filled(made)
    first, again = store.open("key"), store.open("key")
    assert first is not None
    assert again is not None
    first.train[1].zero_()
    assert float(again.train[1].abs().sum()) > 0


def test_an_entry_is_whole_or_absent(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, 10**9)
    with pytest.raises(RuntimeError, match="killed"), store.create("key", TRAIN, VAL, ROWS):
        raise RuntimeError("killed")
    assert list(tmp_path.iterdir()) == []
    with store.create("key", TRAIN, VAL, ROWS) as made:
        filled(made)
    for damage in ("train-1.bin", "meta.json"):
        (tmp_path / "key" / damage).write_bytes(b"")
        assert store.open("key") is None
        with store.create("key", TRAIN, VAL, ROWS) as made:
            filled(made)
        assert store.open("key") is not None


def test_entries_used_longest_ago_make_room(tmp_path: Path) -> None:
    one = empty_features(TRAIN, VAL, ROWS).total_bytes
    store = FeatureStore(tmp_path, 3 * one + 2000)
    for name in ("a", "b", "c"):
        with store.create(name, TRAIN, VAL, ROWS) as made:
            filled(made)
    for age, name in enumerate(("c", "b", "a")):
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    assert store.open("a") is not None, "using an entry makes it young"
    with store.create("d", TRAIN, VAL, ROWS) as made:
        filled(made)
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b", "c", "d"}, (
        "what this run has made or used stays"
    )
    later = FeatureStore(tmp_path, 3 * one + 2000)
    assert later.open("a") is not None
    with later.create("e", TRAIN, VAL, ROWS) as made:
        filled(made)
    assert later.open("b") is None
    assert later.open("a") is not None


def test_a_full_disk_is_told_before_anything_is_mapped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with (
        pytest.raises(OSError, match="No space left"),
        FeatureStore(tmp_path, 10**9).create("key", TRAIN, VAL, ROWS),
    ):
        pytest.fail("the block must not run")
    assert list(tmp_path.iterdir()) == []


def test_what_another_run_removes_meanwhile_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FeatureStore(tmp_path, 10**9)

    def gone(*_: object, **__: object) -> None:
        raise FileNotFoundError("another run was faster")

    with store.create("key", TRAIN, VAL, ROWS) as made:
        filled(made)
        monkeypatch.setattr("pathlib.Path.rename", gone)
    assert float(made.train[1].abs().sum()) > 0, "what was computed is not lost"
    assert [path.name for path in tmp_path.iterdir()] == []


def test_what_killed_processes_left_goes_after_a_day(tmp_path: Path) -> None:
    for name, age in ((".old.x", 2 * 86400), (".young.x", 60)):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    with FeatureStore(tmp_path, 10**9).create("key", TRAIN, VAL, ROWS) as made:
        filled(made)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".young.x", "key"]


def test_bytes_that_are_not_what_was_written_are_not_used(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, 10**9)
    with store.create("key", TRAIN, VAL, ROWS) as made:
        filled(made)
    file = tmp_path / "key/val-0.bin"
    file.write_bytes(bytes(file.stat().st_size))
    assert store.open("key") is None


facts = st.dictionaries(
    st.text(max_size=5),
    st.integers() | st.text(max_size=5) | st.lists(st.integers(), max_size=3),
    max_size=4,
)


@given(facts, facts)
@settings(deadline=None)
def test_different_facts_have_different_keys(
    one: dict[str, object], other: dict[str, object]
) -> None:
    assert (hash_feature_key(one) == hash_feature_key(other)) == (one == other)
    assert hash_feature_key(dict(reversed(one.items()))) == hash_feature_key(one)

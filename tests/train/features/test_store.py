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

SPECS = (TensorSpec((2, 3), torch.bfloat16), TensorSpec((4,), torch.float32))
TRAIN, VAL = [(2, 5)] * 2, [(3,)] * 2


def fill(features: Features) -> Features:
    for value in (*features.train, *features.val):
        value.copy_(
            torch.randn(value.shape, generator=torch.Generator().manual_seed(value.numel()))
        )
    return features


def test_open_returns_the_stored_features(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path / "store", 10**9)
    assert store.open("key") is None
    with store.create("key", TRAIN, VAL, SPECS) as features:
        expected = Features(
            *(
                tuple(value.clone() for value in values)
                for values in (fill(features).train, features.val)
            )
        )
    opened = store.open("key")
    assert opened is not None
    assert [value.dtype for value in (*opened.train, *opened.val)] == [
        torch.bfloat16,
        torch.float32,
        torch.float32,
        torch.float32,
    ]
    for left, right in zip(
        (*opened.train, *opened.val), (*expected.train, *expected.val), strict=True
    ):
        assert torch.equal(left, right)
    assert opened.views == 2
    assert opened.total_bytes == 2 * 5 * (6 * 2 + 4 * 4) + 3 * (6 + 4) * 4


def test_changes_to_opened_features_are_private(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, 10**9)
    with store.create("key", TRAIN, VAL, SPECS) as features:
        fill(features)
    first, again = store.open("key"), store.open("key")
    assert first is not None
    assert again is not None
    first.train[1].zero_()
    assert float(again.train[1].abs().sum()) > 0


def test_open_returns_none_for_incomplete_entries(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, 10**9)
    with pytest.raises(RuntimeError, match="killed"), store.create("key", TRAIN, VAL, SPECS):
        raise RuntimeError("killed")
    assert list(tmp_path.iterdir()) == []
    with store.create("key", TRAIN, VAL, SPECS) as features:
        fill(features)
    for damage in ("train-1.bin", "meta.json"):
        (tmp_path / "key" / damage).write_bytes(b"")
        assert store.open("key") is None
        with store.create("key", TRAIN, VAL, SPECS) as features:
            fill(features)
        assert store.open("key") is not None


def test_create_removes_least_recently_used_entries(tmp_path: Path) -> None:
    entry_bytes = empty_features(TRAIN, VAL, SPECS).total_bytes
    store = FeatureStore(tmp_path, 3 * entry_bytes + 2000)
    for name in ("a", "b", "c"):
        with store.create(name, TRAIN, VAL, SPECS) as features:
            fill(features)
    for age, name in enumerate(("c", "b", "a")):
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    assert store.open("a") is not None, "opening an entry marks it as used"
    with store.create("d", TRAIN, VAL, SPECS) as features:
        fill(features)
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b", "c", "d"}, (
        "entries created or used by this run stay"
    )
    later = FeatureStore(tmp_path, 3 * entry_bytes + 2000)
    assert later.open("a") is not None
    with later.create("e", TRAIN, VAL, SPECS) as features:
        fill(features)
    assert later.open("b") is None
    assert later.open("a") is not None


def test_create_fails_before_the_block_when_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with (
        pytest.raises(OSError, match="No space left"),
        FeatureStore(tmp_path, 10**9).create("key", TRAIN, VAL, SPECS),
    ):
        pytest.fail("the block must not run")
    assert list(tmp_path.iterdir()) == []


def test_create_keeps_features_when_commit_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FeatureStore(tmp_path, 10**9)

    def fail(*_: object, **__: object) -> None:
        raise FileNotFoundError("stored by another run")

    with store.create("key", TRAIN, VAL, SPECS) as features:
        fill(features)
        monkeypatch.setattr("pathlib.Path.rename", fail)
    assert float(features.train[1].abs().sum()) > 0, "computed features are not lost"
    assert [path.name for path in tmp_path.iterdir()] == []


def test_create_removes_leftovers_after_a_day(tmp_path: Path) -> None:
    for name, age in ((".old.x", 2 * 86400), (".young.x", 60)):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    with FeatureStore(tmp_path, 10**9).create("key", TRAIN, VAL, SPECS) as features:
        fill(features)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".young.x", "key"]


def test_open_rejects_changed_bytes(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, 10**9)
    with store.create("key", TRAIN, VAL, SPECS) as features:
        fill(features)
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
def test_feature_key_is_unique_per_facts(
    first: dict[str, object], second: dict[str, object]
) -> None:
    assert (hash_feature_key(first) == hash_feature_key(second)) == (first == second)
    assert hash_feature_key(dict(reversed(first.items()))) == hash_feature_key(first)

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from edgetl.core.cache import get_cache_folder, prune_cache, read_cache_entry, write_cache_entry


def test_cache_folder_follows_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EDGETL_CACHE", str(tmp_path / "custom"))
    assert get_cache_folder() == tmp_path / "custom"
    monkeypatch.delenv("EDGETL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert get_cache_folder() == tmp_path / "xdg/edgetl"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert get_cache_folder() == tmp_path / ".cache/edgetl"


def test_prune_removes_least_recently_used(tmp_path: Path) -> None:
    for age, name in enumerate(["new", "middle", "old", "oldest"]):
        (tmp_path / name).mkdir()
        (tmp_path / name / "values.bin").write_bytes(b"x" * 100)
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    (tmp_path / ".unfinished").mkdir()
    prune_cache(tmp_path / "missing", 0, keep=())
    prune_cache(tmp_path, 250, keep={tmp_path / "oldest"})
    assert sorted(path.name for path in tmp_path.iterdir()) == [".unfinished", "new", "oldest"]
    prune_cache(tmp_path, 0, keep={tmp_path / "oldest"})
    assert sorted(path.name for path in tmp_path.iterdir()) == [".unfinished", "oldest"]


def test_invalid_entry_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "entry.json"
    assert read_cache_entry(path) is None
    write_cache_entry(path, {"values": {10: 0.5, 9: 1.5}, "shape": (1, 2)})
    assert read_cache_entry(path) == {"values": {"10": 0.5, "9": 1.5}, "shape": [1, 2]}
    content = json.loads(path.read_text())
    for invalid in (
        {**content, "values": []},
        {**content, "sha256": None},
        {"schema": 1, "values": 1},
        [],
        "[" * 100_000,
    ):
        path.write_text(invalid if isinstance(invalid, str) else json.dumps(invalid))
        assert read_cache_entry(path) is None
    path.write_text(json.dumps(content))
    assert read_cache_entry(path) is not None
    monkeypatch.setattr("edgetl.core.cache.__version__", "0.0.0")
    assert read_cache_entry(path) is None

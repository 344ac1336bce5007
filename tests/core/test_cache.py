from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgetl.core.cache import cache_folder, prune


def test_the_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EDGETL_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("EDGETL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg/edgetl"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache/edgetl"


def test_what_was_used_longest_ago_goes_first(tmp_path: Path) -> None:
    for age, name in enumerate(["new", "middle", "old", "oldest"]):
        (tmp_path / name).mkdir()
        (tmp_path / name / "values.bin").write_bytes(b"x" * 100)
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    (tmp_path / ".being-made").mkdir()
    prune(tmp_path / "nowhere", 0, keep=())
    prune(tmp_path, 250, keep={tmp_path / "oldest"})
    assert sorted(path.name for path in tmp_path.iterdir()) == [".being-made", "new", "oldest"]
    prune(tmp_path, 0, keep={tmp_path / "oldest"})
    assert sorted(path.name for path in tmp_path.iterdir()) == [".being-made", "oldest"]

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgetl.device.runtime import engine_cache
from edgetl.device.runtime.engine_cache import cache_paths, open_engine_cache

VERSIONS = {"gpu": "NVIDIA A", "driver": "580.1", "onnxruntime": "1.31.1", "tensorrt": "101300"}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGETL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(engine_cache, "collect_engine_versions", lambda provider: VERSIONS)
    return tmp_path / "cache"


def test_cache_paths_ignore_order_of_versions(tmp_path: Path) -> None:
    assert cache_paths(tmp_path, "a" * 64, VERSIONS) == cache_paths(
        tmp_path, "a" * 64, dict(reversed(VERSIONS.items()))
    )


@pytest.mark.parametrize("name", sorted(VERSIONS))
def test_cache_paths_differ_by_gpu_and_version(name: str, tmp_path: Path) -> None:
    first = cache_paths(tmp_path, "a" * 64, VERSIONS)
    second = cache_paths(tmp_path, "a" * 64, {**VERSIONS, name: "other"})
    assert first.engine_folder != second.engine_folder
    assert first.timing_folder != second.timing_folder


def test_engine_cache_shares_timings_but_not_engines(root: Path, tmp_path: Path) -> None:
    """onnxruntime would use the same engine names for fine-tuned models of one architecture."""
    first_model, second_model = tmp_path / "first/fp32.onnx", tmp_path / "second/fp32.onnx"
    for path, content in ((first_model, b"one"), (second_model, b"two")):
        path.parent.mkdir()
        path.write_bytes(content)
    first = open_engine_cache(first_model, "tensorrt")
    second = open_engine_cache(second_model, "tensorrt")
    assert first is not None
    assert second is not None
    assert first.engine_folder != second.engine_folder
    assert first.timing_folder == second.timing_folder
    assert first == open_engine_cache(b"one", "tensorrt")
    assert all(
        path.is_dir() and path.is_relative_to(root / "tensorrt")
        for path in (first.engine_folder, second.engine_folder, first.timing_folder)
    )


def test_engine_cache_removes_old_engines(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = open_engine_cache(b"old", "tensorrt")
    assert old is not None
    (old.engine_folder / "x.engine").write_bytes(bytes(1000))
    os.utime(old.engine_folder, (1, 1))
    monkeypatch.setattr(engine_cache, "MAX_CACHE_BYTES", 500)
    new = open_engine_cache(b"new", "tensorrt")
    assert new is not None
    assert new.engine_folder.is_dir()
    assert new.timing_folder.is_dir()
    assert not old.engine_folder.exists()


def test_engine_cache_is_none_when_not_writable(root: Path) -> None:
    root.parent.mkdir(exist_ok=True)
    root.write_text("a file in the way")
    assert open_engine_cache(b"model", "tensorrt") is None

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgetl.device.runtime import engine_cache
from edgetl.device.runtime.engine_cache import cache_paths, open_engine_cache

HERE = {"gpu": "NVIDIA A", "driver": "580.1", "onnxruntime": "1.31.1", "tensorrt": "101300"}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGETL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(engine_cache, "collect_engine_versions", lambda provider: HERE)
    return tmp_path / "cache"


def test_the_same_file_on_the_same_gpu_has_one_folder(tmp_path: Path) -> None:
    assert cache_paths(tmp_path, "a" * 64, HERE) == cache_paths(
        tmp_path, "a" * 64, dict(reversed(HERE.items()))
    )


@pytest.mark.parametrize("changed", sorted(HERE))
def test_another_gpu_or_version_has_folders_of_its_own(changed: str, tmp_path: Path) -> None:
    first, second = (
        cache_paths(tmp_path, "a" * 64, HERE),
        cache_paths(tmp_path, "a" * 64, {**HERE, changed: "other"}),
    )
    assert first.engine_folder != second.engine_folder
    assert first.timing_folder != second.timing_folder


def test_files_share_timings_but_no_engines(root: Path, tmp_path: Path) -> None:
    """Two fine-tuned models of one architecture: onnxruntime would name their engines alike."""
    first, second = tmp_path / "first/fp32.onnx", tmp_path / "second/fp32.onnx"
    for path, content in ((first, b"one"), (second, b"two")):
        path.parent.mkdir()
        path.write_bytes(content)
    one, two = open_engine_cache(first, "tensorrt"), open_engine_cache(second, "tensorrt")
    assert one is not None
    assert two is not None
    assert one.engine_folder != two.engine_folder
    assert one.timing_folder == two.timing_folder
    assert one == open_engine_cache(b"one", "tensorrt")
    assert all(
        path.is_dir() and path.is_relative_to(root / "tensorrt")
        for path in (one.engine_folder, two.engine_folder, one.timing_folder)
    )


def test_old_engines_make_room(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_cache_that_cannot_be_written_is_done_without(root: Path) -> None:
    root.parent.mkdir(exist_ok=True)
    root.write_text("a file in the way")
    assert open_engine_cache(b"model", "tensorrt") is None

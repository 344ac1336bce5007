"""Cache of optimized graphs: keys, loading, and models that cannot be cached."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from edgetl.core.config.session_modes import mode_options
from edgetl.core.errors import BenchError, BundleError
from edgetl.device.bench.backend import ModelSource
from edgetl.device.bench.ort_backend import OnnxRuntimeBackend
from edgetl.device.runtime import optimized_model_cache
from edgetl.device.runtime.optimized_model_cache import find_optimized_model
from edgetl.device.runtime.session import create_session, read_metadata

MakeBundle = Callable[..., Path]
MODE = "optimized-model"


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("EDGETL_CACHE", str(folder))
    return folder


@pytest.fixture
def model(make_bundle: MakeBundle) -> Path:
    return make_bundle() / "fp32.onnx"


def test_optimized_model_has_same_outputs_and_metadata(model: Path) -> None:
    plain, optimized = create_session(model), create_session(model, session_mode=MODE)
    images = np.random.default_rng(0).integers(0, 255, (2, 40, 50, 3), np.uint8)
    name = plain.get_inputs()[0].name
    for expected, outputs in zip(
        plain.run(None, {name: images}), optimized.run(None, {name: images}), strict=True
    ):
        np.testing.assert_array_equal(outputs, expected)
    assert read_metadata(optimized) == read_metadata(plain)
    options = optimized.get_session_options()
    for key, value in mode_options("cpu", MODE).session.items():
        assert options.get_session_config_entry(key) == value


def test_optimized_model_is_written_once(model: Path) -> None:
    path = find_optimized_model(model)
    assert path is not None
    written_ns = path.stat().st_mtime_ns
    assert find_optimized_model(model) == path
    assert find_optimized_model(model.read_bytes()) == path
    assert path.stat().st_mtime_ns == written_ns
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_optimized_model_depends_on_version_and_cpu(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [find_optimized_model(model)]
    monkeypatch.setattr(optimized_model_cache, "cpu_flags", lambda: {"avx2"})
    paths.append(find_optimized_model(model))
    monkeypatch.setattr(optimized_model_cache, "cpu_name", lambda: "another CPU")
    paths.append(find_optimized_model(model))
    monkeypatch.setattr(onnxruntime, "__version__", "99.0")
    paths.append(find_optimized_model(model))
    assert None not in paths
    assert len(set(paths)) == 4


def test_broken_optimized_model_is_replaced(model: Path) -> None:
    path = find_optimized_model(model)
    assert path is not None
    path.write_bytes(b"ORTM" + bytes(64))
    assert create_session(model, session_mode=MODE).get_outputs()
    assert not path.exists()
    assert find_optimized_model(model) == path


def test_backend_refuses_optimized_model_without_cache(model: Path, cache_folder: Path) -> None:
    cache_folder.write_text("a file where the folder should be")
    assert find_optimized_model(model) is None
    assert create_session(model, session_mode=MODE).get_outputs()
    source = ModelSource(model, threads=1, settings={"session_mode": MODE})
    with pytest.raises(BenchError, match="optimized graph was not written"):
        OnnxRuntimeBackend(source)


def test_unreadable_model_is_reported_by_session(tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes(b"no model")
    assert find_optimized_model(model) is None
    with pytest.raises(BundleError, match="cannot load"):
        create_session(model, session_mode=MODE)

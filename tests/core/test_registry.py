from __future__ import annotations

from pathlib import Path

import pytest

from edgetl.core.errors import ConfigError, MissingPackageError
from edgetl.core.registry import BACKENDS, convert_import_error, load_from_registry
from edgetl.core.runtimes import RUNTIMES, Runtime, is_installed


@pytest.mark.parametrize("name", sorted(BACKENDS))
def test_backend_implements_protocol(name: str) -> None:
    backend = load_from_registry(BACKENDS, name, "benchmark backend")
    assert {"infer", "preprocess_image", "make_inputs", "autotune", "describe"} <= set(dir(backend))


def test_unknown_name_lists_registered_names() -> None:
    with pytest.raises(ConfigError, match=r"Use one of .*onnxruntime.*pytorch"):
        load_from_registry(BACKENDS, "tflite", "benchmark backend")


def test_folder_with_the_name_of_a_runtime_is_no_package(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "folder_of_models").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(RUNTIMES, "models", Runtime("Models", "folder_of_models", None))
    assert not is_installed("models")
    assert is_installed("onnxruntime")


def test_missing_package_is_converted() -> None:
    assert isinstance(
        convert_import_error(ModuleNotFoundError(name="torch.nn")), MissingPackageError
    )
    unknown = ModuleNotFoundError(name="edgetl.nonsense")
    assert convert_import_error(unknown) is unknown

from __future__ import annotations

import pytest

from edgetl.core.errors import ConfigError, MissingPackageError
from edgetl.core.registry import BACKENDS, convert_import_error, load_from_registry


@pytest.mark.parametrize("name", sorted(BACKENDS))
def test_backend_implements_protocol(name: str) -> None:
    backend = load_from_registry(BACKENDS, name, "benchmark backend")
    assert {"infer", "preprocess_image", "make_inputs", "autotune", "describe"} <= set(dir(backend))


def test_unknown_name_lists_registered_names() -> None:
    with pytest.raises(ConfigError, match=r"Use one of .*onnxruntime.*pytorch"):
        load_from_registry(BACKENDS, "tflite", "benchmark backend")


def test_missing_package_is_converted() -> None:
    assert isinstance(
        convert_import_error(ModuleNotFoundError(name="torch.nn")), MissingPackageError
    )
    unknown = ModuleNotFoundError(name="edgetl.nonsense")
    assert convert_import_error(unknown) is unknown

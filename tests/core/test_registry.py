from __future__ import annotations

import pytest

from edgetl.core.errors import ConfigError, MissingPackageError
from edgetl.core.registry import BACKENDS, convert_import_error, load_from_registry


@pytest.mark.parametrize("name", sorted(BACKENDS))
def test_every_backend_resolves_and_keeps_the_protocol(name: str) -> None:
    backend = load_from_registry(BACKENDS, name, "benchmark backend")
    assert {"infer", "preprocess_image", "make_inputs", "autotune", "describe"} <= set(dir(backend))


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="onnxruntime, pytorch"):
        load_from_registry(BACKENDS, "tflite", "benchmark backend")


def test_a_missing_package_names_the_command() -> None:
    assert isinstance(
        convert_import_error(ModuleNotFoundError(name="torch.nn")), MissingPackageError
    )
    own = ModuleNotFoundError(name="edgetl.nonsense")
    assert convert_import_error(own) is own

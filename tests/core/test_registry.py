from __future__ import annotations

import pytest

from edgetl.core.errors import ConfigError, MissingPackageError
from edgetl.core.registry import BACKENDS, missing_package, resolve


@pytest.mark.parametrize("name", sorted(BACKENDS))
def test_every_backend_resolves_and_keeps_the_protocol(name: str) -> None:
    backend = resolve(BACKENDS, name, "benchmark backend")
    assert {"infer", "prepare", "inputs", "settle", "describe"} <= set(dir(backend))


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="onnxruntime, pytorch"):
        resolve(BACKENDS, "tflite", "benchmark backend")


def test_a_missing_package_names_the_command() -> None:
    assert isinstance(missing_package(ModuleNotFoundError(name="torch.nn")), MissingPackageError)
    own = ModuleNotFoundError(name="edgetl.nonsense")
    assert missing_package(own) is own

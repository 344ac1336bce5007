"""The names of the Python API, and the paths and objects that its classes take."""

from __future__ import annotations

import ast
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest

import edgetl
from edgetl.core import errors


def test_public_names_are_declared_alike_everywhere() -> None:
    tree = ast.parse(Path(edgetl.__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    declared = {
        alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname == alias.name
    }
    assert declared == edgetl._LAZY
    assert sorted(edgetl._LAZY) == edgetl.__all__ == sorted(edgetl.__all__)
    assert set(edgetl.__all__) <= set(dir(edgetl))


def test_public_names_are_not_hidden_by_subpackages() -> None:
    # The first import of a subpackage would replace a function of its name.
    subpackages = {path.stem for path in Path(edgetl.__file__).parent.iterdir()}
    assert not subpackages & set(edgetl.__all__)


@pytest.mark.parametrize("name", edgetl.__all__)
def test_every_public_name_resolves(name: str) -> None:
    assert getattr(edgetl, name) is getattr(import_module(edgetl._LAZY[name]), name)
    assert getattr(edgetl, name).__doc__


def test_every_error_is_public() -> None:
    classes = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.EdgetlError)
    }
    assert classes <= set(edgetl.__all__)


def test_unknown_name_raises_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'export_'"):
        edgetl.export_  # type: ignore[attr-defined]  # noqa: B018


def test_run_directory_is_accepted_as_path() -> None:
    run = edgetl.RunDirectory("runs/first")
    assert run == edgetl.RunDirectory(Path("runs/first")) == edgetl.RunDirectory(run)
    assert Path(run) == run.path == Path("runs/first")
    assert str(run) == "runs/first"
    assert run.weights == Path("runs/first/weights.safetensors")


def test_configs_convert_paths() -> None:
    run = edgetl.RunDirectory("runs/first")
    config = edgetl.FinetuneConfig("photos", output=run, augment_file="pipeline.json")
    assert config == edgetl.FinetuneConfig(
        Path("photos"), output=Path("runs/first"), augment_file=Path("pipeline.json")
    )
    for path in (config.data, config.output, config.augment_file):
        assert isinstance(path, Path)
    assert replace(config, output="elsewhere").output == Path("elsewhere")
    assert edgetl.ExportConfig(output="bundle").output == Path("bundle")
    assert edgetl.CompareConfig("experiment").output == Path("experiment")
    assert edgetl.BenchConfig(run, baseline="earlier.json") == edgetl.BenchConfig(
        Path("runs/first"), baseline=Path("earlier.json")
    )
    assert edgetl.LoadgenConfig(run, "offline", data="photos").target == run.path
    assert edgetl.CandidatesConfig(("resnet18",), output="result.json").output == Path(
        "result.json"
    )


def test_repr_of_config_shows_changed_fields() -> None:
    config = edgetl.FinetuneConfig("photos", epochs=3)
    assert repr(config) == "FinetuneConfig(data='photos', epochs=3)"
    assert repr(edgetl.ExportConfig()) == "ExportConfig()"
    assert repr(edgetl.CompareConfig("experiment")) == "CompareConfig(output='experiment')"

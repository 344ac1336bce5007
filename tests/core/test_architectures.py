from __future__ import annotations

import subprocess
import sys

import pytest

from edgetl.core.architectures import file_stem, load_architectures, source_of
from edgetl.core.typed_json import to_json


def test_mobilenet_v2_unfreezes_three_blocks_by_default() -> None:
    row = load_architectures()["mobilenet_v2"]
    assert (row.parameters, row.image_size, row.head, row.head_kind, row.blocks, row.unfreeze) == (
        3504872,
        224,
        "classifier.1",
        "linear",
        19,
        3,
    )


def test_all_architectures_have_valid_values() -> None:
    assert len(load_architectures()) >= 80
    for row in load_architectures().values():
        assert 0 < row.unfreeze <= row.blocks
        assert row.parameters > 100_000
        assert row.image_size >= 224
        assert row.head


def test_to_json_has_all_fields() -> None:
    assert to_json(load_architectures()["squeezenet1_1"]) == {
        "name": "squeezenet1_1",
        "family": "squeezenet",
        "parameters": 1235496,
        "image_size": 224,
        "head": "classifier.1",
        "head_kind": "conv",
        "blocks": 9,
        "unfreeze": 2,
    }


@pytest.mark.parametrize("module", ["edgetl.core.architectures", "edgetl.cli.models"])
def test_table_does_not_import_torch(module: str) -> None:
    code = (
        f"import sys, {module}; from edgetl.core.architectures import load_architectures; "
        "load_architectures(); print('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code]
    process = subprocess.run(command, capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("name", "source", "stem"),
    [
        ("mobilenet_v2", "torchvision", "mobilenet_v2"),
        ("my_package.my_module:build", "python", "my_package.my_module-build"),
    ],
)
def test_name_selects_source_and_file_stem(name: str, source: str, stem: str) -> None:
    assert (source_of(name), file_stem(name)) == (source, stem)

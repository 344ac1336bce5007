from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgetl.core.artifacts.run_config import read_run_configuration
from edgetl.core.errors import RunError
from edgetl.core.preprocessing import Preprocessing
from tests.helpers.runs import CLASSES, write_run


def test_run_configuration_is_read(tmp_path: Path) -> None:
    configuration = read_run_configuration(write_run(tmp_path / "run", head_width=7))
    assert configuration.config.head_width == 7
    assert configuration.config.data == Path("/photos/flowers")
    assert configuration.classes == CLASSES
    assert configuration.preprocessing == Preprocessing.for_image_size(64)
    assert configuration.requested_config is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": {"data": 3}}, "config.data must be a path, got 3"),
        (
            {"config": {"data": "a", "head_width": "128"}},
            "config.head_width must be an integer, got '128'",
        ),
        ({"config": {"data": "a", "head_width": 10**9}}, "head_width must be <= 16384"),
        ({"config": {"data": "a", "epochs": None}}, "config.epochs must be an integer"),
        ({"asked": []}, "asked must be an object"),
        ({"classes": "abc"}, "classes must be a list"),
        ({"classes": ["a", "a"]}, "1 to 65,536 different names"),
        ({"classes": []}, "1 to 65,536 different names"),
        ({"preprocessing": None}, "preprocessing must be an object"),
        (
            {"preprocessing": {**Preprocessing(64, 64).to_json(), "resize": 10_000_000}},
            "resize <= 8192 pixels, got 10000000",
        ),
        (
            {"preprocessing": {**Preprocessing(64, 64).to_json(), "std": [0, 1, 1]}},
            "std > 0",
        ),
        (
            {"data": {"fingerprint": "a", "counts": {"train": [1]}}},
            "data.counts.train must be an object",
        ),
        ({"data": {"fingerprint": "a", "counts": {"train": {"a": -1}}}}, "negative"),
        ({"weights": {"source": None, "sha256": None}}, "weights.source must be a string"),
        ({"batch": {"batch_size": 0}}, "batch has no field 'usual'"),
    ],
)
def test_field_of_wrong_type_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    run = write_run(tmp_path / "run")
    content = json.loads(run.config.read_text(encoding="utf-8"))
    run.config.write_text(json.dumps({**content, **change}), encoding="utf-8")
    with pytest.raises(RunError) as raised:
        read_run_configuration(run)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgetl.core.config import FinetuneConfig
from edgetl.core.errors import ConfigError


def test_defaults_stand_and_paths_become_text() -> None:
    content = FinetuneConfig(Path("data")).to_json()
    assert content["data"] == "data"
    assert content["output"] is None
    assert content["unfreeze"] == "auto"
    assert content["image_size"] is None


@pytest.mark.parametrize("unfreeze", ["auto", "head", "all", "0", "3"])
def test_what_unfreeze_takes(unfreeze: str) -> None:
    assert FinetuneConfig(Path("data"), unfreeze=unfreeze).unfreeze == unfreeze


@pytest.mark.parametrize(
    ("option", "value", "named"),
    [
        ("unfreeze", "some", "--unfreeze"),
        ("unfreeze", "-1", "--unfreeze"),
        ("unfreeze", "²", "--unfreeze"),
        ("image_size", 31, "--image-size"),
        ("epochs", -1, "--epochs"),
        ("finetune_epochs", -1, "--finetune-epochs"),
        ("lr", 0.0, "--lr"),
        ("finetune_lr", -1.0, "--finetune-lr"),
        ("batch_size", 0, "--batch-size"),
        ("val_split", 1.0, "--val-split"),
        ("val_split", -0.1, "--val-split"),
        ("workers", -1, "--workers"),
        ("augment", "wild", "--augment"),
        ("device", "tpu", "--device"),
        ("precision", "int8", "--precision"),
    ],
)
def test_a_wrong_value_is_named(option: str, value: Any, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        FinetuneConfig(Path("data"), **{option: value})


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        FinetuneConfig(Path("data"), batch_size=0, epochs=0, finetune_epochs=0)
    assert "--batch-size" in str(caught.value)
    assert "both 0" in str(caught.value)

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from edgetl.cli.app import format_error
from edgetl.core.config.finetune import FinetuneConfig, parse_batch_size
from edgetl.core.config.options import get_flags
from edgetl.core.errors import ConfigError

NAN, INFINITY = math.nan, math.inf


def test_to_json_has_defaults_and_paths_as_text() -> None:
    content = FinetuneConfig(Path("data")).to_json()
    assert content["data"] == "data"
    assert content["output"] is None
    assert content["unfreeze"] == "auto"
    assert content["image_size"] is None


@pytest.mark.parametrize("unfreeze", ["auto", "head", "all", "0", "3"])
def test_unfreeze_accepts_documented_values(unfreeze: str) -> None:
    assert FinetuneConfig(Path("data"), unfreeze=unfreeze).unfreeze == unfreeze


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("unfreeze", "some"),
        ("unfreeze", "-1"),
        ("unfreeze", "²"),
        ("image_size", 31),
        ("epochs", -1),
        ("finetune_epochs", -1),
        ("lr", 0.0),
        ("finetune_lr", -1.0),
        ("batch_size", 0),
        ("batch_size", "many"),
        ("val_split", 1.0),
        ("val_split", -0.1),
        ("workers", -1),
        ("augment", "wild"),
        ("device", "tpu"),
        ("input_device", "gpu"),
        ("precision", "int8"),
        ("seed", -1),
        ("seed", 2**63),
        ("batch_norm", "off"),
        ("schedule", "step"),
        ("warmup", 1.0),
        ("warmup", -0.1),
        ("warmup", NAN),
        ("lr_decay", 0.0),
        ("lr_decay", 1.1),
        ("lr_decay", NAN),
        ("weight_decay", -1e-9),
        ("weight_decay", INFINITY),
        ("clip_gradient", -1.0),
        ("clip_gradient", NAN),
        ("label_smoothing", 1.0),
        ("label_smoothing", -0.1),
        ("mixup", -0.2),
        ("mixup", INFINITY),
        ("cutmix", -1.0),
        ("cutmix", NAN),
        ("ema", 1.0),
        ("ema", -0.1),
        ("class_weights", "inverse"),
        ("sampling", "random"),
        ("patience", 0),
        ("target_accuracy", 0.0),
        ("target_accuracy", 90.0),
        ("budget_s", 0.0),
        ("budget_s", INFINITY),
        ("budget_s", NAN),
        ("head_width", -1),
        ("head_width", 16_385),
        ("image_size", 7169),
        ("epochs", 1_000_001),
        ("views", 10_001),
        ("workers", 257),
        ("dropout", 1.0),
        ("dropout", -0.1),
        ("views", 1),
        ("cache_budget", -1),
    ],
)
def test_invalid_value_names_field(field: str, value: Any) -> None:
    with pytest.raises(ConfigError) as raised:
        FinetuneConfig(Path("data"), **{field: value})
    assert str(raised.value).startswith(f"{field} must be ")
    assert format_error(raised.value).startswith(f"{get_flags(FinetuneConfig)[field]} must")
    assert "\n" not in str(raised.value), "a single error must be one line"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("lr_decay", 1.0),
        ("target_accuracy", 1.0),
        ("patience", 1),
        ("views", 2),
        ("workers", 0),
        ("cache_budget", 0),
        ("head_width", 0),
        ("dropout", 0.0),
        ("ema", 0.999),
        ("epochs", 0),
        ("finetune_epochs", 0),
        ("seed", 2**63 - 1),
        ("val_split", 0.0),
        ("class_weights", "balanced"),
        ("sampling", "balanced"),
    ],
)
def test_boundary_value_is_accepted(field: str, value: Any) -> None:
    assert getattr(FinetuneConfig(Path("data"), **{field: value}), field) == value


def test_class_weights_exclude_balanced_sampling() -> None:
    with pytest.raises(ConfigError, match="Use one of the two"):
        FinetuneConfig(Path("data"), class_weights="balanced", sampling="balanced")


def test_all_errors_are_reported_together() -> None:
    with pytest.raises(ConfigError) as raised:
        FinetuneConfig(Path("data"), batch_size=0, epochs=0, finetune_epochs=0, warmup=2.0, views=0)
    for part in ("batch_size", "both 0", "warmup", "views"):
        assert part in str(raised.value)
    assert len(str(raised.value).splitlines()) == 4


def test_input_device_cuda_needs_gpu_and_known_transforms() -> None:
    assert FinetuneConfig(Path("data"), input_device="cuda").input_device == "cuda"
    with pytest.raises(
        ConfigError, match=r"^input_device cuda needs device cuda or auto, got device cpu"
    ):
        FinetuneConfig(Path("data"), input_device="cuda", device="cpu")
    with pytest.raises(ConfigError, match="cannot run a pipeline file"):
        FinetuneConfig(Path("data"), input_device="cuda", augment_file=Path("flip.json"))
    assert FinetuneConfig(Path("data"), augment_file=Path("flip.json")).input_device == "auto"


def test_parse_batch_size() -> None:
    assert parse_batch_size("auto") == "auto"
    assert parse_batch_size("48") == 48
    for text in ("usual", "-1", "3.5", "", "1" * 10):
        with pytest.raises(ConfigError, match="must be a number of images or auto"):
            parse_batch_size(text)
    config = FinetuneConfig(Path("data"), batch_size="auto")
    assert FinetuneConfig.from_json(config.to_json()) == config

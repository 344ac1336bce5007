from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest

from edgetl.core.config.finetune import FinetuneConfig, parse_batch_size
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
    ("field", "value", "option"),
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
        ("batch_size", "many", "--batch-size"),
        ("val_split", 1.0, "--val-split"),
        ("val_split", -0.1, "--val-split"),
        ("workers", -1, "--workers"),
        ("augment", "wild", "--augment"),
        ("device", "tpu", "--device"),
        ("input_device", "gpu", "--input-device"),
        ("precision", "int8", "--precision"),
        ("seed", -1, "--seed"),
        ("seed", 2**63, "--seed"),
        ("batch_norm", "off", "--batch-norm"),
        ("schedule", "step", "--schedule"),
        ("warmup", 1.0, "--warmup"),
        ("warmup", -0.1, "--warmup"),
        ("warmup", NAN, "--warmup"),
        ("lr_decay", 0.0, "--lr-decay"),
        ("lr_decay", 1.1, "--lr-decay"),
        ("lr_decay", NAN, "--lr-decay"),
        ("weight_decay", -1e-9, "--weight-decay"),
        ("weight_decay", INFINITY, "--weight-decay"),
        ("clip_gradient", -1.0, "--clip-gradient"),
        ("clip_gradient", NAN, "--clip-gradient"),
        ("label_smoothing", 1.0, "--label-smoothing"),
        ("label_smoothing", -0.1, "--label-smoothing"),
        ("mixup", -0.2, "--mixup"),
        ("mixup", INFINITY, "--mixup"),
        ("cutmix", -1.0, "--cutmix"),
        ("cutmix", NAN, "--cutmix"),
        ("ema", 1.0, "--ema"),
        ("ema", -0.1, "--ema"),
        ("class_weights", "inverse", "--class-weights"),
        ("sampling", "random", "--sampling"),
        ("patience", 0, "--patience"),
        ("target_accuracy", 0.0, "--target-accuracy"),
        ("target_accuracy", 90.0, "--target-accuracy"),
        ("budget_s", 0.0, "--budget"),
        ("budget_s", INFINITY, "--budget"),
        ("budget_s", NAN, "--budget"),
        ("head_width", -1, "--head-width"),
        ("head_width", 16_385, "--head-width"),
        ("image_size", 7169, "--image-size"),
        ("epochs", 1_000_001, "--epochs"),
        ("views", 10_001, "--views"),
        ("workers", 257, "--workers"),
        ("dropout", 1.0, "--dropout"),
        ("dropout", -0.1, "--dropout"),
        ("views", 1, "--views"),
        ("cache_budget", -1, "--cache-budget"),
    ],
)
def test_invalid_value_names_option(field: str, value: Any, option: str) -> None:
    with pytest.raises(ConfigError) as raised:
        FinetuneConfig(Path("data"), **{field: value})
    assert re.search(rf"(?<!\S){option}\b", str(raised.value))
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
    for part in ("--batch-size", "both 0", "--warmup", "--views"):
        assert part in str(raised.value)
    assert len(str(raised.value).splitlines()) == 4


def test_input_device_cuda_needs_gpu_and_known_transforms() -> None:
    assert FinetuneConfig(Path("data"), input_device="cuda").input_device == "cuda"
    with pytest.raises(ConfigError, match="needs --device cuda or auto, got --device cpu"):
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

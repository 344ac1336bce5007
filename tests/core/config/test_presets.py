from __future__ import annotations

import tomllib
from dataclasses import fields
from itertools import product
from pathlib import Path
from typing import Any, get_args
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetl.core.config import presets as module
from edgetl.core.config.finetune import (
    AugmentationStrength,
    BatchNorm,
    ClassWeights,
    FinetuneConfig,
    Schedule,
)
from edgetl.core.config.presets import (
    PRESET_DESCRIPTIONS,
    RECIPE_FIELDS,
    format_preset_toml,
    get_presets,
    read_config_file,
    resolve_config,
)
from edgetl.core.errors import ConfigError

DATA = Path("photos")


def choices(literal: Any) -> st.SearchStrategy[str]:
    return st.sampled_from(get_args(literal))


rates = st.floats(1e-12, 1.0)
shares = st.floats(0.0, 1.0, exclude_max=True)
amounts = st.floats(0.0, 1e6)
recipes = st.fixed_dictionaries(
    {
        "epochs": st.integers(0, 1000),
        "lr": rates,
        "unfreeze": st.sampled_from(["auto", "head", "all"]) | st.integers(0, 99).map(str),
        "finetune_epochs": st.none() | st.integers(1, 1000),
        "finetune_lr": st.none() | rates,
        "batch_size": st.none() | st.just("auto") | st.integers(1, 4096),
        "views": st.none() | st.integers(2, 20),
        "batch_norm": choices(BatchNorm),
        "schedule": choices(Schedule),
        "warmup": shares,
        "lr_decay": rates,
        "weight_decay": amounts,
        "clip_gradient": amounts,
        "label_smoothing": shares,
        "mixup": amounts,
        "cutmix": amounts,
        "ema": shares,
        "class_weights": choices(ClassWeights),
        "sampling": st.just("shuffled"),
        "head_width": st.integers(0, 4096),
        "dropout": shares,
        "augment": choices(AugmentationStrength),
    }
)


@pytest.fixture
def file(tmp_path: Path) -> Any:
    """Return a function that writes a configuration file."""

    def write(text: str) -> Path:
        path = tmp_path / "my.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def recipe_of(config: FinetuneConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in RECIPE_FIELDS}


def test_every_preset_sets_all_recipe_fields() -> None:
    field_names = {field.name for field in fields(FinetuneConfig)}
    assert set(RECIPE_FIELDS) <= field_names
    assert get_presets().keys() == PRESET_DESCRIPTIONS.keys()
    for name, values in get_presets().items():
        assert tuple(values) == RECIPE_FIELDS, name
        assert FinetuneConfig(DATA, preset=name, **values)


def test_default_preset_equals_config_defaults() -> None:
    assert resolve_config(DATA, None, None, {}) == FinetuneConfig(DATA)


def test_classic_preset_does_not_use_defaults() -> None:
    """The preset reproduces a published experiment, so new defaults must not change it."""
    with patch.dict(module._DEFAULTS, dict.fromkeys(RECIPE_FIELDS)):
        classic = get_presets()["classic"]
    assert None not in classic.values(), "a value of classic is from the default preset"
    assert (classic["lr"], classic["finetune_lr"], classic["schedule"]) == (1e-3, 1e-5, "constant")


@pytest.mark.parametrize(("base", "preset"), product(get_presets(), get_presets()))
def test_preset_file_overrides_base_preset(base: str, preset: str, file: Any) -> None:
    path = file(format_preset_toml(preset))
    assert resolve_config(DATA, None, path, {}) == FinetuneConfig(
        DATA, preset=preset, **get_presets()[preset]
    )
    assert resolve_config(DATA, base, path, {}) == FinetuneConfig(
        DATA, preset=base, **get_presets()[preset]
    )


@settings(deadline=None)
@given(recipe=recipes)
def test_recipe_round_trips_through_toml(
    recipe: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "random.toml"
    with (
        patch.object(module, "get_presets", lambda: {"random": recipe}),
        patch.dict(PRESET_DESCRIPTIONS, {"random": "A random recipe."}),
    ):
        path.write_text(format_preset_toml("random"), encoding="utf-8")
    assert tomllib.loads(path.read_text(encoding="utf-8")).keys() == {"preset", *RECIPE_FIELDS}
    path.write_text(
        path.read_text(encoding="utf-8").replace('preset = "random"', 'preset = "classic"'),
        encoding="utf-8",
    )
    assert recipe_of(resolve_config(DATA, None, path, {})) == recipe


def test_option_overrides_file_and_file_overrides_preset(file: Any) -> None:
    path = file('preset = "classic"\nfinetune-epochs = 7\nlr = 0.5\nval_split = 0.3')
    config = resolve_config(DATA, None, path, {"lr": 0.25, "seed": 3})
    assert (config.preset, config.finetune_lr, config.batch_norm) == ("classic", 1e-5, "train")
    assert (config.finetune_epochs, config.val_split) == (7, 0.3)
    assert (config.lr, config.seed) == (0.25, 3)
    assert (
        resolve_config(DATA, "default", path, {}).finetune_lr
        == get_presets()["default"]["finetune_lr"]
    )
    assert resolve_config(DATA, "default", path, {}).lr == 0.5


@pytest.mark.parametrize(("text", "value"), [('"auto"', "auto"), ('"usual"', None), ("48", 48)])
def test_batch_size_in_file(text: str, value: object, file: Any) -> None:
    assert resolve_config(DATA, None, file(f"batch-size = {text}"), {}).batch_size == value


def test_read_config_file_parses_all_value_types(file: Any) -> None:
    text = """
        model = "resnet18"
        weights = "none"
        image-size = 64
        unfreeze = 3
        lr = 1
        budget = "1h30m"
        cache-budget = "1.5GiB"
        compile = true
        device = "cpu"
        workers = 0
        target-accuracy = 0.9
    """
    assert read_config_file(file(text)) == {
        "model": "resnet18",
        "weights": "none",
        "image_size": 64,
        "unfreeze": "3",
        "lr": 1.0,
        "budget_s": 5400.0,
        "cache_budget": 3 * 2**29,
        "compile": True,
        "device": "cpu",
        "workers": 0,
        "target_accuracy": 0.9,
    }
    assert read_config_file(file("budget = 90\ncache_budget = 0")) == {
        "budget_s": 90.0,
        "cache_budget": 0,
    }


def test_augment_option_overrides_pipeline_in_file(file: Any, tmp_path: Path) -> None:
    pipeline = tmp_path / "pipeline.json"
    pipeline.write_text("{}")
    for text in (f'augment = "{pipeline}"', f'augment = "light"\naugment-file = "{pipeline}"'):
        path = file(text)
        assert resolve_config(DATA, None, path, {}).augment_file == pipeline
        config = resolve_config(DATA, None, path, {"augment": "strong"})
        assert (config.augment, config.augment_file) == ("strong", None)
    assert (
        resolve_config(
            DATA, None, file('augment = "strong"'), {"augment_file": pipeline}
        ).augment_file
        == pipeline
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rate = 1", "unknown key 'learning_rate'"),
        ('data = "photos"', "unknown key 'data'"),
        ('output = "run"', "unknown key 'output'"),
        ("force = true", "unknown key 'force'"),
        ("[finetune]\nlr = 1", "unknown key 'finetune'"),
        ('lr = "fast"', "lr: must be a number, got 'fast'"),
        ("lr = true", "lr: must be a number, got True"),
        ("patience = 2.5", "patience: must be an integer, got 2.5"),
        ("epochs = 5.0", "epochs: must be an integer, got 5.0"),
        ("epochs = true", "epochs: must be an integer, got True"),
        ('workers = "all"', "workers: must be an integer"),
        ("compile = 1", "compile: must be true or false, got 1"),
        ("model = 18", "model: must be a string, got 18"),
        ("schedule = 1", "schedule: must be a string, got 1"),
        ("unfreeze = true", "unfreeze: must be a string, got True"),
        ("augment = 1", "augment: must be a string, got 1"),
        ("augment_file = 1", "augment_file: must be a string, got 1"),
        (
            f'augment = "{"x" * 5000}"',
            "augment: must be one of none, light, medium, strong or a file "
            "(a pipeline saved by albumentations), got 'xxx",
        ),
        (
            'augment = "wild"',
            "augment: must be one of none, light, medium, strong or a file",
        ),
        ('budget = "soon"', "budget: 'soon' is not a duration"),
        ('cache-budget = "much"', "cache-budget: 'much' is not a size"),
        ("preset = 1", "preset: must be a string, got 1"),
        ('preset = "best"', "preset: Unknown preset 'best'"),
        ("lr-decay = 1\nlr_decay = 0.5", "lr_decay: set twice"),
        ("budget = 60\nbudget_s = 90", "budget_s: set twice"),
        (f"lr = 1{'0' * 400}", "lr: must be a finite number"),
    ],
)
def test_error_in_file_names_file_and_key(file: Any, text: str, message: str) -> None:
    path = file(text)
    with pytest.raises(ConfigError) as raised:
        read_config_file(path)
    first, hint = str(raised.value).splitlines()
    assert first.startswith(f"{path}: {message}")
    assert "`edgetl presets default`" in hint


def test_all_errors_in_file_are_reported_together(file: Any) -> None:
    with pytest.raises(ConfigError) as raised:
        read_config_file(
            file('speed = 1\nlr = "fast"\nbudget = "soon"\nepochs = 3\npreset = "best"')
        )
    lines = str(raised.value).splitlines()
    assert len(lines) == 5
    for part in ("'speed'", "lr: ", "budget: ", "'best'"):
        assert sum(part in line for line in lines) == 1


def test_all_invalid_values_are_reported_together(file: Any) -> None:
    with pytest.raises(ConfigError) as raised:
        resolve_config(
            DATA, None, file('schedule = "step"\nunfreeze = -1\nwarmup = nan'), {"views": 0}
        )
    for part in ("schedule must", "unfreeze must", "warmup must", "views must"):
        assert part in str(raised.value)


@pytest.mark.parametrize(
    "content", [b"epochs: 5", b"epochs = 1\nepochs = 2", b"\xff\xfee", b"seed = 1" + b"0" * 5000]
)
def test_invalid_toml_is_rejected(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "my.toml").write_bytes(content)
    with pytest.raises(ConfigError, match="is not TOML"):
        read_config_file(tmp_path / "my.toml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs = " + "[" * 100_000, "nested too deeply"),
        ("epochs = " + "[" * 100 + "]" * 100, "epochs: must be an integer, got "),
        ("head_width = 100000000", "head_width must be <= 16384, got 100000000"),
        (f"seed = {2**70}", "seed: must be an integer of at most 64 bits"),
        ('augment = "a\\u0000b"', "augment: must be one of"),
    ],
)
def test_excessive_values_in_file_are_rejected(file: Any, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        resolve_config(Path("data"), None, file(text), {})
    assert message in str(raised.value)
    assert len(str(raised.value)) < 500


def test_unreadable_file_is_rejected(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere.toml"):
        with pytest.raises(ConfigError, match="Cannot read"):
            read_config_file(path)


@pytest.mark.parametrize("name", ["best", "", "Classic"])
def test_unknown_preset_lists_presets(name: str) -> None:
    with pytest.raises(ConfigError, match="Use one of default, classic"):
        resolve_config(DATA, name, None, {})
    with pytest.raises(ConfigError, match="Use one of default, classic"):
        format_preset_toml(name)

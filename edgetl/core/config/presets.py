"""Presets (named recipes) and TOML files for `--config`.

Options override the file, and the file overrides the preset.
"""

from __future__ import annotations

import json
import tomllib
from contextlib import suppress
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

from edgetl.core.config.finetune import AugmentationStrength, FinetuneConfig
from edgetl.core.config.options import parse_duration, parse_size
from edgetl.core.errors import ConfigError
from edgetl.core.files import read_regular_file
from edgetl.core.typed_json import MAX_INTEGER

RECIPE_FIELDS = (
    "epochs", "lr", "unfreeze", "finetune_epochs", "finetune_lr", "batch_size", "batch_norm",
    "schedule", "warmup", "lr_decay", "weight_decay", "clip_gradient", "label_smoothing", "mixup",
    "cutmix", "ema", "class_weights", "sampling", "head_width", "dropout", "augment", "views",
)  # fmt: skip
"""Fields that a preset sets."""
_AUTO = "auto"
_USUAL = "usual"
_MAX_CONFIG_BYTES = 2**20
_MAX_VALUE_CHARACTERS = 60
_FIELDS_NOT_IN_FILES = ("data", "output", "force")
_DEFAULTS = {
    field.name: field.default for field in fields(FinetuneConfig) if field.default is not MISSING
}


def get_presets() -> dict[str, dict[str, Any]]:
    """Return all presets: name to the value of every field in RECIPE_FIELDS."""
    default = {name: _DEFAULTS[name] for name in RECIPE_FIELDS}
    return {"default": default, "classic": {**default, **_CLASSIC}}


PRESET_DESCRIPTIONS = {
    "default": "The recipe with the best results on data sets both close to and far from ImageNet.",
    "classic": "The classic recipe: 5 epochs of the head at 1e-3, then 5 of the last blocks at 1e-5, "
    "Adam with constant learning rates.",
}
"""Description of each preset."""

_CLASSIC: dict[str, Any] = {
    "epochs": 5,
    "lr": 1e-3,
    "unfreeze": "auto",
    "finetune_epochs": 5,
    "finetune_lr": 1e-5,
    "batch_size": 32,
    "batch_norm": "train",
    "schedule": "constant",
    "warmup": 0.0,
    "lr_decay": 1.0,
    "weight_decay": 0.0,
    "clip_gradient": 0.0,
    "label_smoothing": 0.0,
    "mixup": 0.0,
    "cutmix": 0.0,
    "ema": 0.0,
    "class_weights": "none",
    "sampling": "shuffled",
    "head_width": 128,
    "dropout": 0.2,
    "augment": "light",
    "views": 10,
}


def resolve_config(
    data: Path, preset: str | None, file: Path | None, options: dict[str, Any]
) -> FinetuneConfig:
    """Return the configuration from a preset, overridden by a TOML file and by options.

    Args:
        data: Folder of images.
        preset: Name of the preset; None is the one in the file, or `default`.
        file: TOML file with values, if any.
        options: Values of the options that the user set, by field.

    Raises:
        ConfigError: The preset is unknown, or the file or values are invalid; all problems at once.
    """
    values = read_config_file(file) if file else {}
    file_preset = values.pop("preset", "default")
    name = file_preset if preset is None else preset
    if name not in get_presets():
        raise ConfigError(_format_unknown_preset(name))
    if "augment" in options:
        # `augment_file` takes precedence in FinetuneConfig, so the file's would hide the option.
        values.pop("augment_file", None)
    return FinetuneConfig(data, preset=name, **{**get_presets()[name], **values, **options})


def read_config_file(path: Path) -> dict[str, Any]:
    """Read a TOML file of options; keys are the names of options with - or _.

    Returns:
        Values by field name, including `preset`.

    Raises:
        ConfigError: The file cannot be read or is not TOML; or presets or keys are unknown, keys
            are repeated, or values have the wrong type, all problems at once.
    """
    try:
        content = tomllib.loads(read_regular_file(path, _MAX_CONFIG_BYTES).decode())
    except OSError as cause:
        raise ConfigError(
            f"Cannot read {path} ({cause.strerror}). Give --config a TOML file."
        ) from cause
    except RecursionError as cause:
        raise ConfigError(
            f"{path} is nested too deeply. `edgetl presets default` prints a file to start from."
        ) from cause
    except ValueError as cause:
        # TOMLDecodeError, UnicodeDecodeError, or an integer with too many digits.
        raise ConfigError(
            f"{path} is not TOML: {cause}. `edgetl presets default` prints a file to start from."
        ) from cause
    kinds = {
        name: kind
        for name, kind in get_type_hints(FinetuneConfig).items()
        if name not in _FIELDS_NOT_IN_FILES
    }
    values: dict[str, Any] = {}
    problems = []
    for key, value in content.items():
        name = {"budget": "budget_s"}.get(key, key.replace("-", "_"))
        if name not in kinds:
            problems.append(f"{path}: unknown key {_abbreviate(key)}.")
            continue
        try:
            if name == "augment" and isinstance(value, str):
                name, parsed = parse_augment(value)
            else:
                parsed = _parse_value(name, value, kinds[name])
        except ConfigError as cause:
            problems.append(f"{path}: {key}: {cause}")
            continue
        if name in values:
            problems.append(f"{path}: {key}: set twice.")
        values[name] = parsed
    if problems:
        problems.append("`edgetl presets default` prints a file with all keys of a recipe.")
        raise ConfigError("\n".join(problems))
    return values


def parse_augment(text: str) -> tuple[str, str | Path]:
    """Parse `--augment` into the field `augment` or `augment_file` and its value.

    Raises:
        ConfigError: The text is neither a strength nor an existing file.
    """
    strengths = get_args(AugmentationStrength)
    if text in strengths:
        return "augment", text
    # A text with a NUL, one too long for a file name, or a folder without permission.
    with suppress(OSError, ValueError):
        if Path(text).is_file():
            return "augment_file", Path(text)
    raise ConfigError(
        f"must be one of {', '.join(strengths)} or a file (a pipeline saved by albumentations), "
        f"got {_abbreviate(text)}."
    )


def format_preset_toml(name: str) -> str:
    """Return a preset as a TOML file for `--config`.

    `auto` marks values that edgetl chooses from the data, `usual` such a batch size.

    Raises:
        ConfigError: The preset is unknown.
    """
    if name not in get_presets():
        raise ConfigError(_format_unknown_preset(name))
    # Numbers, strings and booleans are the same in TOML and JSON.
    lines = [f"# {PRESET_DESCRIPTIONS[name]}", f'preset = "{name}"']
    for key, value in get_presets()[name].items():
        if value is None:
            value = _USUAL if key == "batch_size" else _AUTO
        lines.append(f"{key} = {json.dumps(value)}")
    return "\n".join(lines) + "\n"


def _format_unknown_preset(preset: str) -> str:
    presets = ", ".join(get_presets())
    return f"Unknown preset {_abbreviate(preset)}. Use one of {presets}; see `edgetl presets`."


def _parse_value(name: str, value: Any, kind: Any) -> Any:
    if name == "preset" and isinstance(value, str) and value not in get_presets():
        raise ConfigError(_format_unknown_preset(value))
    if name == "budget_s" and isinstance(value, str):
        return parse_duration(value)
    if name == "cache_budget" and isinstance(value, str):
        return parse_size(value)
    if name == "batch_size" and value in (_AUTO, _USUAL):
        return "auto" if value == _AUTO else None
    if name == "unfreeze" and type(value) is int:
        return str(value)
    kinds = get_args(kind) or (kind,)
    if value == _AUTO and type(None) in kinds:
        return None
    if Path in kinds and isinstance(value, str):
        if "\0" in value:
            raise ConfigError("must be a path without NUL characters.")
        return Path(value)
    if float in kinds and type(value) in (int, float):
        try:
            return float(value)
        except OverflowError as cause:
            raise ConfigError("must be a finite number.") from cause
    expected = next(candidate for candidate in _TYPE_NAMES if candidate in (*kinds, str))
    if not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool):
        raise ConfigError(f"must be {_TYPE_NAMES[expected]}, got {_abbreviate(value)}.")
    if isinstance(value, int) and abs(value) > MAX_INTEGER:
        raise ConfigError("must be an integer of at most 64 bits.")
    return value


def _abbreviate(value: Any) -> str:
    try:
        text = repr(value)
    except (RecursionError, ValueError):
        # Nested tables, or an integer with too many digits.
        text = type(value).__name__
    if len(text) <= _MAX_VALUE_CHARACTERS:
        return text
    return f"{text[:_MAX_VALUE_CHARACTERS]}..."


_TYPE_NAMES: dict[type, str] = {
    bool: "true or false",
    float: "a number",
    int: "an integer",
    str: "a string",
}
"""Types of fields and their names in messages; paths and choices are strings in a file."""

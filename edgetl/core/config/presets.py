"""Presets (named recipes) and TOML files for `--config`.

Options override the file, and the file overrides the preset.
"""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

from edgetl.core.config.finetune import FinetuneConfig
from edgetl.core.config.options import OptionField, get_option_fields, iterate_all_option_fields
from edgetl.core.config.parsers import abbreviate
from edgetl.core.errors import ConfigError
from edgetl.core.files import parse_json, read_regular_file
from edgetl.core.typed_json import MAX_INTEGER

RECIPE_FIELDS = tuple(
    declared.name for declared in get_option_fields(FinetuneConfig) if declared.option.preset
)
"""Fields that a preset sets."""
_MAX_CONFIG_BYTES = 2**20
_PRESET_HINT = "`edgetl presets default` prints a file to start from."
_OPTIONS_HINT = "Its keys are the names of options."
_DEFAULTS = {declared.name: declared.default for declared in get_option_fields(FinetuneConfig)}


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


def read_config_file(path: Path, config: type = FinetuneConfig) -> dict[str, Any]:
    """Read a file of options; keys are the names of options or fields, with - or _.

    Args:
        path: TOML file, or a JSON file if its name ends in .json.
        config: Configuration with the options.

    Returns:
        Values by field name, including `preset` and the fields of nested configurations.

    Raises:
        ConfigError: The file cannot be read or is not TOML; or presets or keys are unknown, keys
            are repeated, or values have the wrong type, all problems at once.
    """
    hint = _PRESET_HINT if issubclass(config, FinetuneConfig) else _OPTIONS_HINT
    content = _read_table(path, hint)
    declared_by_key = {
        key: declared
        for declared in iterate_all_option_fields(config)
        if declared.option.in_files
        for key in declared.keys
    }
    values: dict[str, Any] = {}
    problems = []
    for key, content_value in content.items():
        declared = declared_by_key.get(key.replace("-", "_"))
        if declared is None:
            problems.append(f"{path}: unknown key {abbreviate(key)}.")
            continue
        try:
            value = _parse_value(declared, content_value)
        except ConfigError as cause:
            problems.append(f"{path}: {key}: {cause}")
            continue
        count = len(values)
        declared.assign(values, value)
        if len(values) == count:
            problems.append(f"{path}: {key}: set twice.")
    if problems:
        raise ConfigError("\n".join([*problems, hint]))
    return values


def _read_table(path: Path, hint: str) -> dict[str, Any]:
    is_json = path.suffix == ".json"
    try:
        text = read_regular_file(path, _MAX_CONFIG_BYTES).decode()
        content = parse_json(text) if is_json else tomllib.loads(text)
    except OSError as cause:
        raise ConfigError(f"Cannot read {path} ({cause.strerror}). Give a TOML file.") from cause
    except RecursionError as cause:
        raise ConfigError(f"{path} is nested too deeply. {hint}") from cause
    except ValueError as cause:
        # TOMLDecodeError, UnicodeDecodeError, or an integer with too many digits.
        kind = "JSON" if is_json else "TOML"
        raise ConfigError(f"{path} is not {kind}: {cause}. {hint}") from cause
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must be an object of options. {hint}")
    return content


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
    values = get_presets()[name]
    for declared in get_option_fields(FinetuneConfig):
        if declared.option.preset:
            value = values[declared.name]
            text = declared.option.none_word if value is None else value
            lines.append(f"{declared.name} = {json.dumps(text)}")
    return "\n".join(lines) + "\n"


def _format_unknown_preset(preset: str) -> str:
    presets = ", ".join(get_presets())
    return f"Unknown preset {abbreviate(preset)}. Use one of {presets}; see `edgetl presets`."


def _parse_value(declared: OptionField, value: Any) -> Any:
    if declared.name == "preset" and isinstance(value, str) and value not in get_presets():
        raise ConfigError(_format_unknown_preset(value))
    if declared.is_nullable and value in (None, declared.option.none_word):
        return None
    if declared.is_list:
        return _parse_list(declared, value)
    if isinstance(value, str) and declared.option.parse is not None:
        return declared.parse([value])
    if declared.option.integer_as_text and type(value) is int:
        return str(value)
    if Path in declared.kinds and isinstance(value, str):
        if "\0" in value:
            raise ConfigError("must be a path without NUL characters.")
        return Path(value)
    if float in declared.kinds and type(value) in (int, float):
        try:
            return float(value)
        except OverflowError as cause:
            raise ConfigError("must be a finite number.") from cause
    expected = next(kind for kind in _TYPE_NAMES if kind in (*declared.kinds, str))
    if not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool):
        raise ConfigError(f"must be {_TYPE_NAMES[expected]}, got {abbreviate(value)}.")
    if isinstance(value, int) and abs(value) > MAX_INTEGER:
        raise ConfigError("must be an integer of at most 64 bits.")
    return value


def _parse_list(declared: OptionField, value: Any) -> Any:
    """Parse a list, a text with commas, or a single value."""
    parts = value if isinstance(value, list) else [value]
    is_numeric = int in declared.kinds or float in declared.kinds
    if any(type(part) not in ((str, int, float) if is_numeric else (str,)) for part in parts):
        noun = "numbers" if is_numeric else "strings"
        raise ConfigError(f"must be a list of {noun}, got {abbreviate(value)}.")
    return declared.parse([str(part) for part in parts])


_TYPE_NAMES: dict[type, str] = {
    bool: "true or false",
    float: "a number",
    int: "an integer",
    str: "a string",
}
"""Types of fields and their names in messages; paths and choices are strings in a file."""

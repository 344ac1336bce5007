"""Presets: recipes by name. What a user gives, in a file or as an option, stands above the preset."""

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
    "epochs", "lr", "unfreeze", "finetune_epochs", "finetune_lr", "batch_size", "batch_norm", "schedule", "warmup", "lr_decay",
    "weight_decay", "clip_gradient", "label_smoothing", "mixup", "cutmix", "ema", "class_weights", "sampling", "head_width", "dropout",
    "augment", "views",
)  # fmt: skip
"""The fields that a preset sets."""
_AUTO = "auto"
_USUAL = "usual"
_MAX_CONFIG_BYTES = 2**20
_MAX_VALUE_CHARACTERS = 60
_FIELDS_NOT_IN_FILES = ("data", "output", "force")
_DEFAULTS = {
    field.name: field.default for field in fields(FinetuneConfig) if field.default is not MISSING
}


def get_presets() -> dict[str, dict[str, Any]]:
    """Name to the value of every field in RECIPE."""
    default = {name: _DEFAULTS[name] for name in RECIPE_FIELDS}
    return {"default": default, "classic": {**default, **_CLASSIC}}


PRESET_DESCRIPTIONS = {
    "default": "The recipe that did best on sets near to ImageNet and far from it.",
    "classic": "The classic experiment: 5 epochs of the head at 1e-3, 5 of the last blocks at 1e-5, Adam at constant rates.",
}
"""What each preset is for."""

_CLASSIC: dict[str, Any] = {
    "epochs": 5, "lr": 1e-3, "unfreeze": "auto", "finetune_epochs": 5, "finetune_lr": 1e-5, "batch_size": 32, "batch_norm": "train",
    "schedule": "constant", "warmup": 0.0, "lr_decay": 1.0, "weight_decay": 0.0, "clip_gradient": 0.0, "label_smoothing": 0.0,
    "mixup": 0.0, "cutmix": 0.0, "ema": 0.0, "class_weights": "none", "sampling": "shuffled", "head_width": 128, "dropout": 0.2,
    "augment": "light", "views": 10,
}  # fmt: skip


def resolve_config(
    data: Path, preset: str | None, file: Path | None, given: dict[str, Any]
) -> FinetuneConfig:
    """A configuration from a preset, a TOML file above it, and options above both.

    Args:
        preset: None takes the file's, or `default`.
        given: field name to value, of the options that the user gave.

    Raises:
        ConfigError: the preset is unknown, or everything that is wrong with the file or the values.
    """
    values = read_config_file(file) if file else {}
    from_file = values.pop("preset", "default")
    name = from_file if preset is None else preset
    if name not in get_presets():
        raise ConfigError(_format_unknown_preset(name))
    if "augment" in given:
        # FinetuneConfig takes a pipeline before a strength: the file's would outdo the option.
        values.pop("augment_file", None)
    return FinetuneConfig(data, preset=name, **{**get_presets()[name], **values, **given})


def read_config_file(path: Path) -> dict[str, Any]:
    """Field name to value, `preset` among them; keys are the options' names, with - or _.

    Raises:
        ConfigError: unreadable, not TOML, an unknown preset, unknown or repeated keys, or values of the wrong type; all of them at once.
    """
    try:
        content = tomllib.loads(read_regular_file(path, _MAX_CONFIG_BYTES).decode())
    except OSError as cause:
        raise ConfigError(
            f"{path} cannot be read ({cause.strerror}). Give --config a TOML file."
        ) from cause
    except RecursionError as cause:
        raise ConfigError(
            f"{path} is nested too deeply. `edgetl presets default` prints a file to start from."
        ) from cause
    except ValueError as cause:  # TOMLDecodeError and UnicodeDecodeError are two; a number of 5000 digits is another
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
            name, value = (
                parse_augment(value)
                if name == "augment" and isinstance(value, str)
                else (name, _parse_value(name, value, kinds[name]))
            )
        except ConfigError as cause:
            problems.append(f"{path}: {key}: {cause}")
            continue
        if name in values:
            problems.append(f"{path}: {key}: given twice.")
        values[name] = value
    if problems:
        raise ConfigError(
            "\n".join(
                [*problems, "`edgetl presets default` prints a file with every key of a recipe."]
            )
        )
    return values


def parse_augment(text: str) -> tuple[str, str | Path]:
    """`augment` and a strength, or `augment_file` and the path of an existing file.

    Raises:
        ConfigError: neither.
    """
    if text in get_args(AugmentationStrength):
        return "augment", text
    with suppress(
        OSError, ValueError
    ):  # a NUL, a name too long for a file, a folder that may not be looked into
        if Path(text).is_file():
            return "augment_file", Path(text)
    raise ConfigError(
        f"{_abbreviate(text)} is neither one of {', '.join(get_args(AugmentationStrength))} nor a file (a pipeline saved by albumentations)."
    )


def format_preset_toml(name: str) -> str:
    """A preset as a file for --config; `auto` stands for what edgetl chooses by the data, and `usual` for such a batch size.

    Raises:
        ConfigError: it is unknown.
    """
    if name not in get_presets():
        raise ConfigError(_format_unknown_preset(name))
    # A number, a text or a truth value is written in TOML as in JSON.
    lines = [f"# {PRESET_DESCRIPTIONS[name]}", f'preset = "{name}"']
    unset = {"batch_size": _USUAL}
    lines += [
        f"{key} = {json.dumps(unset.get(key, _AUTO) if value is None else value)}"
        for key, value in get_presets()[name].items()
    ]
    return "\n".join(lines) + "\n"


def _format_unknown_preset(preset: str) -> str:
    return f"Unknown preset {_abbreviate(preset)}. Known: {', '.join(get_presets())}; `edgetl presets` shows them."


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
            raise ConfigError("takes a path, and a path holds no NUL.")
        return Path(value)
    if float in kinds and type(value) in (int, float):
        try:
            return float(value)
        except OverflowError as cause:
            raise ConfigError("takes a finite number.") from cause
    wanted, called = next(
        (one, called) for one, called in _TYPE_NAMES.items() if one in kinds or one is str
    )
    if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
        raise ConfigError(f"takes {called}, not {_abbreviate(value)}.")
    if isinstance(value, int) and abs(value) > MAX_INTEGER:
        raise ConfigError("takes a whole number of at most 64 bits.")
    return value


def _abbreviate(value: Any) -> str:
    try:
        shown = repr(value)
    except (RecursionError, ValueError):  # nested tables, or more digits than Python writes
        shown = type(value).__name__
    return shown if len(shown) <= _MAX_VALUE_CHARACTERS else f"{shown[:_MAX_VALUE_CHARACTERS]}..."


_TYPE_NAMES: dict[type, str] = {
    bool: "true or false",
    float: "a number",
    int: "a whole number",
    str: "text",
}
"""Types of fields and what to call their values; paths and named values are text in a file."""

"""Pipeline files of albumentations, validated before a transform allocates memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgetl.core.config.finetune import FinetuneConfig
from edgetl.core.errors import ConfigError
from edgetl.core.files import parse_json, read_regular_file

MAX_SIDE = 8192
"""Maximum side in pixels that a pipeline may reach: such a view takes 200 MB."""
_MAX_NUMBER = 32_768
"""Maximum number in a pipeline; the largest meaningful ones are color temperatures, to 15,000."""
_MAX_BYTES, _MAX_VALUES = 2**20, 20_000
_TRIAL_SIDE = 128
_SIZE_FIELDS = frozenset(
    (
        "height", "width", "size", "min_height", "min_width", "max_size", "max_size_hw",
        "padding", "px", "target_size", "cell_shape",
    )
)  # fmt: skip
_SCALE_FIELDS = frozenset(("scale_limit", "scale", "percent"))


def read_pipeline(file: Path) -> dict[str, Any]:
    """Read a .json, .yaml or .yml file that `A.save` wrote.

    Raises:
        ConfigError: if the file cannot be read, has another format, or exceeds the limits.
    """
    try:
        content = _parse(file, read_regular_file(file, _MAX_BYTES))
        if not isinstance(content, dict):
            raise ValueError("it must hold an object")
        numbers = _list_numbers(content)
    except OSError as cause:
        raise ConfigError(
            f"Cannot read {{augment}} {file} ({cause.strerror or cause}). Use a pipeline saved with A.save.",
            FinetuneConfig,
        ) from cause
    except (ValueError, RecursionError) as cause:
        reason = (
            "nested too deeply"
            if isinstance(cause, RecursionError)
            else str(cause).replace("\n", " ")
        )
        raise ConfigError(
            f"{{augment}} {file} is not a pipeline of albumentations: {reason}. Save it again with A.save.",
            FinetuneConfig,
        ) from cause
    _check_bounds(file, numbers)
    return content


def _parse(file: Path, encoded: bytes) -> Any:
    if file.suffix not in (".yaml", ".yml"):
        return parse_json(encoded)
    import yaml

    try:
        return yaml.safe_load(encoded)
    except yaml.YAMLError as cause:
        raise ValueError(str(cause)) from cause


def _list_numbers(content: Any) -> list[tuple[int, str, float]]:
    """List each number as (transform, field, value)."""
    numbers: list[tuple[int, str, float]] = []
    transform = 0
    for count, (key, value) in enumerate(_walk_values("", content)):
        # Aliases in YAML can expand a small file to very many values.
        if count > _MAX_VALUES:
            raise ValueError(f"it holds more than {_MAX_VALUES:,} values")
        if key == "__class_fullname__":
            transform += 1
        elif isinstance(value, int | float) and not isinstance(value, bool):
            numbers.append((transform, key, abs(value)))
    return numbers


def _walk_values(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _walk_values(str(name), item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _walk_values(key, item)
    else:
        yield key, value


def _check_bounds(file: Path, numbers: list[tuple[int, str, float]]) -> None:
    sizes: dict[int, float] = {}
    scales: dict[int, float] = {}
    for transform, key, value in numbers:
        if not value <= _MAX_NUMBER:
            raise ConfigError(
                f"{{augment}} {file}: {key} must be <= {_MAX_NUMBER:,}, got {value:g}. Lower it.",
                FinetuneConfig,
            )
        if key in _SIZE_FIELDS:
            sizes[transform] = max(sizes.get(transform, 0), value)
        if key in _SCALE_FIELDS:
            # `scale` is a factor, `scale_limit` is added to 1, and `percent` is a share added on
            # both sides.
            factor = {"scale": value, "scale_limit": 1 + value, "percent": 1 + 2 * value}[key]
            scales[transform] = max(scales.get(transform, 1), factor)
    # Paddings add up and scales multiply. The bound holds for every order of the transforms.
    side = sum(sizes.values()) or _TRIAL_SIDE
    for factor in scales.values():
        side *= factor
    if not side <= MAX_SIDE:
        raise ConfigError(
            f"{{augment}} {file}: sizes and scales must be <= {MAX_SIDE} pixels per side, "
            f"got {side:.6g}. Lower them.",
            FinetuneConfig,
        )

"""Conversion of JSON to dataclasses, with every value checked against the annotated type.

Files come from devices, other versions and other people. A value of a wrong type is reported with
the name of its field when the file is read, not when the value is first used.
"""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")
MAX_INTEGER = 2**63 - 1
"""Largest magnitude of an integer, as in NumPy and SQLite."""
_MAX_VALUE_CHARACTERS = 60


class FieldError(ValueError):
    """A value does not match the type of its field; the message names the field."""


def parse_as(
    kind: type[T], value: Any, where: str = "", *, extra: Literal["refuse", "ignore"] = "refuse"
) -> T:
    """Convert a value that `json.loads` returned to a type.

    Args:
        kind: A dataclass, `bool`, `int`, `float`, `str`, `Path`, a `Literal`, an optional or other
            union of these, `tuple[X, ...]`, `tuple[X, Y]`, `list[X]`, `dict[str, X]`,
            `Mapping[str, X]` or `Any`.
        value: Value to convert. An `int` is accepted for a `float`, a list for a tuple, a string
            for a `Path`; there are no other conversions.
        where: Name of the field, for messages.
        extra: Whether keys that are not fields of a dataclass are an error. Fields with a default
            may be missing.

    Raises:
        FieldError: A value has the wrong type, a field is missing or unknown, or a number is not
            finite.
    """
    converted: T = _convert(kind, value, where or "the file", extra)
    return converted


def _convert(kind: Any, value: Any, where: str, extra: str) -> Any:
    if kind is Any or kind is object:
        return value
    if dataclasses.is_dataclass(kind):
        return _convert_dataclass(kind, value, where, extra)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return _convert_union(arguments, value, where, extra)
    if origin is Literal:
        if any(value == choice and type(value) is type(choice) for choice in arguments):
            return value
        raise _make_field_error(where, f"one of {', '.join(map(repr, arguments))}", value)
    if origin in (tuple, list, Sequence):
        return _convert_sequence(origin, arguments, value, where, extra)
    if origin in (dict, Mapping):
        if not isinstance(value, dict):
            raise _make_field_error(where, "an object", value)
        return {
            key: _convert(arguments[1], part, f"{where}.{key}", extra)
            for key, part in value.items()
        }
    return _convert_scalar(kind, value, where)


def _convert_dataclass(kind: Any, value: Any, where: str, extra: str) -> Any:
    if not isinstance(value, dict):
        raise _make_field_error(where, "an object", value)
    hints = _resolve_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind) if field.init}
    unknown = sorted(value.keys() - fields.keys())
    if unknown and extra == "refuse":
        raise FieldError(f"{where} has an unknown field {unknown[0][:_MAX_VALUE_CHARACTERS]!r}")
    for name, field in fields.items():
        required = (
            field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        )
        if required and name not in value:
            raise FieldError(f"{where} has no field {name!r}")
    return kind(
        **{
            name: _convert(hints[name], value[name], f"{where}.{name}", extra)
            for name in fields
            if name in value
        }
    )


@cache
def _resolve_hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def _convert_union(choices: tuple[Any, ...], value: Any, where: str, extra: str) -> Any:
    if value is None and type(None) in choices:
        return None
    kinds = [choice for choice in choices if choice is not type(None)]
    for kind in kinds[:-1]:
        try:
            return _convert(kind, value, where, extra)
        except FieldError:
            continue
    return _convert(kinds[-1], value, where, extra)


def _convert_sequence(
    origin: Any, arguments: tuple[Any, ...], value: Any, where: str, extra: str
) -> Any:
    if not isinstance(value, list | tuple):
        raise _make_field_error(where, "a list", value)
    if origin is not tuple or arguments[-1] is Ellipsis:
        kind = arguments[0]
        # Fast path without a function call for each of hundreds of thousands of latencies.
        if kind is int and all(type(part) is int for part in value):
            if value and not -MAX_INTEGER <= min(value) <= max(value) <= MAX_INTEGER:
                raise FieldError(f"{where} contains an integer beyond 64 bits")
            return value if origin is list else tuple(value)
        parts = [
            _convert(kind, part, f"{where}[{index}]", extra) for index, part in enumerate(value)
        ]
        return parts if origin is list else tuple(parts)
    if len(value) != len(arguments):
        raise _make_field_error(where, f"a list of {len(arguments)} values", value)
    return tuple(
        _convert(kind, part, f"{where}[{index}]", extra)
        for index, (kind, part) in enumerate(zip(arguments, value, strict=True))
    )


def _convert_scalar(kind: Any, value: Any, where: str) -> Any:
    if kind is float and type(value) in (int, float):
        is_valid = abs(value) <= MAX_INTEGER if type(value) is int else math.isfinite(value)
        if not is_valid:
            raise _make_field_error(where, "a finite number", value)
        return float(value)
    if kind is int and type(value) is int:
        if abs(value) > MAX_INTEGER:
            raise FieldError(f"{where} is an integer beyond 64 bits")
        return value
    if kind in (str, bool) and type(value) is kind:
        return value
    if kind is Path and type(value) is str:
        if "\0" in value:
            raise _make_field_error(where, "a path", value)
        return Path(value)
    names = {
        float: "a number",
        int: "an integer",
        str: "a string",
        Path: "a path",
        bool: "true or false",
        dict: "an object",
        list: "a list",
    }
    if kind in (dict, list) and type(value) is kind:
        return value
    if kind not in names:
        raise TypeError(f"{kind!r} cannot be read from JSON")
    raise _make_field_error(where, names[kind], value)


def _make_field_error(where: str, expected: str, value: Any) -> FieldError:
    if isinstance(value, dict):
        text = "an object"
    elif isinstance(value, list):
        text = "a list"
    else:
        text = repr(value)
    if len(text) > _MAX_VALUE_CHARACTERS:
        text = text[:_MAX_VALUE_CHARACTERS] + "..."
    return FieldError(f"{where} must be {expected}, got {text}")

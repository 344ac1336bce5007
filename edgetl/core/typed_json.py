"""Conversion between JSON and dataclasses, with every value checked against the annotated type.

Files come from devices, other versions and other people. A value of a wrong type is reported with
the name of its field when the file is read, not when the value is first used.

A dataclass is the only place that names the keys of a file: `parse_as` and `to_json` derive them
from its fields. `in_json` gives a field another key, and `computed` adds a value that is written
for other programs and recomputed here.
"""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Any,
    Generic,
    Literal,
    Self,
    TypeAlias,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    overload,
)  # fmt: skip

from edgetl.core.errors import ConfigError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    JsonValue: TypeAlias = (
        bool | int | float | str | Sequence["JsonValue"] | Mapping[str, "JsonValue"] | None
    )
    JsonObject: TypeAlias = dict[str, JsonValue]
else:  # `get_type_hints` cannot resolve recursive types
    JsonValue, JsonObject = object, dict[str, object]

T = TypeVar("T")
MAX_INTEGER = 2**63 - 1
"""Largest magnitude of an integer, as in NumPy and SQLite."""
_MAX_VALUE_CHARACTERS = 60
_PLAIN_TYPES = {bool, int, float, str, type(None)}


class FieldError(ValueError):
    """A value does not match the type of its field; the message names the field."""


def in_json(
    *,
    key: str | None = None,
    stored: bool = True,
    required: bool = False,
    omit_default: bool = False,
    none_is_empty: bool = False,
) -> Mapping[str, Any]:
    """Return the `metadata` of a dataclass field that is not stored under its name as it is.

    Args:
        key: Key in JSON; None is the field's name.
        stored: Whether the field is in JSON at all.
        required: Whether the key must be in JSON although the field has a default.
        omit_default: Whether the key is left out when the value equals the field's default.
        none_is_empty: Whether None is stored as an empty object.
    """
    return {
        "key": key,
        "stored": stored,
        "required": required,
        "omit_default": omit_default,
        "none_is_empty": none_is_empty,
    }


class computed(Generic[T]):  # noqa: N801 (a decorator, like `property`)
    """Read-only property that `to_json` writes under its name and `parse_as` ignores."""

    def __init__(
        self, function: Callable[[Any], T], key: str | None = None, none_is_empty: bool = False
    ) -> None:
        self.function = function
        self.key = key or function.__name__
        self.none_is_empty = none_is_empty
        self.__doc__ = function.__doc__

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(self, instance: object, owner: type) -> T: ...
    def __get__(self, instance: object, owner: type) -> Self | T:
        return self if instance is None else self.function(instance)


def computed_as(
    key: str, *, none_is_empty: bool = False
) -> Callable[[Callable[[Any], T]], computed[T]]:
    """Return the decorator `computed` for a property stored otherwise, see `in_json`."""
    return lambda function: computed(function, key, none_is_empty)


@dataclasses.dataclass(frozen=True)
class JsonField:
    """Field of a dataclass as stored in JSON."""

    name: str
    key: str
    type: Any
    """Resolved annotation."""
    default: Any
    """Default value or factory; `dataclasses.MISSING` if the key is required."""
    omit_default: bool
    none_is_empty: bool

    def is_omitted(self, value: Any) -> bool:
        """Return whether the key of this value is left out."""
        if not self.omit_default:
            return False
        default = self.default() if callable(self.default) else self.default
        return bool(value == default)


@cache
def json_fields(kind: type) -> tuple[JsonField, ...]:
    """Return the stored fields of a dataclass."""
    hints = get_type_hints(kind)
    fields = []
    for field in dataclasses.fields(kind):
        if not field.init or not field.metadata.get("stored", True):
            continue
        is_required = field.metadata.get("required", False)
        default = dataclasses.MISSING if is_required else field.default
        if default is dataclasses.MISSING:
            default = field.default_factory
        fields.append(
            JsonField(
                name=field.name,
                key=field.metadata.get("key") or field.name,
                type=hints[field.name],
                default=default,
                omit_default=field.metadata.get("omit_default", False),
                none_is_empty=field.metadata.get("none_is_empty", False),
            )
        )
    return tuple(fields)


@cache
def computed_properties(kind: type) -> tuple[computed[Any], ...]:
    """Return the properties of a dataclass that are written to JSON."""
    members = {name: value for base in reversed(kind.__mro__) for name, value in vars(base).items()}
    return tuple(value for value in members.values() if isinstance(value, computed))


def to_json(value: DataclassInstance) -> JsonObject:
    """Return a dataclass as an object for `json.dumps`.

    Nested values with a method `to_json` are written by it, so that a class can call this function
    in its method.
    """
    kind = type(value)
    content = {}
    for field in json_fields(kind):
        part = getattr(value, field.name)
        if not field.is_omitted(part):
            content[field.key] = {} if part is None and field.none_is_empty else _encode(part)
    for item in computed_properties(kind):
        part = item.function(value)
        content[item.key] = {} if part is None and item.none_is_empty else _encode(part)
    return content


def _encode(value: Any) -> Any:
    if type(value) in _PLAIN_TYPES:
        return value
    if hasattr(value, "to_json"):
        return value.to_json()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_json(value)
    if isinstance(value, Mapping):
        return {key: _encode(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        # Fast path for hundreds of thousands of latencies.
        if _PLAIN_TYPES.issuperset(map(type, value)):
            return list(value)
        return [_encode(part) for part in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, int | float | str):  # subclasses, such as NumPy's float64
        return value
    raise TypeError(f"{type(value).__name__} cannot be written to JSON: {value!r}")


def parse_as(
    kind: type[T], value: Any, where: str = "", *, extra: Literal["refuse", "ignore"] = "refuse"
) -> T:
    """Convert a value that `json.loads` returned to a type.

    Nested dataclasses with a class method `from_json` are parsed by it, so that a class can call
    this function in its method. Checks that concern several fields belong to `__post_init__`, which
    raises `FieldError`.

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
    where = where or "the file"
    if dataclasses.is_dataclass(kind):
        parsed: T = _convert_dataclass(kind, value, where, extra)
        return parsed
    converted: T = _convert(kind, value, where, extra)
    return converted


def _convert(kind: Any, value: Any, where: str, extra: str) -> Any:
    if kind is Any or kind is object:
        return value
    if dataclasses.is_dataclass(kind):
        if hasattr(kind, "from_json"):
            return _convert_by_class(kind, value, where)
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


def _convert_by_class(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise _make_field_error(where, "an object", value)
    try:
        return kind.from_json(value)
    except (FieldError, ConfigError) as cause:
        problem = str(cause).rstrip(".").replace("\n", " ")
        raise FieldError(f"{where}: {problem}") from cause


def _convert_dataclass(kind: Any, value: Any, where: str, extra: str) -> Any:
    if not isinstance(value, dict):
        raise _make_field_error(where, "an object", value)
    fields = json_fields(kind)
    keys = {field.key for field in fields}
    if extra == "refuse" and not value.keys() <= keys:
        keys |= {item.key for item in computed_properties(kind)}
        for key in sorted(value.keys() - keys):
            raise FieldError(
                f"{where} has an unknown field {key[:_MAX_VALUE_CHARACTERS]!r}, "
                "perhaps from a newer edgetl"
            )
    for field in fields:
        if field.default is dataclasses.MISSING and field.key not in value:
            raise FieldError(f"{where} has no field {field.key!r}")
    arguments = {}
    for field in fields:
        if field.key in value:
            part = value[field.key]
            if field.none_is_empty and part == {}:
                part = None
            arguments[field.name] = _convert(field.type, part, f"{where}.{field.key}", extra)
    try:
        return kind(**arguments)
    except FieldError as cause:
        raise FieldError(f"{where}: {cause}") from cause


def _convert_union(choices: tuple[Any, ...], value: Any, where: str, extra: str) -> Any:
    if value is None and type(None) in choices:
        return None
    kinds = [choice for choice in choices if choice is not type(None)]
    if isinstance(value, dict) and all(map(dataclasses.is_dataclass, kinds)):
        # The error of the most similar class is the helpful one.
        kinds.sort(key=lambda kind: len(value.keys() & {field.key for field in json_fields(kind)}))
        return _convert(kinds[-1], value, where, extra)
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

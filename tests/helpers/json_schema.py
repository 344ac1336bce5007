"""Validator of the JSON Schema keywords that the generated schemas use."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_TYPES = {
    "object": (dict,), "array": (list,), "string": (str,), "boolean": (bool,),
    "null": (type(None),), "integer": (int,), "number": (int, float),
}  # fmt: skip
_KEYWORDS = {
    "$schema", "$defs", "$ref", "title", "description", "readOnly", "type", "anyOf", "enum",
    "const", "required", "properties", "additionalProperties", "maxProperties", "items",
    "prefixItems", "minItems", "maxItems",
}  # fmt: skip


def iterate_schema_errors(
    value: Any, schema: dict[str, Any], root: dict[str, Any] | None = None, where: str = "$"
) -> Iterator[str]:
    """Yield a message for each part of a value that violates a schema (draft 2020-12)."""
    assert schema.keys() <= _KEYWORDS, "a keyword is not supported"
    root = root or schema
    if "$ref" in schema:
        definition = root["$defs"][schema["$ref"].removeprefix("#/$defs/")]
        yield from iterate_schema_errors(value, definition, root, where)
    choices = [
        list(iterate_schema_errors(value, choice, root, where))
        for choice in schema.get("anyOf", ())
    ]
    if choices and all(choices):
        yield min(choices, key=len)[0]
    types = schema.get("type", [])
    types = [types] if isinstance(types, str) else types
    if types and not any(type(value) in _TYPES[name] for name in types):
        yield f"{where} must be of type {' or '.join(types)}"
    allowed = schema.get("enum", [schema["const"]] if "const" in schema else [value])
    if value not in allowed:
        yield f"{where} must be one of {allowed}"
    if isinstance(value, dict):
        yield from _iterate_object_errors(value, schema, root, where)
    if isinstance(value, list):
        prefix = schema.get("prefixItems", [])
        if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
            yield f"{where} has {len(value)} items"
        for index, part in enumerate(value):
            part_schema = prefix[index] if index < len(prefix) else schema.get("items", {})
            yield from iterate_schema_errors(part, part_schema, root, f"{where}[{index}]")


def _iterate_object_errors(
    value: dict[str, Any], schema: dict[str, Any], root: dict[str, Any], where: str
) -> Iterator[str]:
    yield from (
        f"{where}.{key} is missing" for key in schema.get("required", ()) if key not in value
    )
    if len(value) > schema.get("maxProperties", len(value)):
        yield f"{where} has {len(value)} keys"
    properties, others = schema.get("properties", {}), schema.get("additionalProperties", {})
    for key, part in value.items():
        if key not in properties and others is False:
            yield f"{where}.{key} is unknown"
            continue
        part_schema = properties.get(key, others)
        yield from iterate_schema_errors(part, part_schema, root, f"{where}.{key}")

"""JSON Schemas (draft 2020-12) of the files that edgetl writes, from their dataclasses.

`python -m tools.repo.docs` writes them to docs/reference/artifacts.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import re
import textwrap
import types
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from edgetl.core.artifacts.bundle import BundleManifest
from edgetl.core.files import SCHEMA
from edgetl.core.typed_json import JsonField, JsonObject, computed_properties, json_fields

ARTIFACTS: dict[str, type] = {"bundle": BundleManifest}
"""Name of a schema to the dataclass of the file."""
_SCALARS = {bool: "boolean", int: "integer", float: "number", str: "string", Path: "string"}


def artifact_schemas() -> dict[str, str]:
    """Return the schema files: name to content."""
    return {
        f"{name}.schema.json": json.dumps(artifact_schema(kind), indent=2, ensure_ascii=False)
        + "\n"
        for name, kind in ARTIFACTS.items()
    }


def artifact_schema(kind: type) -> JsonObject:
    """Return the schema of a file whose content is a dataclass and the schema number."""
    definitions: dict[str, JsonObject] = {}
    root = _object_schema(kind, definitions)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": kind.__name__,
        **root,
        "required": ["schema", *root["required"]],
        "properties": {"schema": {"const": SCHEMA}, **root["properties"]},
        "$defs": dict(sorted(definitions.items())),
    }


def _object_schema(kind: type, definitions: dict[str, JsonObject]) -> dict[str, Any]:
    fields = json_fields(kind)
    descriptions = _attribute_descriptions(kind)
    properties = {
        field.key: _describe(_field_schema(field, definitions), descriptions.get(field.name))
        for field in fields
    }
    for item in computed_properties(kind):
        value = _type_schema(get_type_hints(item.function)["return"], definitions)
        properties[item.key] = {**_describe(value, item.__doc__), "readOnly": True}
    return {
        "description": _first_sentence(kind.__doc__ or ""),
        "type": "object",
        "required": [field.key for field in fields if field.default is dataclasses.MISSING],
        "additionalProperties": False,
        "properties": properties,
    }


def _field_schema(field: JsonField, definitions: dict[str, JsonObject]) -> JsonObject:
    schema = _type_schema(field.type, definitions)
    if not field.none_is_empty:
        return schema
    return {"anyOf": [{"type": "object", "maxProperties": 0}, schema]}


def _type_schema(kind: Any, definitions: dict[str, JsonObject]) -> JsonObject:
    if kind in _SCALARS:
        return {"type": _SCALARS[kind]}
    if kind is type(None):
        return {"type": "null"}
    if kind is Any or kind is object:
        return {}
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        name = kind.__name__
        if name not in definitions:
            definitions[name] = {}  # ends the recursion of a type that contains itself
            definitions[name] = _object_schema(kind, definitions)
        return {"$ref": f"#/$defs/{name}"}
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return {"anyOf": [_type_schema(choice, definitions) for choice in arguments]}
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin in (dict, Mapping):
        return {
            "type": "object",
            "additionalProperties": _type_schema(arguments[1], definitions),
        }
    if origin is tuple and arguments[-1] is not Ellipsis:
        return {
            "type": "array",
            "prefixItems": [_type_schema(choice, definitions) for choice in arguments],
            "minItems": len(arguments),
            "maxItems": len(arguments),
        }
    if origin in (tuple, list, Sequence):
        return {"type": "array", "items": _type_schema(arguments[0], definitions)}
    raise TypeError(f"{kind!r} has no JSON Schema")


def _describe(schema: JsonObject, description: str | None) -> JsonObject:
    return {"description": _first_sentence(description), **schema} if description else schema


def _first_sentence(text: str) -> str:
    paragraph = inspect.cleandoc(text).partition("\n\n")[0]
    text = " ".join(paragraph.split())
    for name, value in (("None", "null"), ("True", "true"), ("False", "false")):
        text = re.sub(rf"\b{name}\b", value, text)
    return text


@cache
def _attribute_descriptions(kind: type) -> dict[str, str]:
    """Return the docstrings below the attributes of a dataclass and its bases."""
    descriptions: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if dataclasses.is_dataclass(base):
            descriptions |= dict(_iterate_descriptions(base))
    return descriptions


def _iterate_descriptions(kind: type) -> Iterator[tuple[str, str]]:
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(definition, ast.ClassDef)
    for statement, following in zip(definition.body, definition.body[1:], strict=False):
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            yield statement.target.id, str(following.value.value)

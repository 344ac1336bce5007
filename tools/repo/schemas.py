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

from edgetl.core.artifacts.bench import BenchResult
from edgetl.core.artifacts.bundle import BundleManifest
from edgetl.core.artifacts.candidates import CandidateRow, CandidatesResult
from edgetl.core.artifacts.comparison import RowComparison
from edgetl.core.artifacts.evaluation import EvaluationResult
from edgetl.core.artifacts.experiment import Experiment, ExperimentConfig
from edgetl.core.artifacts.loadgen import LoadgenResult
from edgetl.core.artifacts.run import EpochRecord
from edgetl.core.artifacts.run_config import RunConfiguration
from edgetl.core.artifacts.run_metrics import RunMetrics
from edgetl.core.artifacts.saved_recommendation import SavedRecommendation
from edgetl.core.files import SCHEMA
from edgetl.core.typed_json import JsonField, JsonObject, computed_properties, json_fields


@dataclasses.dataclass(frozen=True)
class Artifact:
    """JSON file that edgetl writes."""

    content: type
    """Dataclass of the content."""
    constants: Mapping[str, object]
    """Keys with the same value in every file."""
    allows_unknown_keys: bool = False
    """Whether readers ignore the keys of other versions."""


ARTIFACTS = {
    "bench": Artifact(BenchResult, {"schema": SCHEMA, "kind": "bench"}),
    "bundle": Artifact(BundleManifest, {"schema": SCHEMA, "kind": "bundle"}),
    "candidates": Artifact(CandidatesResult, {"schema": SCHEMA, "kind": "candidates"}),
    "compare": Artifact(Experiment, {"schema": SCHEMA, "kind": "compare"}, True),
    "config": Artifact(RunConfiguration, {"schema": SCHEMA}, True),
    "evaluation": Artifact(EvaluationResult, {"schema": SCHEMA, "kind": "evaluation"}),
    "history-line": Artifact(EpochRecord, {}, True),
    "loadgen": Artifact(LoadgenResult, {"schema": SCHEMA, "kind": "loadgen"}),
    "metrics": Artifact(RunMetrics, {"schema": SCHEMA}, True),
    "recommendation": Artifact(SavedRecommendation, {"schema": SCHEMA, "kind": "recommendation"}),
}
"""Files with a schema, by name."""
_FREE_FORM: tuple[type, ...] = (ExperimentConfig, RowComparison)
"""Dataclasses whose `to_json` writes other keys than their fields."""
_EXTRA_KEYS: dict[type, dict[str, JsonObject]] = {
    CandidateRow: {
        "fits": {
            "description": "Whether it is within the latency budget; null if that is not decided.",
            "type": ["boolean", "null"],
        }
    }
}
"""Keys that the file adds to those of a dataclass."""
_SCALARS = {bool: "boolean", int: "integer", float: "number", str: "string", Path: "string"}


def artifact_schemas() -> dict[str, str]:
    """Return the schema files: name to content."""
    return {
        f"{name}.schema.json": json.dumps(schema, indent=2, ensure_ascii=False) + "\n"
        for name, schema in (
            (name, artifact_schema(artifact)) for name, artifact in ARTIFACTS.items()
        )
    }


def artifact_schema(artifact: Artifact) -> JsonObject:
    """Return the schema of a file."""
    definitions: dict[str, JsonObject] = {}
    root = _object_schema(artifact.content, definitions)
    constants = {key: {"const": value} for key, value in artifact.constants.items()}
    if artifact.allows_unknown_keys:
        for schema in (root, *definitions.values()):
            if schema.get("additionalProperties") is False:
                del schema["additionalProperties"]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": artifact.content.__name__,
        **root,
        "required": [*constants, *root["required"]],
        "properties": {**root["properties"], **constants},
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
        if item.none_is_empty:
            value = _allow_empty(value)
        properties[item.key] = {**_describe(value, item.__doc__), "readOnly": True}
    properties |= _EXTRA_KEYS.get(kind, {})
    return {
        "description": _first_sentence(kind.__doc__ or ""),
        "type": "object",
        "required": [field.key for field in fields if field.default is dataclasses.MISSING],
        "additionalProperties": False,
        "properties": properties,
    }


def _field_schema(field: JsonField, definitions: dict[str, JsonObject]) -> JsonObject:
    schema = _type_schema(field.type, definitions)
    return _allow_empty(schema) if field.none_is_empty else schema


def _allow_empty(schema: JsonObject) -> JsonObject:
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
        if kind in _FREE_FORM:
            definitions[name] = {
                "description": _first_sentence(kind.__doc__ or ""),
                "type": "object",
            }
        if name not in definitions:
            definitions[name] = {}  # ends the recursion of a type that contains itself
            definitions[name] = _object_schema(kind, definitions)
        return {"$ref": f"#/$defs/{name}"}
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        choices = [_type_schema(choice, definitions) for choice in arguments]
        if all(choice.keys() == {"type"} for choice in choices):
            return {"type": [choice["type"] for choice in choices]}
        return {"anyOf": choices}
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

"""The JSON Schemas of the documentation describe the files that are read and written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from edgetl.core.artifacts.run import EpochRecord
from edgetl.core.paths import BundleDirectory
from edgetl.core.typed_json import FieldError, computed, in_json, parse_as, to_json
from tests.helpers.bench_results import board
from tests.helpers.json_schema import iterate_schema_errors
from tests.helpers.runs import write_bundle
from tools.repo.schemas import ARTIFACTS, Artifact, artifact_schema

RECORDED = Path(__file__).parents[2] / "core/artifacts/recorded/before-renaming"
FILES = {
    "bench": "bench.json",
    "bundle": "run/bundle/bundle.json",
    "candidates": "candidates.json",
    "compare": "experiment/compare.json",
    "config": "run/config.json",
    "metrics": "run/metrics.json",
}
"""Recorded file of each artifact."""


@dataclass(frozen=True)
class Part:
    size: tuple[int, int]
    """Size in pixels; None if it is not known."""
    note: str | None = None


@dataclass(frozen=True)
class Example:
    """Example of a file."""

    interval: tuple[float, ...] = field(metadata=in_json(key="ci95"))
    parts: Mapping[str, Part]
    part: Part | None = field(default=None, metadata=in_json(none_is_empty=True))

    @computed
    def total(self) -> int:
        """Number of parts."""
        return len(self.parts)


EXAMPLE = Artifact(Example, {"schema": 1})


def test_schema_derives_from_dataclass() -> None:
    schema = artifact_schema(EXAMPLE)
    assert schema["description"] == "Example of a file."
    assert schema["required"] == ["schema", "ci95", "parts"]
    assert schema["additionalProperties"] is False
    assert schema["properties"] == {
        "schema": {"const": 1},
        "ci95": {"type": "array", "items": {"type": "number"}},
        "parts": {"type": "object", "additionalProperties": {"$ref": "#/$defs/Part"}},
        "part": {
            "anyOf": [
                {"type": "object", "maxProperties": 0},
                {"anyOf": [{"$ref": "#/$defs/Part"}, {"type": "null"}]},
            ]
        },
        "total": {"description": "Number of parts.", "type": "integer", "readOnly": True},
    }
    assert schema["$defs"]["Part"]["properties"]["size"] == {
        "description": "Size in pixels; null if it is not known.",
        "type": "array",
        "prefixItems": [{"type": "integer"}, {"type": "integer"}],
        "minItems": 2,
        "maxItems": 2,
    }
    assert schema["$defs"]["Part"]["properties"]["note"] == {"type": ["string", "null"]}


@dataclass(frozen=True)
class ExtendedEpoch(EpochRecord):
    """Epoch with one more key."""

    gradient_norm: float = 0.0
    """Mean L2 norm of the gradient."""


def test_one_field_adds_a_key_to_file_and_schema() -> None:
    epoch = dict.fromkeys(("train_loss", "train_accuracy", "lr", "seconds"), 1.0)
    content = {**epoch, "phase": 1, "epoch": 2, "images_per_second": 9.0, "gradient_norm": 0.5}
    content |= {"val_loss": None, "val_accuracy": None}
    record = parse_as(ExtendedEpoch, content, "line 1")
    assert record.gradient_norm == 0.5
    assert to_json(record)["gradient_norm"] == 0.5
    with pytest.raises(FieldError, match=r"line 1\.gradient_norm must be a number, got 'x'"):
        parse_as(ExtendedEpoch, {**content, "gradient_norm": "x"}, "line 1")
    del content["gradient_norm"]
    assert parse_as(ExtendedEpoch, content, "line 1").gradient_norm == 0.0, "earlier files are read"
    schema = artifact_schema(Artifact(ExtendedEpoch, {}))
    assert schema["properties"]["gradient_norm"] == {
        "description": "Mean L2 norm of the gradient.",
        "type": "number",
    }


VALID = {"schema": 1, "ci95": [0.5, 1], "parts": {"a": {"size": [1, 2]}}, "part": {}, "total": 1}


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({}, None),
        ({"schema": 2}, "$.schema must be one of [1]"),
        ({"ci95": ["0"]}, "$.ci95[0] must be of type number"),
        ({"parts": {"a": {"size": [1]}}}, "$.parts.a.size has 1 items"),
        ({"parts": {"a": {"size": [1, True]}}}, "$.parts.a.size[1] must be of type integer"),
        (
            {"parts": {"a": {"size": [1, 2], "note": 1}}},
            "$.parts.a.note must be of type string or null",
        ),
        ({"parts": {"a": {}}}, "$.parts.a.size is missing"),
        ({"part": {"size": 1}}, "$.part has 1 keys"),
        ({"new": 1}, "$.new is unknown"),
    ],
)
def test_schema_detects_invalid_values(change: dict[str, Any], error: str | None) -> None:
    errors = list(iterate_schema_errors({**VALID, **change}, artifact_schema(EXAMPLE)))
    assert errors == ([] if error is None else [error])


@pytest.mark.parametrize("name", FILES)
def test_recorded_file_matches_schema(name: str) -> None:
    content = json.loads((RECORDED / FILES[name]).read_text())
    assert list(iterate_schema_errors(content, artifact_schema(ARTIFACTS[name]))) == []


def test_recorded_history_lines_match_schema() -> None:
    lines = (RECORDED / "run/history.jsonl").read_text().splitlines()
    schema = artifact_schema(ARTIFACTS["history-line"])
    assert [list(iterate_schema_errors(json.loads(line), schema)) for line in lines] == [[]] * 4


def test_files_that_other_versions_extend_allow_unknown_keys() -> None:
    content = {**VALID, "new": 1}
    extensible = replace(EXAMPLE, allows_unknown_keys=True)
    assert list(iterate_schema_errors(content, artifact_schema(extensible))) == []


def test_written_bench_result_matches_schema() -> None:
    content = json.loads(json.dumps(board().to_json()))
    schema = artifact_schema(ARTIFACTS["bench"])
    assert list(iterate_schema_errors(content, schema)) == []
    content["rows"][0]["rounds"][0]["latencies_ns"][0] = 0.5
    assert list(iterate_schema_errors(content, schema)) == [
        "$.rows[0].rounds[0].latencies_ns[0] must be of type integer"
    ]


def test_written_bundle_matches_schema(tmp_path: Path) -> None:
    bundle: BundleDirectory = write_bundle(tmp_path / "bundle")
    content = json.loads(bundle.manifest.read_text())
    schema = artifact_schema(ARTIFACTS["bundle"])
    assert list(iterate_schema_errors(content, schema)) == []
    del content["variants"][0]["parity"]["path"]["images"]
    assert list(iterate_schema_errors(content, schema)) == [
        "$.variants[0].parity.path.images is missing"
    ]

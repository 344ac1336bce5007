"""Conversion of JSON to dataclasses with values of the annotated types."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetl.core.errors import BundleError
from edgetl.core.files import ReadPolicy, read_json_as, write_json
from edgetl.core.typed_json import (
    FieldError,
    computed,
    computed_as,
    in_json,
    parse_as,
    to_json,
)


@dataclass(frozen=True)
class Inner:
    size: tuple[int, int]
    name: str = ""


@dataclass(frozen=True)
class Outer:
    number: float
    count: int
    on: bool
    kind: Literal["a", "b"]
    inner: Inner
    many: tuple[Inner, ...] = ()
    shares: Mapping[str, float] = field(default_factory=dict)
    maybe: int | None = None
    listed: list[str] = field(default_factory=list)
    either: int | str = 0
    anything: Any = None


VALID: dict[str, Any] = {
    "number": 1.5,
    "count": 2,
    "on": True,
    "kind": "a",
    "inner": {"size": [1, 2], "name": "x"},
}
finite = st.floats(allow_nan=False, allow_infinity=False)
integers = st.integers(-(2**63) + 1, 2**63 - 1)
inners = st.builds(Inner, st.tuples(integers, integers), st.text())
outers = st.builds(
    Outer,
    finite,
    integers,
    st.booleans(),
    st.sampled_from(["a", "b"]),
    inners,
    st.lists(inners, max_size=3).map(tuple),
    st.dictionaries(st.text(), finite, max_size=3),
    st.none() | integers,
    st.lists(st.text(), max_size=3),
    integers | st.text(),
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda part: st.lists(part, max_size=3) | st.dictionaries(st.text(), part, max_size=3),
    max_leaves=10,
)


@given(outers)
def test_dataclass_round_trips_through_json(outer: Outer) -> None:
    assert to_json(outer) == json.loads(json.dumps(asdict(outer)))
    assert parse_as(Outer, json.loads(json.dumps(to_json(outer)))) == outer


@given(st.sampled_from(sorted(Outer.__dataclass_fields__)), values)
def test_any_value_is_converted_or_rejected(name: str, value: Any) -> None:
    try:
        outer = parse_as(Outer, {**VALID, name: value})
    except FieldError:
        return
    parsed = asdict(outer)[name]
    assert name == "anything" or json.dumps(parsed, allow_nan=False) is not None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"number": math.nan}, "the file.number must be a finite number, got nan"),
        ({"number": True}, "the file.number must be a number, got True"),
        ({"number": 10**400}, "the file.number must be a finite number, got 1000"),
        ({"count": 2.0}, "the file.count must be an integer, got 2.0"),
        ({"count": 2**63}, "the file.count is an integer beyond 64 bits"),
        ({"on": 1}, "the file.on must be true or false, got 1"),
        ({"kind": "c"}, "the file.kind must be one of 'a', 'b', got 'c'"),
        ({"inner": []}, "the file.inner must be an object, got a list"),
        ({"inner": {"name": "x"}}, "the file.inner has no field 'size'"),
        (
            {"inner": {"size": [1], "name": "x"}},
            "the file.inner.size must be a list of 2 values, got a list",
        ),
        (
            {"many": [{"size": [1, "2"]}]},
            r"the file.many\[0\].size\[1\] must be an integer, got '2'",
        ),
        ({"shares": {"x": None}}, "the file.shares.x must be a number, got None"),
        ({"new": 1}, "the file has an unknown field 'new'"),
    ],
)
def test_invalid_value_names_field(change: dict[str, Any], message: str) -> None:
    with pytest.raises(FieldError, match=message):
        parse_as(Outer, {**VALID, **change})


def test_unknown_fields_are_ignored_on_request() -> None:
    assert parse_as(Outer, {**VALID, "new": 1}, extra="ignore") == parse_as(Outer, VALID)


def test_missing_field_is_named() -> None:
    with pytest.raises(FieldError, match=r"bundle\.json has no field 'count'"):
        parse_as(
            Outer, {name: value for name, value in VALID.items() if name != "count"}, "bundle.json"
        )


@dataclass(frozen=True)
class Colored:
    level: int

    def to_json(self) -> dict[str, Any]:
        return {**to_json(self), "color": "RGB"}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Colored:
        parse_as(Literal["RGB"], content["color"], "color")
        return parse_as(cls, {"level": content["level"]})


@dataclass(frozen=True)
class Stored:
    interval: tuple[float, float] = field(metadata=in_json(key="ci95"))
    colored: Colored
    shapes: tuple[tuple[int, int], ...]
    path: Path
    accuracy: Inner | None = field(default=None, metadata=in_json(none_is_empty=True))
    web: Inner | None = field(default=None, metadata=in_json(omit_default=True))
    notes: Mapping[str, Inner] = field(default_factory=dict, metadata=in_json(omit_default=True))
    origin: Path | None = field(default=None, metadata=in_json(stored=False))

    def __post_init__(self) -> None:
        if self.interval[0] > self.interval[1]:
            raise FieldError("the interval is empty")

    @computed
    def middle(self) -> float:
        return sum(self.interval) / 2

    @computed_as("width_ms")
    def width(self) -> float:
        return self.interval[1] - self.interval[0]

    @computed_as("largest", none_is_empty=True)
    def largest_shape(self) -> Inner | None:
        return Inner(max(self.shapes)) if self.shapes else None


STORED = {
    "ci95": [1.0, 2.0],
    "colored": {"level": 3, "color": "RGB"},
    "shapes": [[1, 2], [3, 4]],
    "path": "a/b",
    "accuracy": {},
    "middle": 1.5,
    "width_ms": 1.0,
    "largest": {"size": [3, 4], "name": ""},
}


def test_keys_differ_from_names_where_declared() -> None:
    stored = Stored((1.0, 2.0), Colored(3), ((1, 2), (3, 4)), Path("a/b"))
    assert stored.middle == 1.5
    assert to_json(stored) == STORED
    assert to_json(replace(stored, origin=Path("f.json"))) == STORED
    assert parse_as(Stored, json.loads(json.dumps(STORED))) == stored
    assert to_json(replace(stored, shapes=()))["largest"] == {}


def test_values_that_differ_from_default_are_written() -> None:
    inner = Inner((1, 2), "x")
    stored = parse_as(Stored, {**STORED, "accuracy": to_json(inner), "web": to_json(inner)})
    assert stored.accuracy == stored.web == inner
    assert to_json(stored) == {**STORED, "accuracy": to_json(inner), "web": to_json(inner)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"origin": "f.json"}, "f.json has an unknown field 'origin'"),
        ({"interval": [1, 2]}, "f.json has an unknown field 'interval'"),
        ({"ci95": [2, 1]}, "f.json: the interval is empty"),
        ({"ci95": ["a", 1]}, r"f.json.ci95\[0\] must be a number, got 'a'"),
        ({"colored": {"level": 1, "color": "BGR"}}, "f.json.colored: color must be one of 'RGB'"),
        ({"accuracy": {"size": 1}}, "f.json.accuracy.size must be a list"),
    ],
)
def test_message_names_key_of_file(change: dict[str, Any], message: str) -> None:
    with pytest.raises(FieldError, match=message):
        parse_as(Stored, {**STORED, **change}, "f.json")


def test_unsupported_value_is_not_written() -> None:
    with pytest.raises(TypeError, match="set cannot be written to JSON"):
        to_json(Outer(1.0, 2, True, "a", Inner((1, 2)), anything={1}))


def test_broken_file_is_reported_with_path_and_advice(tmp_path: Path) -> None:
    path = tmp_path / "f.json"
    write_json(path, STORED)
    policy = ReadPolicy(BundleError, "Copy it again.")
    assert read_json_as(Stored, path, "The file", policy).middle == 1.5
    write_json(path, {**STORED, "ci95": None})
    with pytest.raises(BundleError) as error:
        read_json_as(Stored, path, "The file", policy)
    assert str(error.value) == f"{path} is broken: ci95 must be a list, got None. Copy it again."

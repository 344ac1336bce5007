"""Conversion of JSON to dataclasses with values of the annotated types."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetl.core.typed_json import FieldError, parse_as


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
    assert parse_as(Outer, json.loads(json.dumps(asdict(outer)))) == outer


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

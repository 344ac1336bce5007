"""Reading and writing of result files of candidates."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetl.core.artifacts.bench_json import read_result, write_result
from edgetl.core.artifacts.bench_rows import BlockResult, ColdStart
from edgetl.core.artifacts.candidates import (
    CandidateParity,
    CandidateRow,
    CandidatesResult,
    read_candidates,
)
from edgetl.core.artifacts.device import DeviceInfo, DeviceState
from edgetl.core.artifacts.noise import Interference, NoiseReport
from edgetl.core.artifacts.session import SessionRecord
from edgetl.core.errors import BenchError
from tests.helpers.candidates import candidate, result_of

NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
PROTOCOLS = st.dictionaries(TEXTS, st.integers(0, 100) | st.floats(0, 100) | TEXTS, max_size=3)
SESSIONS = st.builds(
    SessionRecord,
    intra_op_threads=st.none() | st.integers(1, 64),
    providers=st.none() | st.lists(TEXTS, max_size=2).map(tuple),
    node_share=st.none() | st.dictionaries(TEXTS, st.floats(0, 1), max_size=2),
    io_binding=st.none() | st.booleans(),
    input=st.none() | TEXTS,
)
DEVICES = st.builds(
    DeviceInfo,
    host=st.none() | TEXTS,
    cores=st.none() | st.integers(1, 256),
    packages=st.dictionaries(TEXTS, TEXTS, max_size=2),
    before=st.none() | st.builds(DeviceState, NUMBERS, governors=st.none() | st.just(("a",))),
)
NOISE = st.builds(
    NoiseReport,
    st.lists(TEXTS, max_size=2).map(tuple),
    st.builds(
        Interference,
        other_cpu=st.none() | NUMBERS,
        round_spread=st.dictionaries(TEXTS, NUMBERS, max_size=2),
    ),
)
LATENCIES = st.lists(st.integers(1, 10**12), min_size=1, max_size=4).map(tuple)


def rounds_of(latencies: tuple[int, ...]) -> st.SearchStrategy[BlockResult]:
    runs = len(latencies)
    return st.builds(
        BlockResult,
        st.just(latencies),
        st.builds(ColdStart, NUMBERS, NUMBERS, NUMBERS, st.none() | st.integers(0, 2**40)),
        steady=st.booleans(),
        warmup_medians_ns=st.lists(NUMBERS, max_size=2).map(tuple),
        stages_ns=st.dictionaries(
            TEXTS,
            st.lists(st.integers(1, 10**12), min_size=runs, max_size=runs).map(tuple),
            max_size=2,
        ),
        frequency_khz=st.none() | st.integers(1, 10**7),
        slices=st.sampled_from([(), (runs,), (1,) * runs]),
        waited=st.integers(0, runs),
        memory_growth_bytes=st.none() | st.integers(-(2**40), 2**40),
        energy_j=st.dictionaries(TEXTS, NUMBERS, max_size=2),
    )


ROUNDS = LATENCIES.flatmap(rounds_of)
ROWS = st.builds(
    CandidateRow,
    TEXTS,
    st.integers(32, 1024),
    parameters=st.none() | st.integers(1, 10**9),
    imagenet_top1=st.none() | st.floats(0, 100),
    file_bytes=st.none() | st.integers(1, 10**9),
    file_sha256=st.none() | TEXTS,
    parity=st.none() | st.builds(CandidateParity, NUMBERS, NUMBERS),
    session=SESSIONS,
    rounds=st.lists(ROUNDS, max_size=3).map(tuple),
    failed=st.none() | TEXTS,
)
RESULTS = st.builds(
    CandidatesResult,
    TEXTS,
    TEXTS,
    DEVICES,
    NOISE,
    PROTOCOLS,
    st.lists(st.lists(TEXTS, max_size=2).map(tuple), max_size=2).map(tuple),
    st.integers(2, 1000),
    st.none() | st.floats(0.01, 1e6),
    TEXTS,
    st.integers(1, 256),
    st.lists(ROWS, max_size=3).map(tuple),
    notes=st.lists(TEXTS, max_size=2).map(tuple),
    interrupted=st.booleans(),
)


@given(RESULTS)
def test_result_round_trips_through_file(
    tmp_path_factory: pytest.TempPathFactory, original: CandidatesResult
) -> None:
    path = tmp_path_factory.mktemp("results") / "result.json"
    write_result(original, path)
    loaded = read_candidates(path)
    assert loaded == replace(original, path=path)
    assert loaded.to_json() == original.to_json()


def test_statistics_are_recomputed_on_reading(tmp_path: Path) -> None:
    content = result_of(candidate("resnet18", (4.0, 4.1)), budget_ms=5.0).to_json()
    content["rows"][0] |= {"p50_ms": 9.0, "fits": False, "ci95_ms": None, "id": "other"}
    (tmp_path / "result.json").write_text(json.dumps(content))
    loaded = read_candidates(tmp_path / "result.json")
    assert loaded.rows[0].p50_ms == 4.05
    assert loaded.fitting_rows == [loaded.rows[0]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "no schema number"),
        ('{"schema": 1, "kind": "bench"}', "kind is 'bench'.*edgetl candidates"),
        ('{"schema": 1}', "kind is None"),
        ('{"schema": 2, "kind": "candidates"}', "schema 2"),
        ('{"schema": 1, "kind": "candidates"}', "broken.*Measure again"),
        ('{"schema": 1, "kind": "candidates", "noise": 3, "rows": 7}', "broken.*Measure again"),
    ],
)
def test_read_rejects_other_files(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(BenchError, match=message):
        read_candidates(tmp_path / "result.json")


def test_read_names_missing_file(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"cannot be read: .*absent\.json"):
        read_candidates(tmp_path / "absent.json")


def test_bench_reader_rejects_candidates(tmp_path: Path) -> None:
    write_result(result_of(candidate("resnet18", (4.0, 4.1))), tmp_path / "result.json")
    with pytest.raises(BenchError, match="not a bench result: its kind is 'candidates'"):
        read_result(tmp_path / "result.json")


def iterate_objects(content: Any) -> Iterator[dict[str, Any]]:
    values = content if isinstance(content, list) else []
    if isinstance(content, dict):
        yield content
        values = list(content.values())
    for value in values:
        yield from iterate_objects(value)


def test_damaged_fields_are_reported_as_broken_file(tmp_path: Path) -> None:
    text = json.dumps(result_of(candidate("resnet18", (4.0, 4.1)), budget_ms=5.0).to_json())
    rejected = {}
    for index, fields in enumerate(iterate_objects(json.loads(text))):
        for name in fields:
            for replacement in (None, 3):
                content = json.loads(text)
                target = list(iterate_objects(content))[index]
                if replacement is None:
                    del target[name]
                else:
                    target[name] = replacement
                (tmp_path / "result.json").write_text(json.dumps(content))
                try:
                    read_candidates(tmp_path / "result.json").to_json()
                except BenchError as error:
                    rejected[name] = str(error)
    assert {
        "schema",
        "kind",
        "created",
        "noise",
        "rows",
        "architecture",
        "rounds",
        "latencies_ns",
        "cold",
        "session_ms",
    } <= rejected.keys()
    assert all("result.json" in message for message in rejected.values())
    assert not rejected.keys() & {
        "id",
        "p50_ms",
        "p90_ms",
        "ci95_ms",
        "images_per_second",
        "fits",
        "verdict",
    }

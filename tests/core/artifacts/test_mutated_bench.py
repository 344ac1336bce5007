"""Mutated bench results are either read or rejected with a one-line error, without a traceback."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgetl.cli.report import show_bench_results
from edgetl.core.artifacts.bench import BenchResult
from edgetl.core.artifacts.bench_json import read_result
from edgetl.core.errors import BenchError
from tests.helpers.bench_results import board, server
from tools.checks.fuzz.mutation import mutate_json

PARTS = (
    "device",
    "noise",
    "model",
    "protocol",
    "limits",
    "notes",
    "profiles",
    "sustained",
    "order",
    "comparisons",
    "gate",
    "session",
    "rounds",
)


def shorten(result: BenchResult) -> dict[str, Any]:
    """Return a result with few latencies, so that mutations affect other fields as often."""
    content: dict[str, Any] = json.loads(json.dumps(result.to_json()))
    for row in content["rows"]:
        for block in row["rounds"]:
            block |= {"latencies_ns": block["latencies_ns"][:6], "slices": [], "waited": 0}
            block["stages_ns"] = {name: times[:6] for name, times in block["stages_ns"].items()}
    if content["sustained"]:
        content["sustained"]["windows"] = [
            {**window, "latencies_ns": window["latencies_ns"][:3]}
            for window in content["sustained"]["windows"][:8]
        ]
    return content


@pytest.mark.parametrize("make", [board, pytest.param(server, marks=pytest.mark.slow)])
def test_mutated_results_are_read_or_rejected(
    make: Callable[[], BenchResult], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = shorten(make())
    path = tmp_path / "result.json"
    accepted = rejected = 0
    for seed in range(200):
        generator = random.Random(seed)
        mutated = {**content, "rows": [dict(row) for row in content["rows"]]}
        part = PARTS[seed % len(PARTS)]
        is_row_part = part in ("gate", "session", "rounds")
        target = generator.choice(mutated["rows"]) if is_row_part else mutated
        target[part] = mutate_json(target[part], generator)
        path.write_text(json.dumps(mutated))
        try:
            result = read_result(path)
        except BenchError as error:
            rejected += 1
            assert "\n" not in str(error)  # noqa: PT017
            continue
        json.dumps(result.to_json(), allow_nan=False)
        show_bench_results([result])
        accepted += 1
    capsys.readouterr()
    assert accepted > 25
    assert rejected > 25


def test_mutations_are_seeded_and_change_content() -> None:
    content = {"a": [1, {"b": "c"}], "d": None}
    first, repeated, second = (mutate_json(content, random.Random(seed)) for seed in (1, 1, 2))
    assert first == repeated != second
    assert content == {"a": [1, {"b": "c"}], "d": None}
    assert sum(mutate_json(content, random.Random(seed)) != content for seed in range(100)) > 80

"""Mutated bench results are read as they are or refused in one sentence, and never end in a traceback."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgetl.cli.report import show_bench_results
from edgetl.core.artifacts.bench import BenchResult
from edgetl.core.artifacts.bench_json import read_bench_result
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


def shortened(result: BenchResult) -> dict[str, Any]:
    """A result with few latencies, so that mutations reach everything else as often."""
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


@pytest.mark.parametrize("make", [board, server])
def test_mutated_results_are_read_or_rejected(
    make: Callable[[], BenchResult], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, path = shortened(make()), tmp_path / "result.json"
    read = refused = 0
    for seed in range(200):
        generator = random.Random(seed)
        mutated = {**content, "rows": [dict(row) for row in content["rows"]]}
        part = PARTS[seed % len(PARTS)]
        where = (
            generator.choice(mutated["rows"]) if part in ("gate", "session", "rounds") else mutated
        )
        where[part] = mutate_json(where[part], generator)
        path.write_text(json.dumps(mutated))
        try:
            result = read_bench_result(path)
        except BenchError as error:
            refused += 1
            assert "\n" not in str(error)  # noqa: PT017
            continue
        json.dumps(result.to_json(), allow_nan=False)
        show_bench_results([result])
        read += 1
    capsys.readouterr()
    assert read > 25
    assert refused > 25


def test_mutations_are_seeded_and_change_content() -> None:
    content = {"a": [1, {"b": "c"}], "d": None}
    one, same, other = (mutate_json(content, random.Random(seed)) for seed in (1, 1, 2))
    assert one == same != other
    assert content == {"a": [1, {"b": "c"}], "d": None}
    assert sum(mutate_json(content, random.Random(seed)) != content for seed in range(100)) > 80

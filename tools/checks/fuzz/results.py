"""Mutated result files of `edgetl bench`, read and rendered as a page."""

from __future__ import annotations

import json
import random
from pathlib import Path

from edgetl.core.artifacts.bench_json import read_result
from edgetl.report.bench.page import render_bench_report
from tests.helpers.bench_results import board, server
from tools.checks.fuzz.mutation import mutate_json
from tools.checks.fuzz.target import Target, mutate_json_file

_LATENCIES = 12
_RENDER_EVERY = 8


def prepare(folder: Path) -> None:
    """Write the results of a board and a server, with few latencies."""
    for name, result in (("board", board()), ("server", server())):
        content = json.loads(json.dumps(result.to_json()))
        for row in content["rows"]:
            for block in row["rounds"]:
                block |= {
                    "latencies_ns": block["latencies_ns"][:_LATENCIES],
                    "slices": [],
                    "waited": 0,
                }
                block["stages_ns"] = {
                    stage: times[:_LATENCIES] for stage, times in block["stages_ns"].items()
                }
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")


def make_case(generator: random.Random, originals: Path, case: Path) -> None:
    """Write one mutated result."""
    original = originals / generator.choice(["board.json", "server.json"])
    path = case / "result.json"
    path.write_bytes(original.read_bytes())
    if generator.random() < 0.5:
        mutate_json_file(path, generator)
        return
    content = json.loads(path.read_text(encoding="utf-8"))
    row = generator.choice(content["rows"])
    name = generator.choice(list(row))
    row[name] = mutate_json(row[name], generator)
    path.write_text(json.dumps(content), encoding="utf-8")


def use(case: Path) -> None:
    """Read the result, and render the page of one in eight."""
    path = case / "result.json"
    result = read_result(path)
    json.dumps(result.to_json(), allow_nan=False)
    # Rendering takes a second, twenty times as long as the rest.
    if path.stat().st_size % _RENDER_EVERY == 0:
        render_bench_report([result])


TARGET = Target(prepare, make_case, use)

"""Summary tables of the demo."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from edgetl.core.artifacts.bundle import read_bundle_record
from edgetl.core.artifacts.gate import GateResult
from edgetl.demo.summary import accuracy_gain_table, latency_gain_table
from tests.helpers.bench_results import bench_result, bench_row
from tests.helpers.experiments import made_experiment
from tests.helpers.runs import write_bundle

NETWORK = "mobilenet_v3_small-160"


def test_accuracy_table_shows_gain_and_time_to_accuracy() -> None:
    experiment = made_experiment(
        {f"{NETWORK}/scratch": (0.7, 40.0), f"{NETWORK}/full": (0.96, 36.0)}
    )
    table = accuracy_gain_table(
        experiment,
        *(
            next(row for row in experiment.rows if row.first_run.strategy == name)
            for name in ("scratch", "full")
        ),
    )
    accuracy, time, *until = table.rows
    assert accuracy[:3] == ("validation accuracy", "70.0%", "96.0%")
    assert accuracy[3].startswith("+26.0 [")
    assert accuracy[3].endswith("points: more accurate")
    assert time[1:3] == ("40 s", "36 s")
    # The accuracy of these runs increases linearly over four epochs.
    assert until == [
        ("until 70.0%", "40 s", "27 s", "1.5 times faster"),
        ("until 96.0%", "not within 40 s", "36 s", ""),
    ]


def test_accuracy_levels_near_chance_are_left_out() -> None:
    experiment = made_experiment(
        {f"{NETWORK}/scratch": (0.5, 40.0), f"{NETWORK}/full": (0.8, 36.0)}
    )
    table = accuracy_gain_table(
        experiment,
        *(
            next(row for row in experiment.rows if row.first_run.strategy == name)
            for name in ("scratch", "full")
        ),
    )
    assert [row[0] for row in table.rows] == ["validation accuracy", "time", "until 80.0%"], (
        "50% is chance with two classes"
    )


def test_accuracy_table_when_pretrained_is_worse() -> None:
    experiment = made_experiment(
        {f"{NETWORK}/scratch": (0.9, 40.0), f"{NETWORK}/full": (0.7, 36.0)}
    )
    table = accuracy_gain_table(
        experiment,
        *(
            next(row for row in experiment.rows if row.first_run.strategy == name)
            for name in ("scratch", "full")
        ),
    )
    assert table.rows[-1] == ("until 90.0%", "40 s", "not within 36 s", "")
    assert "-20.0" in table.rows[0][3]


BUNDLE = cast(Any, SimpleNamespace(variants=(), manifest=SimpleNamespace(recommended=None)))
"""Bundle without accuracies."""


def test_latency_table_lists_pytorch_and_variants() -> None:
    rows = (
        bench_row("pytorch", "fp32", 9.0),
        bench_row("onnxruntime", "fp32", 3.0),
        bench_row("onnxruntime", "int8", 1.5),
        bench_row("onnxruntime", "int8", 4.0, scope="file"),
    )
    table = latency_gain_table(BUNDLE, bench_result(rows), 0.875)
    assert [row[0] for row in table.rows] == ["PyTorch", "ONNX fp32", "ONNX int8 *"], (
        "scope file is left out, the recommended one is marked"
    )
    assert [float(row[2].split()[0]) for row in table.rows] == pytest.approx([1, 3, 6], rel=0.03)
    assert [row[3] for row in table.rows] == ["", "faster", "faster"]
    assert [row[5] for row in table.rows] == ["87.5%", "—", "—"], (
        "the bundle of this test has no accuracies"
    )


def test_latency_table_reports_failed_gate() -> None:
    gate = GateResult(checked=True, passed=False, reason="3 of 8 images")
    wrong = bench_row("onnxruntime", "int8", 1.0, rounds=0, gate=gate)
    table = latency_gain_table(
        BUNDLE, bench_result((bench_row("pytorch", "fp32", 9.0), wrong)), 0.5
    )
    assert table.rows[1][1:4] == ("—", "", "does not match PyTorch")


def test_latency_table_says_where_bundle_recommends_a_slow_int8(tmp_path: Path) -> None:
    bundle = read_bundle_record(write_bundle(tmp_path / "bundle").path)
    assert bundle.manifest.recommended == "int8"
    rows = (
        bench_row("pytorch", "fp32", 9.0),
        bench_row("onnxruntime", "fp32", 3.0),
        bench_row("onnxruntime", "int8", 3.3),
    )
    table = latency_gain_table(bundle, bench_result(rows), 25 / 30)
    assert [row[0] for row in table.rows] == ["PyTorch", "ONNX fp32 *", "ONNX int8"]
    assert [row[5] for row in table.rows] == ["83.3%", "83.3%", "80.0%"]
    assert "The bundle recommends int8, 2.00 times as fast as fp32 at export" in table.note
    assert "here it is slower: 0.91 " in table.note
    assert "3.3 points less accurate. Use fp32 on this device." in table.note

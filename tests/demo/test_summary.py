"""The one screen of a whole job: every figure on it is one of the artifacts'."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from edgetl.demo.summary import accuracy_gain_table, latency_gain_table
from tests.helpers.bench_results import bench_result, bench_row
from tests.helpers.experiments import made_experiment

M = "mobilenet_v3_small-160"


def test_training_from_nothing_beside_pretrained() -> None:
    found = made_experiment({f"{M}/scratch": (0.7, 40.0), f"{M}/full": (0.96, 36.0)})
    shown = accuracy_gain_table(
        found,
        *(
            next(row for row in found.rows if row.first_run.strategy == name)
            for name in ("scratch", "full")
        ),
    )
    accuracy, time, *until = shown.rows
    assert accuracy[:3] == ("validation accuracy", "70.0%", "96.0%")
    assert accuracy[3].startswith("+26.0 [")
    assert accuracy[3].endswith("points: more accurate")
    assert time[1:3] == ("40 s", "36 s")
    # A run rises evenly in four epochs.
    assert until == [
        ("until 70.0%", "40 s", "27 s", "1.5 times as soon"),
        ("until 96.0%", "not in 40 s", "36 s", ""),
    ]


def test_what_is_guessed_says_nothing_of_time() -> None:
    found = made_experiment({f"{M}/scratch": (0.5, 40.0), f"{M}/full": (0.8, 36.0)})
    shown = accuracy_gain_table(
        found,
        *(
            next(row for row in found.rows if row.first_run.strategy == name)
            for name in ("scratch", "full")
        ),
    )
    assert [row[0] for row in shown.rows] == ["validation accuracy", "time", "until 80.0%"], (
        "two classes: a half is guessed"
    )


def test_a_pretrained_run_that_is_worse() -> None:
    found = made_experiment({f"{M}/scratch": (0.9, 40.0), f"{M}/full": (0.7, 36.0)})
    shown = accuracy_gain_table(
        found,
        *(
            next(row for row in found.rows if row.first_run.strategy == name)
            for name in ("scratch", "full")
        ),
    )
    assert shown.rows[-1] == ("until 90.0%", "40 s", "not in 36 s", "")
    assert "-20.0" in shown.rows[0][3]


BUNDLE = cast(Any, SimpleNamespace(variants=()))
"""Nothing is known of its accuracies."""


def test_pytorch_beside_every_file() -> None:
    rows = (
        bench_row("pytorch", "fp32", 9.0), bench_row("onnxruntime", "fp32", 3.0), bench_row("onnxruntime", "int8", 1.5),
        bench_row("onnxruntime", "int8", 4.0, scope="file"),
    )  # fmt: skip
    shown = latency_gain_table(BUNDLE, bench_result(rows), 0.875)
    assert [row[0] for row in shown.rows] == ["PyTorch", "ONNX fp32", "ONNX int8 *"], (
        "scope file is left out, the recommended one is marked"
    )
    assert [float(row[2].split()[0]) for row in shown.rows] == pytest.approx([1, 3, 6], rel=0.03)
    assert [row[3] for row in shown.rows] == ["", "faster", "faster"]
    assert [row[5] for row in shown.rows] == ["87.5%", "—", "—"], (
        "the bundle of this test has no accuracies"
    )


def test_a_file_that_answers_wrongly_is_called_so() -> None:
    gate = {"checked": True, "passed": False, "reason": "3 of 8 images"}
    wrong = bench_row("onnxruntime", "int8", 1.0, rounds=0, gate=gate)
    shown = latency_gain_table(
        BUNDLE, bench_result((bench_row("pytorch", "fp32", 9.0), wrong)), 0.5
    )
    assert shown.rows[1][1:4] == ("—", "", "does not answer as PyTorch")

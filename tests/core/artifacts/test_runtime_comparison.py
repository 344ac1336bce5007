from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetl.core.artifacts.bench import BenchedModel
from edgetl.core.artifacts.noise import Interference, NoiseReport
from edgetl.core.artifacts.runtime_comparison import (
    compare_with_plain,
    is_plain,
    list_runtimes,
    select_pareto_rows,
)
from edgetl.core.statistics import unpaired_speedup
from tests.helpers.bench_results import (
    accuracy,
    bench_result,
    bench_row,
    device,
    runtimes_result,
)


def test_rows_are_compared_with_plain_rows_of_their_threads() -> None:
    result = runtimes_result()
    for row in result.rows:
        comparison = compare_with_plain(result, row)
        if is_plain(row) or row.has_failed_gate:
            assert comparison is None
        else:
            assert comparison is not None
            baseline = result.get_row(comparison.baseline)
            assert is_plain(baseline)
            assert baseline.threads == row.threads
            assert comparison.speedup == result.compare_rows(baseline, row).speedup
    fastest = compare_with_plain(result, result.get_row("openvino-openvino-int8-model-cpu-b1-t1"))
    assert fastest is not None
    assert fastest.verdict == "faster"
    assert fastest.speedup.ratio == pytest.approx(2.5, rel=0.03)


def test_plain_rows_with_other_inputs_are_no_baseline() -> None:
    pixels = bench_row("openvino", "openvino-fp32", 7.0, input="float32 1x3x224x224")
    image = bench_row("onnxruntime", "fp32", 7.5, input="uint8 1x256x256x3")
    assert compare_with_plain(bench_result((image, pixels)), pixels) is None


def test_plain_row_of_the_same_provider_is_preferred() -> None:
    rows = (
        bench_row("onnxruntime", "fp32", 7.5),
        bench_row("onnxruntime", "fp32", 2.0, provider="cuda"),
        bench_row("onnxruntime", "int8", 1.0, provider="cuda"),
        bench_row("openvino", "openvino-fp32", 7.0, provider="gpu"),
    )
    result = bench_result(rows)
    pairs = [compare_with_plain(result, row) for row in rows[2:]]
    assert [pair.baseline for pair in pairs if pair] == [rows[1].id, rows[0].id]


def test_plain_row_of_another_result_of_the_device_is_used() -> None:
    plain = bench_result((bench_row("onnxruntime", "fp32", 7.5),))
    row = bench_row("openvino", "openvino-int8", 3.0)
    result = bench_result((row,))
    assert compare_with_plain(result, row) is None
    comparison = compare_with_plain(result, row, (result, plain))
    assert comparison is not None
    assert comparison.speedup == unpaired_speedup(
        plain.rows[0].round_medians_ns, row.round_medians_ns
    )
    assert comparison.verdict == "faster"
    assert comparison.earlier_row is not None
    assert not comparison.earlier_row.cross_device
    for other in (
        replace(plain, device=device("another board")),
        replace(plain, model=BenchedModel("mobilenet_v2", "ba9876543210")),
        replace(plain, model=BenchedModel("fp32.onnx", None)),
    ):
        assert compare_with_plain(result, row, (other,)) is None
    noise = NoiseReport(("load",), Interference(disturbance=2.0))
    noisy = compare_with_plain(replace(result, noise=noise), row, (plain,))
    assert noisy is not None
    assert noisy.verdict == "faster", "noise of separate results is the spread of their rounds"


def test_list_runtimes_leaves_out_pytorch() -> None:
    rows = [
        bench_row(name, "fp32", 1.0) for name in ("pytorch", "openvino", "onnxruntime", "openvino")
    ]
    assert list_runtimes(rows) == ["openvino", "onnxruntime"]


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(0, 6)), max_size=12))
def test_pareto_rows_are_beaten_by_no_other(points: list[tuple[int, int]]) -> None:
    rows = [
        bench_row("onnxruntime", f"v{index}", ms, runs=1, rounds=1, accuracy=accuracy(hits / 10))
        for index, (ms, hits) in enumerate(points)
    ]
    # Equal latencies occur only without the noise of the generated rows.
    rows = [
        replace(row, rounds=(replace(row.rounds[0], latencies_ns=(ms,)),))
        for row, (ms, _) in zip(rows, points, strict=True)
    ]
    front = select_pareto_rows(rows)
    figures = {row.id: point for row, point in zip(rows, points, strict=True)}
    front_figures = [figures[row.id] for row in front]
    for (ms, hits), (next_ms, next_hits) in pairwise(front_figures):
        assert ms < next_ms
        assert hits < next_hits
    for ms, hits in points:
        assert any(
            front_ms <= ms and front_hits >= hits for front_ms, front_hits in front_figures
        ), "the front covers every row"
    assert (front == []) == (rows == [])


def test_rows_without_accuracy_are_not_on_the_front() -> None:
    assert select_pareto_rows([bench_row("onnxruntime", "fp32", 1.0)]) == []
    untimed = bench_row("onnxruntime", "fp32", 1.0, rounds=0, accuracy=accuracy(0.9))
    assert select_pareto_rows([untimed]) == []

"""Terminal output of bench results of several runtimes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edgetl.cli.bench_tables import show_bench_result
from edgetl.cli.console import out
from edgetl.core.artifacts.bench import BenchedModel, BenchResult
from edgetl.core.artifacts.runtime_comparison import compare_with_plain
from edgetl.core.artifacts.session import SessionRecord
from tests.helpers.bench_results import bench_result, bench_row, runtimes_result


@pytest.fixture(autouse=True)
def set_width_to_100_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(out._get_console(), "_width", 100)


def rendered_lines(result: BenchResult) -> list[str]:
    with out.capture() as capture:
        show_bench_result(result)
    return [line.rstrip() for line in capture.get().splitlines()]


def without_energy(result: BenchResult) -> BenchResult:
    rows = [
        replace(row, rounds=tuple(replace(block, energy_j={}) for block in row.rounds))
        for row in result.rows
    ]
    return replace(result, rows=tuple(rows))


def test_runtimes_are_listed_by_threads_and_latency() -> None:
    lines = rendered_lines(runtimes_result())
    assert [line for line in lines if line.startswith("Scope")] == [
        "Scope model, batch 1, 1 thread",
        "Scope model, batch 1, 2 threads",
    ]
    rows = [line.split() for line in lines if line.endswith(("4.5", "8.9", "2.4"))]
    for group in (rows[:9], rows[9:]):
        assert [cells[0] for cells in group] == [
            "openvino", "onnxruntime", "openvino", "litert", "ncnn", "openvino", "onnxruntime",
            "ncnn", "litert",
        ]  # fmt: skip
    (recommended,) = [cells for cells in rows if "*" in cells]
    result = runtimes_result()
    row = result.get_row("openvino-openvino-int8-model-cpu-b1-t2")
    comparison = compare_with_plain(result, row)
    assert comparison is not None
    speedup = comparison.speedup
    assert recommended == [
        "openvino", "openvino-int8", "*", "—", f"{row.p50_ms:.2f}", "2%", f"{speedup.ratio:.2f}×",
        f"[{speedup.low:.2f},", f"{speedup.high:.2f}]", "faster", "91.4%", "4.5",
    ]  # fmt: skip


def test_tables_of_runtimes_fit_100_columns() -> None:
    session = SessionRecord(precision="bf16")
    result = without_energy(runtimes_result())
    rows = tuple(replace(row, session=session) for row in result.rows)
    lines = rendered_lines(replace(result, rows=rows))
    tables = [line for line in lines if line.startswith(("openvino", "ncnn", "litert", "onnxr"))]
    assert len(tables) == 36, "each row once with its latency and once with its cold start"
    assert max(map(len, tables)) <= 100
    assert sum(" bf16 " in line for line in tables) == 18
    cold_starts = [line for line in tables if "8/8 agree" in line]
    assert cold_starts[0].startswith("onnxruntime fp32 t1 ")
    assert cold_starts[-1].startswith("litert-int8 t2 ")


def test_refused_runtimes_are_listed_once_with_the_reason() -> None:
    lines = rendered_lines(runtimes_result())
    assert [line for line in lines if "executorch" in line] == [
        "Refused  executorch-int8: logits differ by 4.7, tolerance 0.9"
    ]


def test_recommendation_is_a_sentence_with_a_command() -> None:
    result = replace(runtimes_result(), target="runs/my pets")
    lines = rendered_lines(result)
    index = next(index for index, line in enumerate(lines) if line.startswith("Fastest"))
    row = result.get_row("openvino-openvino-int8-model-cpu-b1-t2")
    comparison = compare_with_plain(result, row)
    assert comparison is not None
    speedup = comparison.speedup
    assert lines[index] == (
        f"Fastest  OpenVINO with variant openvino-int8 and 2 threads: {row.p50_ms:.2f} ms, "
        f"{speedup.ratio:.2f}× [{speedup.low:.2f}, {speedup.high:.2f}] as fast as onnxruntime fp32, "
        "accuracy 91.4% (PyTorch 91.8%)."
    )
    assert lines[index + 1].strip() == (
        "edgetl predict 'runs/my pets' IMAGE --runtime openvino --variant openvino-int8 --threads 2"
    )


def test_recommended_command_needs_a_bundle() -> None:
    lines = rendered_lines(replace(runtimes_result(), model=BenchedModel("fp32.onnx", None)))
    assert not any("edgetl predict" in line for line in lines)


def test_recommended_onnxruntime_is_compared_with_nothing() -> None:
    rows = (
        bench_row("onnxruntime", "fp32", 3.0),
        bench_row("openvino", "fp32", 6.0),
        bench_row("openvino", "fp32", 6.0, batch=4),
    )
    text = "\n".join(rendered_lines(bench_result(rows)))
    assert "Fastest  ONNX Runtime with variant fp32 and 2 threads: " in text
    assert "as fast as" not in text
    assert "Most/s   openvino fp32, 2 threads, batch 4: " in text
    assert "slower" in text
    assert "Accuracy: top-1" not in text


def test_onnxruntime_alone_keeps_its_table() -> None:
    rows = (bench_row("pytorch", "fp32", 9.0), bench_row("onnxruntime", "fp32", 3.0))
    text = "\n".join(rendered_lines(bench_result(rows)))
    assert "p99 ms" in text
    assert "file MB" in text
    assert "edgetl predict" not in text

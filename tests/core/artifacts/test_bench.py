from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgetl.core.artifacts.bench import BenchedModel, BenchResult
from edgetl.core.artifacts.bench_json import read_result, write_result
from edgetl.core.artifacts.bench_rows import (
    BenchRow,
    BlockResult,
    ColdStart,
    relative_spread,
    round_ratios,
)
from edgetl.core.artifacts.comparison import (
    EarlierPair,
    EarlierRow,
    Pair,
    are_ratios_consistent,
    decide_verdict,
)
from edgetl.core.artifacts.device import DeviceInfo
from edgetl.core.artifacts.gate import GateResult
from edgetl.core.artifacts.noise import NoiseReport
from edgetl.core.artifacts.session import SessionRecord
from edgetl.core.errors import BenchError
from edgetl.core.statistics import Speedup
from edgetl.core.typed_json import parse_as, to_json
from tests.helpers.gpus import gpu_reading

COLD = ColdStart(import_ms=80.0, session_ms=20.0, first_inference_ms=5.0, peak_memory_bytes=10**8)


def block(latency_ns: int, runs: int = 100) -> BlockResult:
    return BlockResult(
        latencies_ns=tuple(latency_ns + index for index in range(runs)),
        cold=COLD,
        warmup_medians_ns=(1.5, 2.5),
        stages_ns={"decode": (1,) * runs, "infer": (3,) * runs},
        frequency_khz=2_000_000,
    )


def row(runtime: str, latencies_ns: list[int], scope: str = "model") -> BenchRow:
    return BenchRow(
        runtime=runtime,
        variant="fp32",
        scope=scope,
        provider="cpu",
        batch=1,
        threads=2,
        input="uint8 1x256x256x3",
        file_sha256="ab" * 32,
        file_bytes=1234,
        gate=GateResult(
            checked=True,
            passed=True,
            images=8,
            top1_agreement=8,
            max_logit_difference=1e-5,
            tolerance=0.05,
        ),
        session=SessionRecord(intra_op_threads=2),
        rounds=tuple(block(latency) for latency in latencies_ns),
    )


def result(noise: NoiseReport = NoiseReport(())) -> BenchResult:  # noqa: B008
    rows = (
        row("pytorch", [8_000_000, 8_100_000, 7_900_000]),
        row("onnxruntime", [2_000_000, 2_050_000, 1_950_000]),
    )
    return BenchResult(
        created="2026-01-02T03:04:05+00:00",
        edgetl="0.1.0",
        target="runs/a",
        model=BenchedModel("mobilenet_v2", "0123456789ab"),
        device=DeviceInfo(host="bench"),
        noise=noise,
        protocol={"rounds": 3},
        order=(("a", "b"), ("b", "a"), ("a", "b")),
        rows=rows,
        pairs=(Pair(rows[0].id, rows[1].id),),
        notes=("a note",),
    )


def test_result_round_trips_through_file(tmp_path: Path) -> None:
    earlier = EarlierRow("old.json", "2025", True, False, 4, True, 9.0, (9e6, 9.1e6), True)
    original = replace(
        result(),
        earlier_pairs=(
            EarlierPair(
                "pytorch-fp32-model-cpu-b1-t2", "onnxruntime-fp32-model-cpu-b1-t2", earlier
            ),
        ),
    )
    write_result(original, tmp_path / "result.json")
    loaded = read_result(tmp_path / "result.json")
    assert loaded == replace(original, path=tmp_path / "result.json")
    assert loaded.to_json() == original.to_json()


def test_result_json_has_documented_fields() -> None:
    content = json.loads(json.dumps(result().to_json()))
    assert (content["schema"], content["kind"]) == (1, "bench")
    assert (content["noise"]["verdict"], content["noise"]["reasons"]) == ("quiet", [])
    onnx = content["rows"][1]
    assert (onnx["id"], onnx["scope"], onnx["batch"], onnx["threads"]) == (
        "onnxruntime-fp32-model-cpu-b1-t2",
        "model",
        1,
        2,
    )
    assert onnx["p50_ms"] == pytest.approx(2.0000495)
    assert onnx["p90_ms"] is not None
    assert onnx["p99_ms"] is None, "p99 needs at least 662 runs"
    assert onnx["images_per_second"] == pytest.approx(500, rel=0.01)
    assert onnx["cold"]["total_ms"] == pytest.approx(105)
    assert onnx["stages_ms"] == {"decode": 1e-6, "infer": 3e-6}
    assert len(onnx["rounds"]) == 3
    assert onnx["rounds"][0]["latencies_ns"][:2] == [2_000_000, 2_000_001]
    comparison = content["comparisons"][0]
    assert (comparison["baseline"], comparison["candidate"]) == (
        "pytorch-fp32-model-cpu-b1-t2",
        "onnxruntime-fp32-model-cpu-b1-t2",
    )
    assert comparison["speedup"] == pytest.approx(4.0, rel=1e-3)
    assert comparison["ci95"][0] <= comparison["speedup"] <= comparison["ci95"][1]
    assert (comparison["verdict"], comparison["kind"]) == ("faster", "same run")


def test_statistics_are_recomputed_on_reading(tmp_path: Path) -> None:
    content = json.loads(json.dumps(result().to_json()))
    content["rows"][1]["p50_ms"] = 0.001
    content["comparisons"][0]["speedup"] = 1000.0
    (tmp_path / "result.json").write_text(json.dumps(content))
    loaded = read_result(tmp_path / "result.json")
    row = loaded.get_row("onnxruntime-fp32-model-cpu-b1-t2")
    assert row.percentile_ms(50) == pytest.approx(2.0, rel=1e-3)
    assert loaded.comparisons[0].speedup.ratio == pytest.approx(4.0, rel=1e-3)


def test_write_result_does_not_overwrite(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text("mine")
    with pytest.raises(BenchError, match="never overwritten"):
        write_result(result(), path)
    assert path.read_text() == "mine"


def test_write_result_suggests_output_when_not_writable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BenchError, match="another output"):
        write_result(result(), tmp_path / "file" / "result.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ('{"schema": 1, "kind": "doctor"}', "is not a bench result"),
        ('{"schema": 2, "kind": "bench"}', "schema 2"),
        ('{"schema": 1, "kind": "bench"}', "broken"),
    ],
)
def test_read_rejects_other_files(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(BenchError, match=message):
        read_result(tmp_path / "result.json")


def test_unmeasured_row_has_no_statistics() -> None:
    content = to_json(row("onnxruntime", []))
    assert [content[name] for name in ("p50_ms", "p90_ms", "p99_ms", "images_per_second")] == [
        None
    ] * 4
    assert content["cold"] == {}


def test_failed_rows_are_not_compared() -> None:
    timed, failed = row("pytorch", [100, 101]), row("onnxruntime", [])
    assert replace(result(), rows=(timed, failed)).comparisons == []


@pytest.mark.parametrize(
    ("interval", "noisy", "spread", "expected"),
    [
        ((2.0, 1.9, 2.1), False, 0.0, "faster"),
        ((0.5, 0.4, 0.6), False, 0.0, "slower"),
        ((1.1, 0.9, 1.3), False, 0.0, "inconclusive"),
        ((1.1, 0.9, 1.3), True, 0.5, "noisy"),
        ((1.1, 0.9, 1.3), True, 0.0, "noisy"),
        ((1.2, 1.1, 1.3), True, 0.05, "faster"),
        ((1.2, 1.1, 1.3), True, 0.2, "noisy"),
        ((0.8, 0.75, 0.9), True, 0.2, "noisy"),
        ((0.5, 0.4, 0.6), True, 0.2, "slower"),
        ((1.2, 1.1, 1.3), False, 0.2, "faster"),
        ((1.0, 1.0, 1.0), False, 0.0, "inconclusive"),
    ],
)
def test_decide_verdict(
    interval: tuple[float, float, float], noisy: bool, spread: float, expected: str
) -> None:
    assert decide_verdict(Speedup(*interval), noisy, spread) == expected


def test_consistency_requires_rounds_to_agree() -> None:
    assert are_ratios_consistent([1.1] * 8)
    assert are_ratios_consistent([0.9] * 8)
    assert are_ratios_consistent([1.1] * 7 + [0.99]), "one round may disagree slightly"
    assert not are_ratios_consistent([1.1] * 7 + [0.8])
    assert not are_ratios_consistent([1.1] * 6 + [0.99, 0.98])
    assert are_ratios_consistent([1.1, 0.9]), "too few rounds for the test"
    assert decide_verdict(Speedup(1.2, 1.1, 1.3), False, 0.0, consistent=False) == "inconclusive"


def test_round_ratio_uses_interleaved_slices() -> None:
    # The machine's speed halves in the middle of the round, one slice later for the candidate.
    fast, slow = (1_000_000,) * 10, (2_000_000,) * 10
    baseline_block = replace(block(1), latencies_ns=fast * 5 + slow * 5, slices=(10,) * 10)
    candidate_block = replace(
        block(1),
        latencies_ns=tuple(latency // 2 for latency in fast * 6 + slow * 4),
        slices=(10,) * 10,
    )
    baseline = replace(row("pytorch", []), rounds=(baseline_block,))
    candidate = replace(row("onnxruntime", []), rounds=(candidate_block,))
    assert round_ratios(baseline, candidate) == [2.0]
    unsliced = replace(candidate, rounds=(replace(candidate_block, slices=()),))
    assert round_ratios(baseline, unsliced) == [3.0]


def test_relative_spread() -> None:
    assert relative_spread([1.0, 2.0, 4.0]) == 1.5
    assert relative_spread([]) == 0.0


def test_rounds_without_gpu_readings_are_read() -> None:
    content = json.loads(json.dumps(to_json(row("onnxruntime", [2_000_000]))))
    del content["rounds"][0]["gpu"]
    parsed = parse_as(BenchRow, content)
    assert (parsed.gpu, parsed.rounds[0].gpu) == (None, None)


def test_gpu_readings_are_summarized_over_rounds() -> None:
    cool = gpu_reading(power_w=None, memory_used_bytes=5)
    hot = replace(
        cool,
        sm_clocks_mhz=(1755,),
        throttle_reasons=("hw slowdown",),
        temperature_c=61,
        memory_used_bytes=4,
    )
    measured = row("onnxruntime", [2_000_000, 2_000_000])
    measured = replace(
        measured,
        rounds=tuple(
            replace(block, gpu=reading)
            for block, reading in zip(measured.rounds, (cool, hot), strict=True)
        ),
    )
    stored = json.loads(json.dumps(to_json(measured)))
    assert parse_as(BenchRow, stored) == measured
    assert stored["gpu"] == {
        "sm_clock_mhz": [1755, 1980],
        "max_sm_clock_mhz": 1980,
        "temperature_c": 61,
        "power_w": None,
        "memory_used_bytes": 5,
        "throttle_reasons": ["hw slowdown"],
    }


def edited(content: dict[str, Any], path: str, value: object) -> None:
    """Set a value of nested objects and lists, for example `rows.0.batch`."""
    *parents, last = path.split(".")
    target: Any = content
    for key in parents:
        target = target[int(key) if key.isdigit() else key]
    target[last] = value


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("created", 5, "created must be a string, got 5"),
        ("rows.0.id", {}, r"rows\[0\].id must be a string"),
        ("rows.0.color", 1, r"rows\[0\] has an unknown field 'color'"),
        ("rows.0.gate.passed", "yes", r"rows\[0\].gate.passed must be true or false"),
        ("rows.0.session.torch", 2, r"rows\[0\].session.torch must be a string"),
        ("rows.1.batch", 0, r"rows\[1\]: batch and threads"),
        ("rows.1.rounds.2.latencies_ns", [], r"rows\[1\].rounds\[2\]: a round must have"),
        ("rows.1.rounds.2.cold", {}, r"rounds\[2\].cold has no field 'import_ms'"),
        ("noise.measured.steal", "much", "noise.measured.steal must be a number"),
        ("device.before", {"load": 3}, "device.before has no field 'monotonic_s'"),
        ("limits.max_p99_ms", "5ms", "limits.max_p99_ms must be a number"),
        ("limits.max_p50_ms", 5, "limits has an unknown field 'max_p50_ms'"),
        ("comparisons.0.candidate", "other", "comparisons has 'other', which is no row"),
        ("comparisons.0.kind", "other", "kind must be one of"),
        ("comparisons.0.color", "red", "unknown field 'color'"),
        ("profiles.x", {"runs": 1, "operators": []}, "profiles.x has no field 'nodes'"),
        ("sustained", {"row": "a", "asked_s": 1, "windows": []}, "must have windows"),
    ],
)
def test_broken_field_is_named(path: str, value: object, message: str, tmp_path: Path) -> None:
    content = json.loads(json.dumps(result().to_json()))
    edited(content, path, value)
    (tmp_path / "result.json").write_text(json.dumps(content))
    with pytest.raises(BenchError, match=message) as error:
        read_result(tmp_path / "result.json")
    assert "result.json" in str(error.value)

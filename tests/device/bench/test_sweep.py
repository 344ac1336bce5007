"""Tests of sweeps, sustained runs, profiles, input files and limits."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

from edgetl.cli.app import create_app
from edgetl.core.artifacts.bench_json import (
    JsonSerializable,
    read_result,
    write_result,
)
from edgetl.core.config.bench import BenchConfig, Limits
from edgetl.core.errors import BenchError, BundleError, ProviderError
from edgetl.device.bench import rounds, runner
from edgetl.device.bench.correctness_gate import GatedCase
from edgetl.device.bench.protocol import BenchProtocol
from edgetl.device.bench.runner import bench
from edgetl.device.runtime.session import available_providers

MakeBundle = Callable[..., Path]


@pytest.fixture(autouse=True)
def run_in_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_sweep_measures_all_combinations(make_bundle: MakeBundle, brief: BenchProtocol) -> None:
    bundle = make_bundle(variants=("fp32", "other"))
    config = BenchConfig(
        bundle, batches=(1, 3), threads=(1, 2), rounds=2, scopes=("model", "file"), force=True
    )
    result = bench(config, protocol=brief)
    expected = {
        f"onnxruntime-{variant}-{scope}-cpu-b{batch}-t{threads}"
        for variant in ("fp32", "other")
        for threads in (1, 2)
        for scope, batch in (("model", 1), ("model", 3), ("file", 1))
    }
    assert {row.id for row in result.rows} == expected
    assert all(len(row.rounds) == 2 and row.gate.passed for row in result.rows)
    assert {row.input for row in result.rows if row.batch == 3} == {"uint8 3x40x40x3"}
    assert len(result.order[0]) == len(set(result.order[0])) == 8
    for pair in result.comparisons:
        assert (
            result.get_row(pair.baseline).comparison_key
            == result.get_row(pair.candidate).comparison_key
        )
        assert "fp32" in pair.baseline
    assert len(result.comparisons) == 6
    recommendation = result.to_json()["recommendation"]
    assert recommendation["latency"]["row"] in expected
    assert recommendation["latency"]["options"]["inter_op_num_threads"] == 1
    assert recommendation["throughput"]["images_per_second"] > 0
    assert read_result(result.path or Path()).to_json() == result.to_json()


def test_batch_with_other_logits_fails_gate(
    make_bundle: MakeBundle, brief: BenchProtocol, tmp_path: Path
) -> None:
    """In a batch the second image gets the logits of the first."""
    bundle = make_bundle()
    model = onnx.load(bundle / "fp32.onnx")
    first = next(node for node in model.graph.node if node.output[0] == "logits")
    first.output[0] = "each"
    model.graph.node.insert(
        list(model.graph.node).index(first) + 1,
        onnx.parser.parse_node("logits = Sub (each, spread)"),
    )
    model.graph.node.insert(
        list(model.graph.node).index(first) + 1,
        onnx.parser.parse_node("spread = Sub (each, leading)"),
    )
    model.graph.node.insert(
        list(model.graph.node).index(first) + 1,
        onnx.parser.parse_node("leading = Slice (each, zero, one, zero)"),
    )
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.array([value], np.int64), name)
        for value, name in ((0, "zero"), (1, "one"))
    )
    _replace_model(bundle, model)
    result = bench(BenchConfig(bundle, batches=(1, 2), scopes=("model",), rounds=2), protocol=brief)
    assert [row.has_failed_gate for row in result.rows] == [False, True]
    assert "in scope model logits differ" in result.rows[1].gate.reason
    assert result.recommendation is not None
    assert result.recommendation.throughput.row == result.rows[0].id


def _replace_model(bundle: Path, model: onnx.ModelProto) -> None:
    from edgetl.core.files import sha256_file

    onnx.save(model, bundle / "fp32.onnx")
    manifest = json.loads((bundle / "bundle.json").read_text())
    manifest["variants"][0] |= {
        "sha256": sha256_file(bundle / "fp32.onnx"),
        "bytes": (bundle / "fp32.onnx").stat().st_size,
    }
    (bundle / "bundle.json").write_text(json.dumps(manifest))


def test_scopes_report_their_stages(make_bundle: MakeBundle, brief: BenchProtocol) -> None:
    result = bench(BenchConfig(make_bundle(), scopes=("image", "file"), rounds=2), protocol=brief)
    image, file = result.rows
    assert list(image.stages_ms) == ["preprocess", "inference", "postprocess"]
    assert list(file.stages_ms) == [
        "read",
        "decode",
        "preprocess",
        "inference",
        "postprocess",
    ]
    assert image.input == file.input
    assert image.percentile_ms(50) < file.percentile_ms(50)  # type: ignore[operator]


def test_paced_rows_are_added_to_single_stream_rows(
    make_bundle: MakeBundle, brief: BenchProtocol
) -> None:
    protocol = replace(brief, paced_seconds=0.05, paced_runs=5)
    result = bench(
        BenchConfig(make_bundle(), scopes=("model", "file"), rates=(200.0,), rounds=2),
        protocol=protocol,
    )
    assert [(row.scope, row.rate) for row in result.rows] == [
        ("model", None),
        ("model", 200.0),
        ("file", None),
        ("file", 200.0),
    ]
    paced = result.rows[3]
    assert paced.id.endswith("-r200")
    assert [len(block.latencies_ns) for block in paced.rounds] == [10, 10]
    assert next(iter(paced.stages_ms)) == "wait"
    assert 0 <= paced.waiting_share <= 1


def test_missing_provider_is_rejected_before_measuring(
    make_bundle: MakeBundle, brief: BenchProtocol
) -> None:
    absent = next(
        name for name in ("coreml", "qnn", "openvino") if name not in available_providers()
    )
    with pytest.raises(ProviderError, match=r"Available: .*cpu"):
        bench(
            BenchConfig(make_bundle(), providers=("cpu", absent)),
            lambda *step: pytest.fail("measured"),
            brief,
        )


def test_sustained_run_follows_rounds(make_bundle: MakeBundle, brief: BenchProtocol) -> None:
    protocol = replace(brief, sustained_window_seconds=0.05)
    config = BenchConfig(make_bundle(), scopes=("model",), rounds=2, sustained_s=10.0)
    result = bench(replace_seconds(config, 0.6), protocol=protocol)
    sustained = result.sustained
    assert sustained is not None
    assert sustained.row == result.rows[0].id
    assert 8 <= len(sustained.windows) <= 13
    starts = [window.start_s for window in sustained.windows]
    assert starts == sorted(starts)
    assert all(window.memory_bytes and window.latencies_ns for window in sustained.windows)
    content = result.to_json()["sustained"]
    assert content["steady_p50_ms"] > 0
    assert content["drift"]["low"] <= content["drift"]["ratio"] <= content["drift"]["high"]
    assert read_result(result.path or Path()).sustained == sustained


def replace_seconds(config: BenchConfig, seconds: float) -> BenchConfig:
    """Set a duration below the ten seconds that the configuration requires."""
    object.__setattr__(config, "sustained_s", seconds)
    return config


def test_interrupted_sustained_run_keeps_windows(
    make_bundle: MakeBundle, brief: BenchProtocol, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real_run_sustained_job = runner.run_sustained_job

    def run_interrupted(job: object, *arguments: object) -> None:
        from edgetl.device.bench import sustained

        real_run_job = sustained.run_job

        def run_job_and_interrupt(*arguments: object) -> None:
            real_run_job(*arguments)  # type: ignore[arg-type]
            raise KeyboardInterrupt

        monkeypatch.setattr(sustained, "run_job", run_job_and_interrupt)
        real_run_sustained_job(job, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(runner, "run_sustained_job", run_interrupted)
    config = replace_seconds(
        BenchConfig(make_bundle(), scopes=("model",), rounds=2, output=tmp_path / "partial.json"),
        0.3,
    )
    with pytest.raises(KeyboardInterrupt, match="rows were timed"):
        bench(config, protocol=replace(brief, sustained_window_seconds=0.05))
    result = read_result(tmp_path / "partial.json")
    assert result.interrupted
    assert result.sustained is not None
    assert result.sustained.windows
    assert len(result.rows[0].rounds) == 2


def test_profile_reports_time_by_operator_and_node(
    make_bundle: MakeBundle, brief: BenchProtocol
) -> None:
    result = bench(
        BenchConfig(make_bundle(), scopes=("model", "file"), rounds=2, profile=True),
        protocol=replace(brief, profiled_runs=5),
    )
    (profile,) = result.profiles.values()
    assert list(result.profiles) == [result.rows[0].id]
    assert {entry.operator for entry in profile.operators} >= {"ReduceMean", "Softmax"}
    assert {entry.provider for entry in profile.operators} == {"CPUExecutionProvider"}
    for entries in (profile.operators, profile.nodes):
        assert sum(entry.share for entry in entries) == pytest.approx(1)
        times = [entry.us for entry in entries]
        assert times == sorted(times, reverse=True)


def test_crashed_configuration_does_not_stop_others(
    make_bundle: MakeBundle, brief: BenchProtocol, monkeypatch: pytest.MonkeyPatch
) -> None:
    class CrashingWorker(rounds.Worker):
        def request(self, step: str) -> None:
            if self._job.source.batch == 4 and step.startswith("slice") and next(counter) == 3:
                self._process.kill()
            super().request(step)

    counter = iter(range(100))
    monkeypatch.setattr(rounds, "Worker", CrashingWorker)
    result = bench(
        BenchConfig(make_bundle(), batches=(1, 4), scopes=("model",), rounds=3), protocol=brief
    )
    assert [len(row.rounds) for row in result.rows] == [3, 1]
    assert any("batch 4" in note and "SIGKILL" in note for note in result.notes)


@pytest.mark.slow
def test_little_memory_reduces_live_processes(
    make_bundle: MakeBundle, brief: BenchProtocol, monkeypatch: pytest.MonkeyPatch
) -> None:
    group_names: list[list[str]] = []
    real_group_cases = rounds.group_cases

    def record_groups(gated_cases: Sequence[GatedCase]) -> list[list[GatedCase]]:
        groups = real_group_cases(gated_cases)
        group_names.append(
            [" + ".join(gated_case.case.variant for gated_case in group) for group in groups]
        )
        return groups

    monkeypatch.setattr(rounds, "group_cases", record_groups)
    bundle = make_bundle(variants=("a", "b", "c"))
    bench(BenchConfig(bundle, scopes=("model",), rounds=2), protocol=brief)
    monkeypatch.setattr(rounds, "free_memory_bytes", lambda: 150 * 2**20)
    result = bench(BenchConfig(bundle, scopes=("model",), rounds=2), protocol=brief)
    assert group_names == [["a + b + c"], ["a", "b", "c"]]
    assert [len(row.rounds) for row in result.rows] == [2, 2, 2]


def test_interrupted_sweep_keeps_complete_rows(
    make_bundle: MakeBundle, brief: BenchProtocol, tmp_path: Path
) -> None:
    def progress(step: str, completed: int, total: int) -> None:
        if step.startswith("round 1") and completed == 1:
            raise KeyboardInterrupt

    config = BenchConfig(
        make_bundle(), batches=(1, 2), scopes=("model",), rounds=5, output=tmp_path / "partial.json"
    )
    with pytest.raises(KeyboardInterrupt, match="1 of 2 rows were timed"):
        bench(config, progress, brief)
    result = read_result(tmp_path / "partial.json")
    assert sorted(len(row.rounds) for row in result.rows) == [0, 1]
    assert result.comparisons == []


def test_full_disk_writes_result_elsewhere(
    make_bundle: MakeBundle, brief: BenchProtocol, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "spare").mkdir()
    full = tmp_path / "full"
    full.mkdir()
    monkeypatch.setattr(
        "edgetl.core.artifacts.storage.tempfile.gettempdir", lambda: str(tmp_path / "spare")
    )

    def no_space(result: JsonSerializable, path: Path) -> None:
        if full in path.parents:
            raise BenchError(
                f"Cannot write the result to {path} (No space left on device). "
                "Choose another --output."
            )
        write_result(result, path)

    monkeypatch.setattr(runner, "write_result", no_space)
    result = bench(
        BenchConfig(make_bundle(), scopes=("model",), rounds=2, output=full / "result.json"),
        protocol=brief,
    )
    assert result.path is not None
    assert result.path.parent == tmp_path / "spare"
    assert "The result was saved to" in result.notes[-1]
    assert read_result(result.path).rows[0].rounds


def test_write_error_is_reported_and_leaves_no_file(tmp_path: Path) -> None:
    """/dev/full gives the real error of a write to a full disk."""
    from tests.core.artifacts.test_bench import result

    (tmp_path / "full.json").symlink_to("/dev/full")

    class LargeResult:
        def to_json(self) -> dict[str, object]:
            return {**result().to_json(), "padding": "x" * 100_000}

    with pytest.raises(BenchError, match=r"never overwritten|Cannot write"):
        write_result(LargeResult(), tmp_path / "full.json")


def test_limits_are_checked_in_result(make_bundle: MakeBundle, brief: BenchProtocol) -> None:
    config = BenchConfig(
        make_bundle(),
        scopes=("model",),
        rounds=2,
        limits=Limits(max_p99_ms=0.000001, min_speedup=2.0),
    )
    checks = bench(config, protocol=brief).limit_checks
    outcomes = {check.limit: check.outcome for check in checks}
    assert outcomes.keys() == {"max-p99", "min-speedup"}
    assert outcomes["min-speedup"] == "undecided", "there is no PyTorch baseline"
    assert outcomes["max-p99"] != "held"


def write_model(tmp_path: Path, graph: str, name: str = "model") -> Path:
    onnx.save(
        onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 18]> {graph}'),
        tmp_path / f"{name}.onnx",
    )
    return tmp_path / f"{name}.onnx"


def test_model_with_several_inputs_is_measured(brief: BenchProtocol, tmp_path: Path) -> None:
    model = write_model(
        tmp_path,
        "g (float[n, 3] x, int64[n, 3] z) => (float[n, 3] y) { c = Cast <to: int = 1> (z) y = Add (x, c) }",
    )
    (row,) = bench(
        BenchConfig(model, scopes=("model",), rounds=2, batches=(2,)), protocol=brief
    ).rows
    assert (row.input, row.batch, row.session.feed) == (
        "x float32 2x3, z int64 2x3",
        2,
        "random",
    )


def test_input_file_is_used_and_recorded(brief: BenchProtocol, tmp_path: Path) -> None:
    model = write_model(tmp_path, "g (float[n, m] x) => (float[n, m] y) { y = Neg (x) }")
    np.save(tmp_path / "inputs.npy", np.ones((3, 5), np.float32))
    (row,) = bench(
        BenchConfig(model, scopes=("model",), rounds=2, inputs=tmp_path / "inputs.npy"),
        protocol=brief,
    ).rows
    assert (row.input, row.batch, row.session.feed) == ("x float32 3x5", 3, "given")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no array", "is not a .npy or .npz file"),
        (np.ones((2, 5), np.float64), "rejects the input"),
        ({"other": np.ones((2, 5), np.float32)}, "has no array for x"),
    ],
)
def test_unsuitable_input_file_is_rejected(
    brief: BenchProtocol, tmp_path: Path, content: object, message: str
) -> None:
    model = write_model(tmp_path, "g (float[n, m] x) => (float[n, m] y) { y = Neg (x) }")
    path = tmp_path / "inputs.npz"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, dict):
        np.savez(path, **content)
    else:
        path = tmp_path / "inputs.npy"
        np.save(path, content)
    with pytest.raises(BenchError, match=message):
        bench(BenchConfig(model, scopes=("model",), rounds=2, inputs=path), protocol=brief)


def test_batch_of_fixed_size_model_is_rejected(brief: BenchProtocol, tmp_path: Path) -> None:
    model = write_model(tmp_path, "g (float[1, 4] x) => (float[1, 4] y) { y = Neg (x) }")
    with pytest.raises(BenchError, match="takes batches of 1 only, got --batch 4"):
        bench(BenchConfig(model, scopes=("model",), rounds=2, batches=(4,)), protocol=brief)


def test_unknown_operator_or_truncated_file_is_rejected(
    brief: BenchProtocol, tmp_path: Path
) -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18, "unknown.domain" : 1]> '
        "g (float[1] x) => (float[1] y) { y = unknown.domain.Twist (x) }"
    )
    onnx.save(model, tmp_path / "odd.onnx")
    with pytest.raises(BundleError, match="Twist"):
        bench(BenchConfig(tmp_path / "odd.onnx", scopes=("model",)), protocol=brief)
    model_path = write_model(tmp_path, "g (float[1] x) => (float[1] y) { y = Neg (x) }")
    content = model_path.read_bytes()
    (tmp_path / "truncated.onnx").write_bytes(content[: len(content) // 2])
    with pytest.raises(BundleError, match="cannot load"):
        bench(BenchConfig(tmp_path / "truncated.onnx", scopes=("model",)), protocol=brief)


def test_external_data_outside_model_folder_is_rejected(
    brief: BenchProtocol, tmp_path: Path
) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(16))
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18]> g (float[4] x) => (float[4] y) { y = Add (x, w) }'
    )
    weight = onnx.TensorProto(
        name="w",
        data_type=onnx.TensorProto.FLOAT,
        dims=[4],
        data_location=onnx.TensorProto.EXTERNAL,
    )
    weight.external_data.add(key="location", value="../secret.bin")
    model.graph.initializer.append(weight)
    (folder / "outside.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(BundleError, match="cannot load"):
        bench(BenchConfig(folder / "outside.onnx", scopes=("model",)), protocol=brief)


def test_bundle_of_other_schema_is_rejected(make_bundle: MakeBundle, brief: BenchProtocol) -> None:
    bundle = make_bundle()
    manifest = json.loads((bundle / "bundle.json").read_text())
    (bundle / "bundle.json").write_text(json.dumps({**manifest, "schema": 99}))
    with pytest.raises(BundleError, match="schema 99"):
        bench(BenchConfig(bundle), protocol=brief)


@pytest.mark.parametrize(("limit", "status"), [("0.00001ms", 4), ("10s", 0)])
def test_exit_status_reports_exceeded_limit(
    make_bundle: MakeBundle,
    brief: BenchProtocol,
    monkeypatch: pytest.MonkeyPatch,
    limit: str,
    status: int,
) -> None:
    # A p99 needs 662 runs in all.
    monkeypatch.setattr(runner, "BenchProtocol", lambda: replace(brief, block_runs=400))
    arguments = ["--scope", "model", "--rounds", "2", "--max-p99", limit]
    completed = CliRunner().invoke(create_app("bench"), ["bench", str(make_bundle()), *arguments])
    # On a noisy machine an exceeded limit may also be undecided.
    expected = {status} if status == 0 else {status, 5}
    assert completed.exit_code in expected, completed.output
    assert "--max-p99" in completed.stdout

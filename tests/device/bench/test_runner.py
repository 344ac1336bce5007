from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgetl.core.artifacts.bench_json import read_result, write_result
from edgetl.core.artifacts.bundle import (
    AccuracyRecord,
    read_bundle_manifest,
    write_bundle_manifest,
)
from edgetl.core.artifacts.saved_recommendation import read_saved_recommendation
from edgetl.core.artifacts.storage import store_result
from edgetl.core.config.bench import BenchConfig
from edgetl.core.errors import BenchError, BundleError, ConfigError, ProviderError
from edgetl.core.files import sha256_file
from edgetl.core.paths import BundleDirectory
from edgetl.core.progress import ProgressCallback
from edgetl.device.bench import rounds, worker_process
from edgetl.device.bench.protocol import BenchProtocol
from edgetl.device.bench.runner import bench
from edgetl.device.bench.worker_process import Worker
from edgetl.device.hardware.cpu import available_cores
from edgetl.device.runtime.bundle import open_bundle
from edgetl.device.runtime.session import available_providers
from edgetl.device.runtime.session_choice import SessionOptions, choose_session
from tests.helpers.bundles import colour_model
from tests.helpers.confidence import add_confidence

MakeBundle = Callable[..., Path]
ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def run_in_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results of bundles without a run go to bench/ in the current folder."""
    monkeypatch.chdir(tmp_path)


def test_bundle_without_run_is_measured_without_pytorch(
    make_bundle: MakeBundle, brief: BenchProtocol
) -> None:
    bundle = make_bundle()
    steps = []
    result = bench(
        BenchConfig(bundle, rounds=2, threads=(1,)), lambda *step: steps.append(step), brief
    )

    assert [row.id for row in result.rows] == [
        "onnxruntime-fp32-model-cpu-b1-t1",
        "onnxruntime-fp32-file-cpu-b1-t1",
    ]
    assert result.comparisons == []
    assert "not in its run directory" in result.notes[0]
    model, file = result.rows
    assert (model.input, model.batch, model.threads, model.provider) == (
        "uint8 1x40x40x3",
        1,
        1,
        "cpu",
    )
    assert file.input.startswith("4 encoded images, ")
    assert model.gate.passed
    assert (model.gate.images, model.gate.top1_agreement) == (4, 4)
    assert model.gate.max_logit_difference < 1e-3
    assert [row.accuracy for row in result.rows] == [None, None]
    assert [len(row.rounds) for row in result.rows] == [2, 2]
    assert all(
        len(block.latencies_ns) >= brief.block_runs and min(block.latencies_ns) > 0
        for row in result.rows
        for block in row.rounds
    )
    assert set(file.stages_ms) == {
        "read",
        "decode",
        "preprocess",
        "inference",
        "postprocess",
    }
    assert sum(file.stages_ms.values()) == pytest.approx(file.percentile_ms(50), rel=0.5)
    assert model.session.node_share == {"CPUExecutionProvider": 1.0}
    assert (model.session.intra_op_threads, model.session.inter_op_threads) == (1, 1)
    assert model.file_sha256 == sha256_file(bundle / "fp32.onnx")
    cold = model.cold
    assert cold is not None
    assert cold.processes == 2
    assert min(cold.import_ms, cold.session_ms, cold.first_inference_ms) > 0
    assert cold.peak_memory_bytes
    assert result.device.before is not None
    assert result.device.after is not None
    assert result.device.before.monotonic_s < result.device.after.monotonic_s
    assert steps[-1] == ("measured", 2, 2)


def test_rows_carry_the_accuracy_recorded_in_the_bundle(
    make_bundle: MakeBundle, brief: BenchProtocol
) -> None:
    bundle = BundleDirectory(make_bundle())
    manifest = read_bundle_manifest(bundle)
    accuracy = AccuracyRecord("validation", 220, 0.91, (0.865, 0.941), 0.9, drop=0.5, flips=2)
    variants = tuple(replace(variant, accuracy=accuracy) for variant in manifest.variants)
    write_bundle_manifest(bundle, replace(manifest, variants=variants))
    config = BenchConfig(bundle.path, rounds=2, threads=(1,), scopes=("model",))
    measured = bench(config, protocol=brief)
    assert measured.path is not None
    assert [row.accuracy for row in read_result(measured.path).rows] == [accuracy]


def test_result_file_reads_back(
    make_bundle: MakeBundle, brief: BenchProtocol, tmp_path: Path
) -> None:
    config = BenchConfig(make_bundle(), scopes=("model",), rounds=2)
    first = bench(config, protocol=brief)
    second = bench(config, protocol=brief)
    assert first.path is not None
    assert second.path is not None
    assert first.path != second.path
    assert {path.resolve() for path in (tmp_path / "bench").iterdir()} == {
        first.path.resolve(),
        second.path.resolve(),
    }
    assert read_result(first.path).to_json() == first.to_json()
    assert json.loads(json.dumps(first.to_json())) == json.loads(first.path.read_text())


def test_existing_output_is_rejected_before_measuring(
    make_bundle: MakeBundle, brief: BenchProtocol, tmp_path: Path
) -> None:
    config = BenchConfig(
        make_bundle(), scopes=("model",), rounds=2, output=tmp_path / "here/result.json"
    )
    assert bench(config, protocol=brief).path == tmp_path / "here/result.json"
    with pytest.raises(BenchError, match="never overwritten"):
        bench(config, lambda *step: pytest.fail("measured"), brief)


def test_unwritable_output_is_rejected_before_measuring(
    make_bundle: MakeBundle, brief: BenchProtocol, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BenchError, match="another output"):
        bench(
            BenchConfig(make_bundle(), output=tmp_path / "file/result.json"),
            lambda *step: pytest.fail("measured"),
            brief,
        )


def test_variants_are_compared_with_first(make_bundle: MakeBundle, brief: BenchProtocol) -> None:
    bundle = make_bundle(variants=("fp32", "other"))
    result = bench(BenchConfig(bundle, scopes=("model",), rounds=2, threads=(1,)), protocol=brief)
    first = "onnxruntime-fp32-model-cpu-b1-t1"
    other = "onnxruntime-other-model-cpu-b1-t1"
    assert [(pair.baseline, pair.candidate) for pair in result.comparisons] == [(first, other)]
    comparison = result.comparisons[0]
    assert comparison.speedup.low <= comparison.speedup.ratio <= comparison.speedup.high
    assert sorted(result.order[0]) == ["onnxruntime fp32 1 thread", "onnxruntime other 1 thread"]
    alone = bench(
        BenchConfig(bundle, scopes=("model",), rounds=2, variants=("other",)), protocol=brief
    )
    assert [row.variant for row in alone.rows] == ["other"]
    with pytest.raises(BundleError, match="no variant 'int8'"):
        bench(BenchConfig(bundle, variants=("int8",)), protocol=brief)


def test_bench_does_not_time_rows_with_failed_gate(
    make_bundle: MakeBundle, brief: BenchProtocol
) -> None:
    result = bench(BenchConfig(make_bundle(error=0.2), rounds=2), protocol=brief)
    assert [row.scope for row in result.failed_rows] == ["model", "file"]
    assert not any(row.rounds for row in result.rows)
    assert "differ by 0.2" in result.rows[0].gate.reason
    assert read_result(result.path or Path()).failed_rows


def test_bench_does_not_time_wrong_unknown_scores(
    make_bundle: MakeBundle, brief: BenchProtocol
) -> None:
    bundle = add_confidence(make_bundle(variants=("fp32", "other")), threshold=0.0, temperature=1.5)
    path = bundle / "golden/golden.npz"
    arrays = dict(np.load(path))
    np.savez(path, **{**arrays, "unknown_score_other": arrays["unknown_score_other"] + 10})
    manifest = json.loads((bundle / "bundle.json").read_text())
    manifest["golden"]["logits"]["sha256"] = sha256_file(path)
    (bundle / "bundle.json").write_text(json.dumps(manifest))
    config = BenchConfig(bundle, scopes=("model",), rounds=2)
    fp32, other = bench(config, protocol=brief).rows
    assert fp32.gate.passed
    assert fp32.gate.max_unknown_score_difference == pytest.approx(0, abs=1e-4)
    assert not other.gate.passed
    assert "the unknown score of golden image" in str(other.gate.reason)
    assert (len(fp32.rounds), len(other.rounds)) == (2, 0)


def test_an_altered_file_is_refused(make_bundle: MakeBundle, brief: BenchProtocol) -> None:
    bundle = make_bundle()
    with (bundle / "fp32.onnx").open("ab") as stream:
        stream.write(b"\0")
    with pytest.raises(BundleError, match="SHA-256"):
        bench(BenchConfig(bundle), protocol=brief)


def test_missing_provider_measures_nothing(
    make_bundle: MakeBundle, brief: BenchProtocol, tmp_path: Path
) -> None:
    with pytest.raises(ProviderError):
        bench(BenchConfig(make_bundle(), providers=("coreml",)), protocol=brief)
    with pytest.raises(ProviderError, match="Known: cpu"):
        bench(BenchConfig(make_bundle("again"), providers=("gpu",)), protocol=brief)
    assert not (tmp_path / "bench").exists()


@pytest.mark.skipif(
    "cuda" not in available_providers() or Path("/dev/nvidia0").exists(),
    reason="needs the GPU wheel without a GPU",
)
def test_provider_fallback_measures_nothing(make_bundle: MakeBundle, brief: BenchProtocol) -> None:
    with pytest.raises(ProviderError, match="CUDAExecutionProvider did not start"):
        bench(BenchConfig(make_bundle(), providers=("cuda",)), protocol=brief)


def test_more_threads_than_cores_need_force(make_bundle: MakeBundle, brief: BenchProtocol) -> None:
    bundle = make_bundle()
    too_many = available_cores() + 1
    with pytest.raises(BenchError, match=f"got {too_many}.*force=True"):
        bench(
            BenchConfig(bundle, scopes=("model",), rounds=2, threads=(1, too_many)), protocol=brief
        )
    forced = bench(
        BenchConfig(bundle, scopes=("model",), rounds=2, threads=(too_many,), force=True),
        protocol=brief,
    )
    assert forced.rows[0].threads == too_many


def test_lone_file_has_no_golden_images(brief: BenchProtocol, tmp_path: Path) -> None:
    onnx.save(colour_model(), tmp_path / "lone.onnx")
    result = bench(BenchConfig(tmp_path / "lone.onnx", rounds=2), protocol=brief)
    (row,) = result.rows
    assert (row.variant, row.input, row.session.feed) == ("lone", "uint8 1x256x256x3", "random")
    assert row.gate.checked is False
    assert row.gate.passed is None
    assert not row.has_failed_gate
    assert any("Scope file is not measured" in note for note in result.notes)
    with pytest.raises(BenchError, match="Use scopes model"):
        bench(BenchConfig(tmp_path / "lone.onnx", scopes=("file",)), protocol=brief)


@pytest.mark.parametrize(
    ("declared", "description"),
    [
        ("float[batch, 3, 48, 48]", "float32 1x3x48x48"),
        ("float16[2, 3, height, width]", "float16 2x3x224x224"),
        pytest.param("uint8[1, 32, 32, 3]", "uint8 1x32x32x3", marks=pytest.mark.slow),
        pytest.param("int8[n, 4]", "int8 1x4", marks=pytest.mark.slow),
    ],
)
def test_random_input_has_model_type_and_shape(
    brief: BenchProtocol, tmp_path: Path, declared: str, description: str
) -> None:
    dtype, _, shape = declared.partition("[")
    text = (
        '<ir_version: 8, opset_import: ["" : 18]> '
        f"g ({dtype}[{shape} x) => (float[{shape} y) {{ y = Cast <to: int = 1> (x) }}"
    )
    onnx.save(onnx.parser.parse_model(text), tmp_path / "model.onnx")
    (row,) = bench(
        BenchConfig(tmp_path / "model.onnx", scopes=("model",), rounds=2), protocol=brief
    ).rows
    assert row.input == description
    assert row.batch == int(description.split()[1].split("x")[0])


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        ("g (string[1] x) => (string[1] y) { y = Identity (x) }", "string"),
    ],
)
def test_model_with_string_input_is_rejected(
    brief: BenchProtocol, tmp_path: Path, graph: str, message: str
) -> None:
    onnx.save(
        onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 18]> {graph}'),
        tmp_path / "odd.onnx",
    )
    with pytest.raises(BenchError, match=message):
        bench(BenchConfig(tmp_path / "odd.onnx"), protocol=brief)


def test_missing_or_invalid_target_is_rejected(brief: BenchProtocol, tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"not a model")
    with pytest.raises(BundleError, match="cannot load"):
        bench(BenchConfig(tmp_path / "broken.onnx"), protocol=brief)
    with pytest.raises(BundleError, match="ONNX file not found"):
        bench(BenchConfig(tmp_path / "absent.onnx"), protocol=brief)
    with pytest.raises(BundleError, match="not found"):
        bench(BenchConfig(tmp_path / "absent"), protocol=brief)
    with pytest.raises(ConfigError, match=r"rounds must be >= 2 \(an interval needs two\), got 1"):
        BenchConfig(tmp_path, rounds=1)


def test_crashed_worker_is_reported_with_stderr(
    make_bundle: MakeBundle, brief: BenchProtocol, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake = tmp_path / "python"
    fake.write_text("#!/bin/sh\necho 'Out of tin foil' >&2\nkill -SEGV $$\n")
    fake.chmod(0o755)
    monkeypatch.setattr(worker_process.sys, "executable", str(fake))
    with pytest.raises(BenchError, match=r"SIGSEGV(.|\n)*Out of tin foil"):
        bench(BenchConfig(make_bundle()), protocol=brief)


def test_rounds_start_fresh_processes_that_take_turns(
    make_bundle: MakeBundle, brief: BenchProtocol, monkeypatch: pytest.MonkeyPatch
) -> None:
    pids = []
    requests = []
    real_popen = subprocess.Popen

    class RecordingPopen(real_popen):  # type: ignore[type-arg, misc, valid-type]
        def __init__(self, *arguments: object, **options: object) -> None:
            super().__init__(*arguments, **options)
            pids.append(self.pid)

    class RecordingWorker(Worker):
        def request(self, step: str) -> None:
            start = time.perf_counter()
            super().request(step)
            requests.append((start, time.perf_counter(), self._process.pid, step))

    monkeypatch.setattr(worker_process.subprocess, "Popen", RecordingPopen)
    monkeypatch.setattr(rounds, "Worker", RecordingWorker)
    bench(
        BenchConfig(make_bundle(variants=("a", "b")), scopes=("model",), rounds=2), protocol=brief
    )
    assert len(pids) == len(set(pids)) == 2 + 2 * 2
    assert all(end <= start for (_, end, _, _), (start, _, _, _) in pairwise(requests))
    slices = [pid for _, _, pid, step in requests if step == "slice model"]
    assert len(slices) == 2 * 2 * brief.slices
    first = slices[: 2 * brief.slices]
    assert all(set(first[turn : turn + 2]) == set(first) for turn in range(0, len(first), 2)), (
        "processes do not take turns"
    )


def test_interrupt_keeps_complete_rounds(
    make_bundle: MakeBundle, brief: BenchProtocol, tmp_path: Path
) -> None:
    def interrupt_in(block: int) -> ProgressCallback:
        def progress(step: str, completed: int, total: int) -> None:
            if step.startswith("round") and completed == block:
                raise KeyboardInterrupt

        return progress

    config = BenchConfig(make_bundle(), scopes=("model",), rounds=5)
    with pytest.raises(KeyboardInterrupt, match="no result was written"):
        bench(config, interrupt_in(0), brief)
    assert not (tmp_path / "bench").exists()
    with pytest.raises(KeyboardInterrupt, match="1 of 1 rows were timed, see"):
        bench(config, interrupt_in(3), brief)
    (path,) = (tmp_path / "bench").iterdir()
    result = read_result(path)
    assert result.interrupted
    assert [len(row.rounds) for row in result.rows] == [3]


def bench_until(bundle: Path, folder: Path, line: str) -> subprocess.Popen[str]:
    """Start a bench of many rounds in `folder` and wait for a line of its progress."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [
        sys.executable,
        "-m",
        "edgetl",
        "bench",
        str(bundle),
        "--rounds",
        "50",
        "--scope",
        "model",
    ]
    process = subprocess.Popen(
        command, env=environment, cwd=folder, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    for stderr_line in process.stderr:
        if stderr_line.startswith(line):
            break
    return process


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGINT,
        pytest.param(signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, marks=pytest.mark.slow),
    ],
)
def test_signal_stops_worker(
    make_bundle: MakeBundle, tmp_path: Path, number: signal.Signals
) -> None:
    process = bench_until(make_bundle(), tmp_path, "round 1")
    assert process.stderr is not None
    time.sleep(0.5)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.send_signal(number)
    stderr = process.stderr.read()
    assert process.wait(20) == 128 + number
    assert "no result was written" in stderr
    assert children
    assert not any(Path(f"/proc/{child}").exists() for child in children)


def test_sigterm_keeps_complete_rounds(make_bundle: MakeBundle, tmp_path: Path) -> None:
    process = bench_until(make_bundle(), tmp_path, "round 2")
    assert process.stderr is not None
    process.send_signal(signal.SIGTERM)
    stderr = process.stderr.read()
    assert process.wait(20) == 143, stderr
    (path,) = (tmp_path / "bench").iterdir()
    assert str(path.relative_to(tmp_path)) in stderr
    assert read_result(path).interrupted


def test_sighup_is_ignored_when_caller_ignores_it(tmp_path: Path) -> None:
    program = """
import os, signal
signal.signal(signal.SIGHUP, signal.SIG_IGN)
from edgetl.cli.interruption import install_signal_handlers
install_signal_handlers()
os.kill(os.getpid(), signal.SIGHUP)
print("still here")
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    completed = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (completed.returncode, completed.stdout) == (0, "still here\n")


def test_baseline_comparison_is_labeled(
    make_bundle: MakeBundle, brief: BenchProtocol, tmp_path: Path
) -> None:
    bundle = make_bundle()
    first = bench(BenchConfig(bundle, rounds=2), protocol=brief)
    assert first.path is not None
    second = bench(
        BenchConfig(bundle, scopes=("model",), rounds=2, baseline=first.path), protocol=brief
    )
    (comparison,) = second.to_json()["comparisons"]
    assert (comparison["kind"], comparison["baseline"], comparison["candidate"]) == (
        "earlier result",
        *[first.rows[0].id] * 2,
    )
    assert (comparison["path"], comparison["created"]) == (str(first.path), first.created)
    assert (comparison["cross_device"], comparison["same_model"]) == (False, True)
    assert comparison["ci95"][0] <= comparison["speedup"] <= comparison["ci95"][1]
    assert read_result(second.path or Path()).to_json() == second.to_json()

    elsewhere = tmp_path / "elsewhere.json"
    content = {
        **first.to_json(),
        "device": {**first.to_json()["device"], "cpu": "Another"},
        "model": {"name": "x", "run_id": "ffff"},
    }
    for row in content["rows"]:
        row["file_sha256"] = "00"
    elsewhere.write_text(json.dumps(content))
    with pytest.raises(BenchError, match="the baseline measured another model"):
        bench(BenchConfig(bundle, scopes=("model",), rounds=2, baseline=elsewhere), protocol=brief)
    third = bench(
        BenchConfig(bundle, scopes=("model",), rounds=2, baseline=elsewhere, any_model=True),
        protocol=brief,
    )
    assert third.comparisons[0].earlier_row is not None
    assert third.comparisons[0].earlier_row.cross_device
    assert not third.comparisons[0].earlier_row.same_model


def test_baseline_with_other_inputs_is_rejected(
    make_bundle: MakeBundle, brief: BenchProtocol, tmp_path: Path
) -> None:
    bundle = make_bundle()
    first = bench(BenchConfig(bundle, scopes=("file",), rounds=2), protocol=brief)
    with pytest.raises(BenchError, match="measured scope file, but scopes is model"):
        bench(BenchConfig(bundle, scopes=("model",), rounds=2, baseline=first.path), protocol=brief)
    onnx.save(colour_model(), tmp_path / "lone.onnx")
    lone = bench(BenchConfig(tmp_path / "lone.onnx", rounds=2), protocol=brief)
    with pytest.raises(BenchError, match="1x256x256x3"):
        bench(BenchConfig(bundle, scopes=("model",), rounds=2, baseline=lone.path), protocol=brief)
    with pytest.raises(BenchError, match="cannot be read"):
        bench(BenchConfig(bundle, baseline=tmp_path / "absent.json"), protocol=brief)


def test_results_of_same_second_get_distinct_names(
    make_bundle: MakeBundle, brief: BenchProtocol, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = bench(BenchConfig(make_bundle(), scopes=("model",), rounds=2), protocol=brief)
    path, notes = store_result(
        partial(write_result, result), None, Path("bench"), datetime.fromisoformat(result.created)
    )
    assert result.path is not None
    assert (path, notes) == (result.path.with_stem(result.path.stem + "-2"), ())


def test_bench_does_not_import_torch(make_bundle: MakeBundle, tmp_path: Path) -> None:
    """The first torch on the path of every process raises an exception when it is imported."""
    trap = tmp_path / "trap"
    for name in ("torch", "torchvision", "safetensors"):
        (trap / name).mkdir(parents=True)
        (trap / name / "__init__.py").write_text(
            "raise RuntimeError('torch was imported on the device')"
        )
    program = (
        "import sys; from pathlib import Path; import numpy as np\n"
        "from edgetl import BenchConfig, bench, open_classifier\n"
        "from edgetl.device.bench.protocol import BenchProtocol\n"
        "brief = BenchProtocol(0.01, 20, window_seconds=0.001, window_runs=5, max_windows=3)\n"
        "result = bench(BenchConfig(Path(sys.argv[1]), rounds=2), protocol=brief)\n"
        "assert len(result.rows) == 2 and all(row.rounds for row in result.rows)\n"
        "probabilities = open_classifier(Path(sys.argv[1])).classify(np.zeros((50, 60, 3), np.uint8))\n"
        "assert probabilities.shape == (2,)\n"
        "assert 'torch' not in sys.modules\n"
        "try:\n    import torch\nexcept RuntimeError:\n    print('the trap works')\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(trap), str(ROOT)])}
    completed = subprocess.run(
        [sys.executable, "-c", program, str(make_bundle())],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert completed.returncode == 0, completed.stderr
    assert "the trap works" in completed.stdout


def test_golden_images_are_resized_to_squares(make_bundle: MakeBundle, tmp_path: Path) -> None:
    from edgetl.device.bench.inputs import prepare_bench_inputs
    from edgetl.device.runtime.bundle import open_bundle

    inputs = prepare_bench_inputs(
        open_bundle(make_bundle()), {("image", None), ("tensor", None)}, tmp_path
    )
    image, tensor = (np.load(inputs.tensor_files[kind, None]) for kind in ("image", "tensor"))
    assert (image.shape, image.dtype) == ((4, 1, 40, 40, 3), np.uint8)
    assert (tensor.shape, tensor.dtype) == ((4, 1, 3, 32, 32), np.float32)
    assert image.std() > 1, "images are blank"


def test_recommendation_is_saved_in_bundle_and_used(
    make_bundle: MakeBundle, brief: BenchProtocol, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGETL_CACHE", str(tmp_path / "cache"))
    bundle = make_bundle()
    config = BenchConfig(
        bundle,
        scopes=("model",),
        rounds=2,
        threads=(1,),
        session_modes=("optimized-model",),
        save_recommendation=True,
    )
    result = bench(config, None, brief)
    assert result.rows[0].session.session_options == {
        "session.load_model_format": "ORT",
        "session.use_memory_mapped_ort_model": "1",
        "session.use_ort_model_bytes_for_initializers": "1",
    }
    recommendation = read_saved_recommendation(BundleDirectory(bundle))
    assert recommendation is not None
    assert recommendation.p50_ms == result.rows[0].p50_ms
    assert any("Saved for predict on this CPU" in note for note in result.notes)
    choice = choose_session(open_bundle(bundle), SessionOptions())
    assert (choice.session_mode, choice.threads) == ("optimized-model", 1)


def test_recommendation_needs_bundle_for_single_images(make_bundle: MakeBundle) -> None:
    bundle = make_bundle()
    with pytest.raises(ConfigError, match="save_recommendation=True is for single images"):
        BenchConfig(bundle, batches=(4,), save_recommendation=True)
    config = BenchConfig(bundle / "fp32.onnx", scopes=("model",), save_recommendation=True)
    with pytest.raises(BenchError, match="save_recommendation=True needs a bundle"):
        bench(config)

"""PyTorch backend, and benchmarks of a run with it.

All tests share one small run, because an export takes seconds.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch._inductor.exc import InvalidCxxCompiler

from edgetl.core.artifacts.bench_json import read_result
from edgetl.core.artifacts.model_metadata import ModelMetadata
from edgetl.core.config.bench import BenchConfig
from edgetl.core.config.finetune import FinetuneConfig
from edgetl.core.config.torch_modes import BF16_TOLERANCE, FP16_TOLERANCE
from edgetl.core.errors import BenchError, BundleError, ProviderError
from edgetl.core.files import sha256_file
from edgetl.core.paths import RunDirectory
from edgetl.core.preprocessing import Preprocessing
from edgetl.device.bench import target as bench_target
from edgetl.device.bench.backend import ModelSource
from edgetl.device.bench.protocol import BenchProtocol
from edgetl.device.bench.runner import bench
from edgetl.device.runtime.images import load_image
from edgetl.device.runtime.preprocessing import normalize, preprocess
from edgetl.export.graph.assemble import assemble
from edgetl.export.graph.torch_export import export_network_graph
from edgetl.train.common.cuda_graph import CapturedGraph, CudaGraphRunner, InferenceFunction
from edgetl.train.model.factory import build_adapted_model
from edgetl.train.pytorch_backend import CHANNELS_LAST, CONTIGUOUS, PyTorchBackend
from tests.helpers.bundles import write_bundle, write_pictures
from tests.helpers.trained_runs import load_model

PREPROCESSING = Preprocessing(resize=73, crop=64)
BRIEF = BenchProtocol(
    block_seconds=0.01, block_runs=10, window_seconds=0.005, window_runs=3, max_windows=3
)
LABELS = ["bolt", "nut", "screw"]


def write_run(folder: Path, seed: int = 0) -> RunDirectory:
    """Write a run with random weights and the files that bench reads."""
    folder.mkdir(parents=True)
    torch.manual_seed(seed)
    model = build_adapted_model(
        "squeezenet1_1", PREPROCESSING.crop, len(LABELS), 16, 0.2, None
    ).model
    save_file(model.state_dict(), folder / "weights.safetensors")
    config = FinetuneConfig(folder / "data", model="squeezenet1_1", head_width=16, dropout=0.2)
    content = {
        "schema": 1,
        "config": config.to_json(),
        "classes": LABELS,
        "preprocessing": PREPROCESSING.to_json(),
        "versions": {},
        "data": {"fingerprint": "", "counts": {}},
        "weights": {"source": "none", "sha256": None},
    }
    (folder / "config.json").write_text(json.dumps(content))
    return RunDirectory(folder)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    run = write_run(tmp_path_factory.mktemp("runs") / "parts")
    model = load_model(run)
    images = write_pictures(run.bundle / "golden")
    with torch.inference_mode():
        logits = [
            model.model(torch.from_numpy(preprocess(load_image(path), PREPROCESSING)))[0].numpy()
            for path in images
        ]
    graph = assemble(
        export_network_graph(model.model, PREPROCESSING.crop, len(LABELS), 18).model,
        PREPROCESSING,
        "image",
        ModelMetadata(tuple(LABELS), PREPROCESSING, "image", model.run_id),
    )
    write_bundle(
        run.bundle,
        {"fp32": graph},
        np.stack(logits),
        labels=LABELS,
        contract=PREPROCESSING,
        run_id=model.run_id,
    )
    return run


@pytest.fixture
def run(exported: RunDirectory, tmp_path: Path) -> RunDirectory:
    """Copy of the run for one test."""
    shutil.copytree(exported.path, tmp_path / "run")
    return RunDirectory(tmp_path / "run")


@pytest.fixture
def restored_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Restore the number of threads, which the backend sets for a worker process."""
    threads = torch.get_num_threads()
    monkeypatch.setattr(torch, "set_num_interop_threads", lambda number: None)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("restored_threads")
@pytest.mark.parametrize("memory_format", [CONTIGUOUS, CHANNELS_LAST])
def test_baseline_logits_match_the_model(exported: RunDirectory, memory_format: str) -> None:
    backend = PyTorchBackend(
        ModelSource(exported.path, 1, settings={"memory_format": memory_format})
    )
    model = load_model(exported).model
    generator = np.random.default_rng(0)
    square = generator.integers(
        0, 256, (2, PREPROCESSING.resize, PREPROCESSING.resize, 3), np.uint8
    )
    top, left = PREPROCESSING.compute_crop_offset(PREPROCESSING.resize, PREPROCESSING.resize)
    cropped = square[:, top : top + PREPROCESSING.crop, left : left + PREPROCESSING.crop]
    tensor = normalize(cropped, PREPROCESSING)
    with torch.inference_mode():
        expected = model(torch.from_numpy(tensor)).numpy()
    assert np.abs(backend.infer(square) - expected).max() < 1e-4
    assert np.abs(backend.infer(tensor) - expected).max() < 1e-4

    photo = load_image(exported.bundle / "golden/0.png")
    with torch.inference_mode():
        expected = model(torch.from_numpy(preprocess(photo, PREPROCESSING))).numpy()
    assert np.abs(backend.infer(backend.preprocess_image(photo)) - expected).max() < 1e-4


@pytest.mark.usefixtures("restored_threads")
def test_autotune_chooses_a_memory_format(exported: RunDirectory) -> None:
    backend = PyTorchBackend(ModelSource(exported.path, 1))
    batch = backend.make_inputs(1)[0]
    first = backend.infer(batch)
    settings = backend.autotune(batch)
    assert settings["memory_format"] in (CONTIGUOUS, CHANNELS_LAST)
    assert np.abs(backend.infer(batch) - first).max() < 1e-4
    description = backend.describe(batch)
    assert (description.intra_op_threads, description.device) == (1, "cpu")


@pytest.mark.usefixtures("restored_threads")
@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_backend_rejects_missing_gpu(exported: RunDirectory) -> None:
    with pytest.raises(ProviderError, match="no CUDA device"):
        PyTorchBackend(ModelSource(exported.path, 1, provider="cuda"))


def test_bench_compares_a_run_with_pytorch(run: RunDirectory) -> None:
    result = bench(BenchConfig(run.path, rounds=2, threads=(1,)), protocol=BRIEF)
    runtimes, scopes = ("pytorch", "onnxruntime"), ("model", "file")
    assert [row.id for row in result.rows] == [
        f"{runtime}-fp32-{scope}-cpu-b1-t1" for runtime in runtimes for scope in scopes
    ]
    assert result.failed_rows == []
    assert result.notes == ()
    assert {row.threads for row in result.rows} == {1}
    pairs = {
        (comparison.baseline, comparison.candidate): comparison for comparison in result.comparisons
    }
    assert set(pairs) == {
        (f"pytorch-fp32-{scope}-cpu-b1-t1", f"onnxruntime-fp32-{scope}-cpu-b1-t1")
        for scope in scopes
    }
    for comparison in pairs.values():
        baseline = result.get_row(comparison.baseline)
        candidate = result.get_row(comparison.candidate)
        assert baseline.input == candidate.input
        assert comparison.speedup.low <= comparison.speedup.ratio <= comparison.speedup.high
        assert comparison.verdict in ("faster", "slower", "inconclusive", "noisy")
    model = result.get_row("pytorch-fp32-model-cpu-b1-t1")
    assert (model.session.intra_op_threads, model.session.inter_op_threads) == (1, 1)
    assert model.session.memory_format in (CONTIGUOUS, CHANNELS_LAST)
    assert model.gate.max_logit_difference < 1e-3
    assert result.get_row("onnxruntime-fp32-model-cpu-b1-t1").gate.model_scope_difference < 0.05
    assert model.file_sha256 == sha256_file(run.weights)
    onnx_cold = result.get_row("onnxruntime-fp32-model-cpu-b1-t1").cold
    assert model.cold is not None
    assert onnx_cold is not None
    assert model.cold.import_ms > onnx_cold.import_ms
    assert all(
        sorted(names) == ["onnxruntime fp32 1 thread", "pytorch fp32 1 thread"]
        for names in result.order
    )
    assert result.path is not None
    assert result.path.parent == run.bench
    assert read_result(result.path).to_json() == result.to_json()


@pytest.mark.slow
def test_bench_compares_with_bfloat16_baseline(run: RunDirectory) -> None:
    result = bench(
        BenchConfig(
            run.path,
            scopes=("model",),
            rounds=2,
            threads=(1,),
            torch_modes=("eager", "bf16"),
            batches=(2,),
        ),
        protocol=BRIEF,
    )
    assert result.failed_rows == []
    bf16_row = result.get_row("pytorch-bf16-model-cpu-b2-t1")
    assert bf16_row.session.mode.startswith("bf16")
    assert bf16_row.gate.max_logit_difference > 0
    pairs = {(pair.baseline, pair.candidate) for pair in result.comparisons}
    assert pairs == {
        (f"{baseline}-model-cpu-b2-t1", f"{candidate}-model-cpu-b2-t1")
        for baseline, candidate in (
            ("pytorch-fp32", "pytorch-bf16"),
            ("pytorch-fp32", "onnxruntime-fp32"),
            ("pytorch-bf16", "onnxruntime-fp32"),
        )
    }


@pytest.mark.usefixtures("restored_threads")
@pytest.mark.parametrize(
    ("cause", "message"),
    [
        (
            RuntimeError("no such operator.\nand more lines"),
            r"torch.compile does not work here: no such operator. Remove `compile` from",
        ),
        (AssertionError(), r"does not work here: AssertionError\. Remove"),
        (
            InvalidCxxCompiler(),
            r"needs a C\+\+ compiler\. Install one with `sudo apt install g\+\+`, or remove",
        ),
    ],
)
def test_autotune_reports_compile_errors(
    exported: RunDirectory, monkeypatch: pytest.MonkeyPatch, cause: Exception, message: str
) -> None:
    def refuse(model: object) -> object:
        raise cause

    backend = PyTorchBackend(ModelSource(exported.path, 1, settings={"mode": "compile"}))
    monkeypatch.setattr(backend, "infer", refuse)
    with pytest.raises(BenchError, match=message):
        backend.autotune(backend.make_inputs(1)[0])


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_bench_measures_compiled_model(run: RunDirectory) -> None:
    result = bench(
        BenchConfig(
            run.path, scopes=("model",), rounds=2, threads=(1,), torch_modes=("eager", "compile")
        ),
        protocol=BRIEF,
    )
    assert result.failed_rows == []
    assert len(result.get_row("pytorch-compile-model-cpu-b1-t1").rounds) == 2


@pytest.mark.slow
def test_bench_skips_compile_without_a_compiler(
    run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", str(tmp_path / "absent"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    result = bench(
        BenchConfig(run.path, scopes=("model",), rounds=2, threads=(1,), torch_modes=("compile",)),
        protocol=BRIEF,
    )
    assert [row.runtime for row in result.rows] == ["onnxruntime"]
    assert any(
        note.startswith("pytorch compile") and "needs a C++ compiler" in note
        for note in result.notes
    )


@pytest.mark.usefixtures("restored_threads")
def test_profile_lists_pytorch_operators(exported: RunDirectory) -> None:
    backend = PyTorchBackend(ModelSource(exported.path, 1))
    profile = backend.profile(backend.make_inputs(1)[0], 3)
    assert (profile.clock, profile.runs) == ("host", 3)
    assert any("conv" in entry.operator for entry in profile.operators)
    assert sum(entry.share for entry in profile.operators) == pytest.approx(1)


@pytest.mark.slow
def test_bench_profiles_every_runtime(run: RunDirectory) -> None:
    config = BenchConfig(run.path, scopes=("model",), rounds=2, threads=(1,), profile=True)
    result = bench(config, protocol=replace(BRIEF, profiled_runs=2))
    assert {
        row_id.partition("-")[0]: profile.clock for row_id, profile in result.profiles.items()
    } == {
        "pytorch": "host",
        "onnxruntime": "host",
    }


@pytest.mark.usefixtures("restored_threads")
@pytest.mark.parametrize("mode", ["fp16", "cuda-graph", "fp16-cuda-graph"])
def test_gpu_modes_are_rejected_on_a_cpu(exported: RunDirectory, mode: Any) -> None:
    with pytest.raises(BenchError, match=f"{mode} requires a GPU. Add --provider cuda"):
        PyTorchBackend(ModelSource(exported.path, 1, settings={"mode": mode}))
    with pytest.raises(BenchError, match=f"torch_modes {mode} needs a GPU provider"):
        bench_target.find_target(BenchConfig(exported.path, torch_modes=("eager", mode)), (1,))


def test_gpu_modes_are_cases_on_the_gpu_only(exported: RunDirectory) -> None:
    config = BenchConfig(
        exported.path,
        scopes=("model",),
        providers=("cpu", "cuda"),
        torch_modes=("eager", "bf16", "fp16", "cuda-graph"),
    )
    candidates = [
        candidate
        for candidate in bench_target.find_target(config, (1,)).cases
        if candidate.runtime == "pytorch"
    ]
    assert [
        (candidate.variant, candidate.source.provider, candidate.relative_tolerance)
        for candidate in candidates
    ] == [
        ("fp32", "cpu", 0.0),
        ("fp32", "cuda", FP16_TOLERANCE),
        ("bf16", "cpu", BF16_TOLERANCE),
        ("bf16", "cuda", BF16_TOLERANCE),
        ("fp16", "cuda", FP16_TOLERANCE),
        ("cuda-graph", "cuda", FP16_TOLERANCE),
    ]


@pytest.mark.usefixtures("restored_threads")
def test_cuda_graph_runs_from_its_buffers(exported: RunDirectory) -> None:
    # The capture is replaced by one that a CPU can replay.
    backend = PyTorchBackend(ModelSource(exported.path, threads=torch.get_num_threads()))
    pixels = backend.make_inputs(2)
    expected = [backend.infer(batch) for batch in pixels]
    captures: list[torch.Size] = []

    def capture(compute: InferenceFunction, buffer: torch.Tensor) -> CapturedGraph:
        captures.append(buffer.shape)
        output = compute(buffer).clone()

        def replay() -> None:
            output.copy_(compute(buffer))

        return CapturedGraph(buffer, output, replay)

    backend._graph_runner = CudaGraphRunner(backend._forward, torch.device("cpu"), capture)
    for batch, logits in zip(pixels, expected, strict=True):
        np.testing.assert_array_equal(backend.infer(batch), logits)
    assert len(captures) == 1


def test_bench_of_bundle_in_run_equals_bench_of_run(run: RunDirectory) -> None:
    run_target, bundle_target = (
        bench_target.find_target(BenchConfig(path), (1,)) for path in (run.path, run.bundle)
    )
    assert [candidate.runtime for candidate in bundle_target.cases] == ["pytorch", "onnxruntime"]
    assert bundle_target.cases == run_target.cases
    assert bundle_target.results_folder.resolve() == run.bench.resolve()


def test_bench_without_torch_measures_onnxruntime_only(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        bench_target, "installed_version", lambda package: None if package == "torch" else "1"
    )
    result = bench(BenchConfig(run.path, scopes=("model",), rounds=2), protocol=BRIEF)
    assert [row.runtime for row in result.rows] == ["onnxruntime"]
    assert result.comparisons == []
    assert result.notes == (
        "PyTorch is not measured: torch not installed. "
        '`pip install "edgetl[train]"` adds the baseline.',
    )


def test_bench_rejects_bundle_older_than_weights(run: RunDirectory, tmp_path: Path) -> None:
    shutil.copy(write_run(tmp_path / "other", seed=1).weights, run.weights)
    with pytest.raises(BenchError, match=r"edgetl export .*--force"):
        bench(BenchConfig(run.path), protocol=BRIEF)
    target = bench_target.find_target(BenchConfig(run.bundle), (1,))
    assert [candidate.runtime for candidate in target.cases] == ["onnxruntime"]
    assert "not from the run directory around it" in target.notes[0]


def test_bench_without_bundle_names_the_export_command(tmp_path: Path) -> None:
    run = write_run(tmp_path / "fresh")
    with pytest.raises(BundleError, match=r"edgetl export .*fresh"):
        bench(BenchConfig(run.path), protocol=BRIEF)


@pytest.mark.usefixtures("restored_threads")
def test_gpu_stages_match_infer(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = PyTorchBackend(ModelSource(run.path, threads=torch.get_num_threads()))
    assert [name for name, _ in backend.stages()] == ["inference"]
    (batch,) = backend.make_inputs(1)
    expected = backend.infer(batch)
    monkeypatch.setattr(backend, "_device", torch.device("cuda"))
    stages = backend.stages()
    assert [name for name, _ in stages] == ["to device", "inference", "to host"]
    monkeypatch.setattr(backend, "_device", torch.device("cpu"))
    value: Any = batch
    for _, step in stages:
        value = step(value)
    np.testing.assert_array_equal(value, expected)

"""IO binding gives the same logits as a plain run. Host memory replaces GPU memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from edgetl.core.errors import ProviderError
from edgetl.device.bench import ort_backend
from edgetl.device.bench.backend import ModelSource
from edgetl.device.bench.ort_backend import OnnxRuntimeBackend
from edgetl.device.bench.protocol import BenchProtocol
from edgetl.device.bench.timing import BlockTimer
from edgetl.device.runtime.io_binding import DEVICE_TYPES, IoBindingRunner, OrtCudaGraphRunner
from tests.helpers.bundles import colour_model

STAGES = ["to device", "inference", "to host"]


@pytest.fixture
def session() -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(
        colour_model().SerializeToString(), providers=["CPUExecutionProvider"]
    )


def make_batch(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def test_io_binding_matches_plain_run_for_every_shape(
    session: onnxruntime.InferenceSession,
) -> None:
    runner = IoBindingRunner(session, "logits", "cpu")
    name = session.get_inputs()[0].name
    batches = [
        make_batch(0, 1, 40, 50, 3),
        make_batch(1, 1, 40, 50, 3),
        make_batch(2, 1, 64, 64, 3),
        make_batch(3, 1, 40, 50, 3),
    ]
    batches.append(make_batch(4, 1, 50, 40, 3).transpose(0, 2, 1, 3))
    outputs = [
        runner.download(runner.compute(runner.upload({name: batch}))).copy() for batch in batches
    ]
    for batch, logits in zip(batches, outputs, strict=True):
        np.testing.assert_array_equal(logits, session.run(["logits"], {name: batch})[0])
    assert len({logits.tobytes() for logits in outputs}) == len(batches)


def test_graph_runner_has_fixed_buffers_per_shape(session: onnxruntime.InferenceSession) -> None:
    runner = OrtCudaGraphRunner(session, "logits", "cpu")
    name = session.get_inputs()[0].name
    small, large = (1, 40, 50, 3), (2, 64, 64, 3)
    addresses: dict[tuple[int, ...], set[tuple[int, int]]] = {small: set(), large: set()}
    for seed, shape in enumerate([small, large, small, large, small]):
        batch = make_batch(seed, *shape)
        buffers = runner.upload({name: batch})
        outputs = runner.compute(buffers)
        np.testing.assert_array_equal(
            runner.download(outputs), session.run(["logits"], {name: batch})[0]
        )
        addresses[shape].add((buffers.inputs[name].data_ptr(), outputs[0].data_ptr()))
    assert [len(pairs) for pairs in addresses.values()] == [1, 1]
    assert not addresses[small] & addresses[large]


class RecordingSession:
    """Session that records the graph id of every run."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self.session = session
        self.graph_ids: list[int] = []

    def io_binding(self) -> onnxruntime.IOBinding:
        return self.session.io_binding()

    def run_with_iobinding(
        self, binding: onnxruntime.IOBinding, options: onnxruntime.RunOptions
    ) -> None:
        self.graph_ids.append(int(options.get_run_config_entry("gpu_graph_id")))
        self.session.run_with_iobinding(binding, options)


def test_graph_runner_captures_during_upload(session: onnxruntime.InferenceSession) -> None:
    recording = RecordingSession(session)
    name = session.get_inputs()[0].name
    runner = OrtCudaGraphRunner(recording, "logits", "cpu")
    # One run without a graph gives the output's shape. The next three capture the graph.
    buffers = runner.upload({name: make_batch(0, 1, 40, 50, 3)})
    assert recording.graph_ids == [-1, 1, 1, 1]
    runner.compute(buffers)
    runner.upload({name: make_batch(1, 1, 40, 50, 3)})
    assert recording.graph_ids == [-1, 1, 1, 1, 1]
    runner.upload({name: make_batch(2, 2, 40, 50, 3)})
    assert recording.graph_ids[5:] == [-1, 2, 2, 2], (
        "another shape must not replay the first shape's graph"
    )


def test_backend_times_upload_inference_and_download(
    make_bundle: Callable[..., Path], brief: BenchProtocol, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = ModelSource(make_bundle() / "fp32.onnx", threads=1)
    plain = OnnxRuntimeBackend(source)
    assert [name for name, _ in plain.stages()] == ["inference"]
    monkeypatch.setattr(ort_backend, "DEVICE_TYPES", {"cpu": "cpu"})
    bound = OnnxRuntimeBackend(source)
    inputs = bound.make_inputs(3)
    for batch in inputs:
        np.testing.assert_array_equal(bound.infer(batch), plain.infer(batch))
    assert (plain.describe(inputs[0]).io_binding, bound.describe(inputs[0]).io_binding) == (
        False,
        True,
    )
    timer = BlockTimer(bound.stages(), inputs, brief)
    timer.warm_up()
    timer.run_slice()
    block = timer.to_block()
    assert [*block.stages_ns] == STAGES
    sums_ns = np.sum([block.stages_ns[name] for name in STAGES], axis=0)
    np.testing.assert_array_equal(sums_ns, block.latencies_ns)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("provider", DEVICE_TYPES)
def test_backend_raises_without_gpu(make_bundle: Callable[..., Path], provider: str) -> None:
    with pytest.raises(ProviderError):
        OnnxRuntimeBackend(ModelSource(make_bundle() / "fp32.onnx", threads=1, provider=provider))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_io_binding_matches_cpu_on_gpu(make_bundle: Callable[..., Path]) -> None:
    source = ModelSource(make_bundle() / "fp32.onnx", threads=1)
    bound = OnnxRuntimeBackend(ModelSource(source.model, threads=1, provider="cuda"))
    for batch in bound.make_inputs(3):
        np.testing.assert_allclose(
            bound.infer(batch), OnnxRuntimeBackend(source).infer(batch), atol=1e-2
        )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_graph_runner_matches_plain_run_on_gpu(make_bundle: Callable[..., Path]) -> None:
    source = ModelSource(make_bundle() / "fp32.onnx", threads=1, provider="cuda")
    graph_backend = OnnxRuntimeBackend(replace(source, settings={"session_mode": "cuda-graph"}))
    for batch in graph_backend.make_inputs(3):
        np.testing.assert_allclose(
            graph_backend.infer(batch), OnnxRuntimeBackend(source).infer(batch), atol=1e-2
        )

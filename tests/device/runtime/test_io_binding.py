"""Bound inputs and outputs: the same answers as a plain call, step by step. The host's own memory stands in for a GPU's."""

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

ALL = ["to device", "inference", "to host"]


@pytest.fixture
def session() -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(
        colour_model().SerializeToString(), providers=["CPUExecutionProvider"]
    )


def pictures(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def test_every_shape_has_its_own_answer(session: onnxruntime.InferenceSession) -> None:
    bound, name = IoBindingRunner(session, "logits", "cpu"), session.get_inputs()[0].name
    given = [
        pictures(0, 1, 40, 50, 3),
        pictures(1, 1, 40, 50, 3),
        pictures(2, 1, 64, 64, 3),
        pictures(3, 1, 40, 50, 3),
    ]
    given.append(pictures(4, 1, 50, 40, 3).transpose(0, 2, 1, 3))
    answers = [bound.download(bound.compute(bound.upload({name: one}))).copy() for one in given]
    for one, answer in zip(given, answers, strict=True):
        np.testing.assert_array_equal(answer, session.run(["logits"], {name: one})[0])
    assert len({answer.tobytes() for answer in answers}) == len(given)


def test_graph_run_has_fixed_buffers_for_each_shape(session: onnxruntime.InferenceSession) -> None:
    run, name = OrtCudaGraphRunner(session, "logits", "cpu"), session.get_inputs()[0].name
    small, large = (1, 40, 50, 3), (2, 64, 64, 3)
    seen: dict[tuple[int, ...], set[tuple[int, int]]] = {small: set(), large: set()}
    for seed, shape in enumerate([small, large, small, large, small]):
        given = pictures(seed, *shape)
        buffers = run.upload({name: given})
        outputs = run.compute(buffers)
        np.testing.assert_array_equal(
            run.download(outputs), session.run(["logits"], {name: given})[0]
        )
        seen[shape].add((buffers.inputs[name].data_ptr(), outputs[0].data_ptr()))
    assert [len(addresses) for addresses in seen.values()] == [1, 1]
    assert not seen[small] & seen[large]


class RecordedSession:
    """A session that notes which graph every run asked for."""

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


def test_graph_run_captures_before_the_clock_starts(session: onnxruntime.InferenceSession) -> None:
    recorded, name = RecordedSession(session), session.get_inputs()[0].name
    run = OrtCudaGraphRunner(recorded, "logits", "cpu")
    # One run without a graph to learn the output's shape, then until the graph is there.
    buffers = run.upload({name: pictures(0, 1, 40, 50, 3)})
    assert recorded.graph_ids == [-1, 1, 1, 1]
    run.compute(buffers)
    run.upload({name: pictures(1, 1, 40, 50, 3)})
    assert recorded.graph_ids == [-1, 1, 1, 1, 1]
    run.upload({name: pictures(2, 2, 40, 50, 3)})
    assert recorded.graph_ids[5:] == [-1, 2, 2, 2], (
        "another shape must not replay the first one's graph"
    )


def test_what_is_timed_falls_into_three(
    make_bundle: Callable[..., Path], brief: BenchProtocol, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = ModelSource(make_bundle() / "fp32.onnx", threads=1)
    plain = OnnxRuntimeBackend(source)
    assert [name for name, _ in plain.stages()] == ["inference"]
    monkeypatch.setattr(ort_backend, "DEVICE_TYPES", {"cpu": "cpu"})
    bound = OnnxRuntimeBackend(source)
    inputs = bound.make_inputs(3)
    for one in inputs:
        np.testing.assert_array_equal(bound.infer(one), plain.infer(one))
    assert (plain.describe(inputs[0])["io_binding"], bound.describe(inputs[0])["io_binding"]) == (
        False,
        True,
    )
    measurement = BlockTimer(bound.stages(), inputs, brief)
    measurement.warm_up()
    measurement.run_slice()
    block = measurement.to_block()
    assert [*block.stages_ns] == ALL
    parts = np.sum([block.stages_ns[name] for name in ALL], axis=0)
    np.testing.assert_array_equal(parts, block.latencies_ns)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("provider", DEVICE_TYPES)
def test_without_a_gpu_nothing_runs_elsewhere(
    make_bundle: Callable[..., Path], provider: str
) -> None:
    with pytest.raises(ProviderError):
        OnnxRuntimeBackend(ModelSource(make_bundle() / "fp32.onnx", threads=1, provider=provider))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu(make_bundle: Callable[..., Path]) -> None:
    source = ModelSource(make_bundle() / "fp32.onnx", threads=1)
    bound = OnnxRuntimeBackend(ModelSource(source.model, threads=1, provider="cuda"))
    for given in bound.make_inputs(3):
        np.testing.assert_allclose(
            bound.infer(given), OnnxRuntimeBackend(source).infer(given), atol=1e-2
        )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_graph_run_on_a_gpu_answers_as_a_plain_run(make_bundle: Callable[..., Path]) -> None:
    source = ModelSource(make_bundle() / "fp32.onnx", threads=1, provider="cuda")
    captured = OnnxRuntimeBackend(replace(source, settings={"session_mode": "cuda-graph"}))
    for given in captured.make_inputs(3):
        np.testing.assert_allclose(
            captured.infer(given), OnnxRuntimeBackend(source).infer(given), atol=1e-2
        )

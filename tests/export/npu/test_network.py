"""Network files for NPUs: normalization, quantization of every node, static shapes."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from onnxruntime.quantization.execution_providers.qnn import qnn_preprocess_model
from onnxruntime.tools.mobile_helpers import usability_checker
from torch import nn

from edgetl.core.errors import ExportError
from edgetl.core.preprocessing import Preprocessing
from edgetl.device.runtime.preprocessing import normalize
from edgetl.export.graph.torch_export import export_network_graph
from edgetl.export.npu import search
from edgetl.export.npu.network import (
    UNKNOWN_INPUTS,
    add_unknown_inputs,
    count_operators,
    find_dynamic_values,
    freeze_shapes,
    prepend_normalization,
    quantize_network,
    with_float_input,
)
from edgetl.export.npu.providers import check_providers
from edgetl.export.quantize.calibration import Calibration
from edgetl.export.quantize.images import CroppedImages, QuantizationImages
from edgetl.export.quantize.rewrites import rewrite_operators
from edgetl.export.quantize.scoring import compute_logits, sqnr_db
from edgetl.export.quantize.task import QuantizationTask

SIDE, CLASSES = 32, 3
IMAGENET = Preprocessing.for_image_size(SIDE)
EQUAL_CHANNELS = Preprocessing(SIDE, SIDE, (127 / 255,) * 3, (128 / 255,) * 3)


class Small(nn.Module):
    """Convolutions with padding, a residual, hard swish, a gate, a mean and two Linears."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 1, 1, groups=8)
        self.third = nn.Conv2d(8, 8, 1)
        self.hidden, self.last = nn.Linear(8, 8), nn.Linear(8, CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        value = nn.functional.relu6(self.first(images))
        value = nn.functional.hardswish(self.third(torch.relu(self.second(value)))) + value
        value = value * nn.functional.hardsigmoid(value.mean((2, 3), keepdim=True))
        logits: torch.Tensor = self.last(nn.functional.hardswish(self.hidden(value.mean((2, 3)))))
        return logits


@cache
def float_network() -> onnx.ModelProto:
    torch.manual_seed(0)
    graph = export_network_graph(Small().eval(), SIDE, CLASSES, 18)
    return onnx.shape_inference.infer_shapes(graph.model)


def crops(count: int, preprocessing: Preprocessing, seed: int = 0) -> CroppedImages:
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (count, 4, 4, 3)).astype(np.uint8)
    pixels = coarse.repeat(SIDE // 4, 1).repeat(SIDE // 4, 2)
    return CroppedImages(pixels, generator.integers(0, CLASSES, count), preprocessing)


@cache
def int8_network(preprocessing: Preprocessing = IMAGENET) -> onnx.ModelProto:
    network = rewrite_operators(float_network())
    calibration = Calibration(network, crops(40, preprocessing))
    return quantize_network(network, calibration.ranges("minmax"), preprocessing)


def planes(images: CroppedImages) -> NDArray[np.uint8]:
    return np.ascontiguousarray(images.pixels.transpose(0, 3, 1, 2))


def run(model: onnx.ModelProto, value: NDArray[np.generic]) -> list[NDArray[np.float32]]:
    session = onnxruntime.InferenceSession(model.SerializeToString())
    outputs: list[NDArray[np.float32]] = session.run(None, {session.get_inputs()[0].name: value})
    return outputs


@pytest.mark.parametrize("preprocessing", [IMAGENET, EQUAL_CHANNELS])
def test_normalization_layer_equals_preprocessing(preprocessing: Preprocessing) -> None:
    network = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18]> identity '
        f"(float[batch, 3, {SIDE}, {SIDE}] pixels) => (float[batch, 3, {SIDE}, {SIDE}] logits) "
        "{ logits = Identity(pixels) }"
    )
    images = crops(3, preprocessing)
    normalized = prepend_normalization(network, preprocessing)
    levels = (planes(images).astype(np.float32) - normalized.zero_point) * normalized.scale
    (logits,) = run(normalized.model, levels.astype(np.float32))
    assert np.abs(logits - normalize(images.pixels, preprocessing)).max() < 1e-6


def test_equal_channels_need_no_normalization_layer() -> None:
    normalized = prepend_normalization(float_network(), EQUAL_CHANNELS)
    assert normalized.model == float_network()
    assert (normalized.scale, normalized.zero_point) == (pytest.approx(1 / 128), 127)
    assert len(prepend_normalization(float_network(), IMAGENET).model.graph.node) == 1 + len(
        float_network().graph.node
    )


@pytest.mark.parametrize("preprocessing", [IMAGENET, EQUAL_CHANNELS])
def test_input_is_gray_levels_without_rounding(preprocessing: Preprocessing) -> None:
    graph = int8_network(preprocessing).graph
    (graph_input,) = graph.input
    assert graph_input.name == "cropped"
    assert graph_input.type.tensor_type.elem_type == TensorProto.UINT8
    (first,) = [node for node in graph.node if "cropped" in node.input]
    constants = {value.name: numpy_helper.to_array(value) for value in graph.initializer}
    assert first.op_type == "DequantizeLinear"
    steps = (constants[first.input[1]].item(), constants[first.input[2]].item())
    is_uniform = preprocessing is EQUAL_CHANNELS
    assert steps == ((np.float32(1 / 128), 127) if is_uniform else (1.0, 0))


def test_float_input_recovers_the_gray_levels() -> None:
    images = crops(8, IMAGENET, 3)
    (direct,) = run(int8_network(), planes(images))
    assert np.array_equal(
        compute_logits(with_float_input(int8_network(), IMAGENET), images), direct
    )


@pytest.mark.parametrize("preprocessing", [IMAGENET, EQUAL_CHANNELS])
def test_int8_network_approximates_the_float_one(preprocessing: Preprocessing) -> None:
    images = crops(30, preprocessing, 1)
    reference = compute_logits(float_network(), images)
    (logits,) = run(int8_network(preprocessing), planes(images))
    assert sqnr_db(reference, logits) > 30


def test_every_node_works_on_quantized_values() -> None:
    graph = int8_network().graph
    producers = {name: node for node in graph.node for name in node.output}
    constants = {value.name: value for value in graph.initializer}
    computing = [
        node for node in graph.node if node.op_type not in ("QuantizeLinear", "DequantizeLinear")
    ]
    assert {"Conv", "Gemm", "Add", "Mul"} <= {node.op_type for node in computing}
    for node in computing:
        for name in node.input:
            is_shape = name in constants and constants[name].data_type == TensorProto.INT64
            assert is_shape or producers[name].op_type == "DequantizeLinear", (node.name, name)
        consumers = [other.op_type for other in graph.node if node.output[0] in other.input]
        assert set(consumers) == {"QuantizeLinear"}, node.name
    assert producers["logits"].op_type == "DequantizeLinear"


def test_only_convolutions_have_scales_by_channel() -> None:
    graph = int8_network().graph
    constants = {value.name: numpy_helper.to_array(value) for value in graph.initializer}
    producers = {name: node for node in graph.node for name in node.output}
    kinds = {"Conv": set[int](), "Gemm": set[int]()}
    for node in graph.node:
        if node.op_type in kinds:
            weight = producers[node.input[1]]
            assert constants[weight.input[0]].dtype == np.int8
            assert not constants[weight.input[2]].any(), "weights are symmetric"
            kinds[node.op_type].add(constants[weight.input[1]].size)
    assert kinds == {"Conv": {3, 8}, "Gemm": {1}}


@pytest.mark.parametrize("quantized", [False, True])
def test_frozen_network_has_static_shapes_only(quantized: bool) -> None:
    network = int8_network() if quantized else rewrite_operators(float_network())
    assert find_dynamic_values(network)
    frozen = freeze_shapes(network)
    assert find_dynamic_values(frozen) == []
    onnx.checker.check_model(frozen, full_check=True)
    operators = count_operators(frozen)
    assert not {"If", "Loop", "Resize", "Shape", "Flatten", "TopK", "Softmax"} & set(operators)
    constants = {value.name: numpy_helper.to_array(value) for value in frozen.graph.initializer}
    for node in frozen.graph.node:
        if node.op_type == "Reshape":
            assert (constants[node.input[1]] > 0).all()
    images = crops(5, IMAGENET, 4)
    inputs = planes(images) if quantized else normalize(images.pixels, IMAGENET)
    (expected,) = run(network, inputs)
    single = np.concatenate([run(frozen, inputs[row : row + 1])[0] for row in range(5)])
    assert np.abs(single - expected).max() < 1e-5


def test_shape_that_depends_on_data_is_refused() -> None:
    network = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 18]>
        graph (float[batch, 3, {SIDE}, {SIDE}] pixels) => (float[batch, 1] logits) {{
            found = NonZero(pixels)
            values = Cast<to = 1>(found)
            logits = ReduceMean<keepdims = 1>(values)
        }}"""
    )
    with pytest.raises(ExportError, match="no static shape"):
        freeze_shapes(network)


def test_unknown_inputs_are_those_of_the_last_layer() -> None:
    frozen = freeze_shapes(int8_network())
    assert add_unknown_inputs(frozen) == [1, 8]
    onnx.checker.check_model(frozen, full_check=True)
    assert find_dynamic_values(frozen) == []
    logits, features = run(frozen, planes(crops(1, IMAGENET)))
    graph = frozen.graph
    assert [output.name for output in graph.output] == ["logits", UNKNOWN_INPUTS]
    constants = {value.name: numpy_helper.to_array(value) for value in graph.initializer}
    producers = {name: node for node in graph.node for name in node.output}
    gemm = next(node for node in graph.node if node.op_type == "Gemm" and "last" in node.input[1])
    weight = producers[gemm.input[1]]
    bias = producers[gemm.input[2]]
    values = [
        constants[node.input[0]] * constants[node.input[1]].astype(np.float64)
        for node in (weight, bias)
    ]
    expected = features @ values[0].T + values[1]
    step = constants[producers["logits"].input[1]]
    assert np.abs(logits - expected).max() <= step


def test_providers_take_the_networks_that_suit_them() -> None:
    coverage = {item.provider: item for item in check_providers(freeze_shapes(int8_network()))}
    assert set(coverage) == {"QNN", "VitisAI", "RKNN", "NNAPI", "CoreML"}
    for provider in ("QNN", "VitisAI", "RKNN", "NNAPI"):
        assert coverage[provider].is_whole, coverage[provider].summary
    assert set(coverage["CoreML"].unsupported) == {"QuantizeLinear", "DequantizeLinear"}
    plain = freeze_shapes(rewrite_operators(float_network(), ("HardSigmoid", "HardSwish")))
    float_coverage = {item.provider: item for item in check_providers(plain)}
    assert set(float_coverage["NNAPI"].unsupported) == {"HardSigmoid", "HardSwish"}
    assert float_coverage["NNAPI"].unsupported["HardSwish"] == 2
    assert "HardSwish (2)" in float_coverage["NNAPI"].summary
    assert float_coverage["QNN"].is_whole


def test_onnxruntimes_own_tools_accept_the_networks(tmp_path: Path) -> None:
    frozen = freeze_shapes(int8_network())
    dynamic_inputs, dynamic_values = usability_checker.check_shapes(frozen.graph)
    assert (dynamic_inputs, dynamic_values) == ([], 0)
    partitioning = usability_checker.check_nnapi_partitions(frozen, True)
    assert partitioning.num_partitions == 1
    assert partitioning.num_supported_nodes == partitioning.num_nodes == len(frozen.graph.node)
    # QNN's preparation finds nothing to change.
    onnx.save(freeze_shapes(rewrite_operators(float_network())), tmp_path / "float.onnx")
    assert not qnn_preprocess_model(tmp_path / "float.onnx", tmp_path / "prepared.onnx")


def test_nodes_of_other_domains_are_not_listed() -> None:
    network = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 18, "com.example" : 1]>
        graph (float[1, 3] pixels) => (float[1, 3] logits) <float[1, 3] value> {
            value = com.example.Relu(pixels)
            logits = Relu(value)
        }"""
    )
    for item in check_providers(network):
        assert dict(item.unsupported) == {"com.example.Relu": 1}, item.provider


@pytest.mark.parametrize(("limit", "forms"), [(100.0, 1), (-1.0, 2)])
def test_search_keeps_hard_activations_only_if_needed(limit: float, forms: int) -> None:
    images = QuantizationImages(crops(40, IMAGENET), crops(30, IMAGENET, 1))
    task = QuantizationTask(
        float_network(), {}, lambda: images, limit, lambda step, done, total: None
    )
    result = search.quantize_for_npu(task, IMAGENET)
    assert result.search is not None
    candidates = result.search.candidates  # type: ignore[union-attr]
    assert len(candidates) == 6 * forms
    assert {candidate.scheme.per_channel for candidate in candidates} == {True}
    native = [item for item in candidates if search.KEPT_OPERATORS in item.repairs]
    assert len(native) == 6 * (forms - 1)
    best = max(candidates, key=lambda item: item.score.sqnr_db)
    if forms == 1:
        assert result.search.chosen == best  # type: ignore[union-attr]
    assert result.is_within_limit == (limit > 0)

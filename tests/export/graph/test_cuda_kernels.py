"""Exported graphs use only operators with CUDA kernels in onnxruntime; no GPU is needed.

`python -m tools.repo.cuda_kernels` records the list of kernels again after an upgrade of
onnxruntime-gpu.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper
from onnxruntime.transformers.float16 import convert_float_to_float16

from edgetl.core.preprocessing import Interpolation, Preprocessing
from edgetl.export.graph.preprocessing import preprocessing_graph

RECORDED = json.loads((Path(__file__).parent / "recorded/cuda_kernels.json").read_text())
both_interpolations = pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
FOLDED_OPERATORS = {"Constant"}
"""Operators that onnxruntime folds when it loads a model."""


def subgraphs(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    return [attribute.g for attribute in node.attribute if attribute.HasField("g")]


def scopes(
    graph: onnx.GraphProto, outer: dict[str, int] | None = None
) -> Iterator[tuple[onnx.NodeProto, dict[str, int]]]:
    """Yield every node, including those of subgraphs, with the types of the visible values."""
    types = dict(outer or {})
    for value in (*graph.input, *graph.output, *graph.value_info):
        types[value.name] = value.type.tensor_type.elem_type
    types.update({tensor.name: tensor.data_type for tensor in graph.initializer})
    for node in graph.node:
        yield node, types
        for subgraph in subgraphs(node):
            yield from scopes(subgraph, types)


def type_name(element_type: int) -> str:
    return TensorProto.DataType.Name(element_type).lower()


def missing_kernels(model: onnx.ModelProto) -> list[str]:
    """Return operators, with types, that have no kernel in the CUDA provider."""
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    opsets = {entry.domain or "ai.onnx": entry.version for entry in inferred.opset_import}
    missing = []
    for node, types in scopes(inferred.graph):
        if node.op_type in FOLDED_OPERATORS:
            continue
        domain = node.domain or "ai.onnx"
        schema = onnx.defs.get_schema(node.op_type, opsets[domain], node.domain)
        used: dict[str, str] = {}
        for names, parameters in ((node.input, schema.inputs), (node.output, schema.outputs)):
            for index, name in enumerate(names):
                if name:
                    used[parameters[min(index, len(parameters) - 1)].type_str] = type_name(
                        types[name]
                    )
        if not any(
            first <= opsets[domain] <= last
            and all(used.get(key, names[0]) in names for key, names in constraints.items())
            for first, last, constraints in RECORDED["kernels"].get(f"{domain}:{node.op_type}", [])
        ):
            missing.append(f"{node.op_type} {used}")
    return missing


@pytest.fixture
def network_file(export: Any, tmp_path: Path) -> Any:
    def export_network(input_kind: str) -> onnx.ModelProto:
        return onnx.load(export(tmp_path / input_kind, input=input_kind).directory.variant("fp32"))

    return export_network


@pytest.mark.parametrize("input_kind", ["image", "tensor"])
def test_every_operator_has_a_cuda_kernel(network_file: Any, input_kind: str) -> None:
    model = network_file(input_kind)
    assert missing_kernels(model) == []


def test_every_fp16_operator_has_a_cuda_kernel(network_file: Any) -> None:
    half = convert_float_to_float16(network_file("tensor"), keep_io_types=True)
    assert missing_kernels(half) == []


def test_only_int32_biases_of_qdq_lack_a_cuda_kernel() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 18]>
        qdq (float[n, 3, 8, 8] x, float[4, 3, 3, 3] w, int32[4] bias) => (float[n, 4, 6, 6] y)
        <float s = {0.1}, uint8 z = {7}, int8 zero = {0}, int32 none = {0}> {
            a = QuantizeLinear(x, s, z)
            b = DequantizeLinear(a, s, z)
            c = QuantizeLinear(w, s, zero)
            d = DequantizeLinear(c, s, zero)
            e = DequantizeLinear(bias, s, none)
            y = Conv(b, d, e)
        }"""
    )
    (missing,) = missing_kernels(model)
    assert missing.startswith("DequantizeLinear")
    assert "int32" in missing


def test_missing_kernel_is_named() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 18]>
        shift (uint32[n] x) => (uint32[n] y) <uint32 bits = {2}> { y = BitShift<direction = "RIGHT">(x, bits) }"""
    )
    assert missing_kernels(model) == ["BitShift {'T': 'uint32'}"]


@pytest.mark.parametrize("opset", [18, 21])
@both_interpolations
def test_preprocessing_has_cuda_kernels_in_every_opset(
    opset: int, interpolation: Interpolation
) -> None:
    preprocessing = Preprocessing(256, 224, interpolation=interpolation)
    assert missing_kernels(preprocessing_graph(preprocessing, opset, 10)) == []


def branches(
    interpolation: Interpolation,
) -> tuple[onnx.GraphProto, onnx.GraphProto, onnx.GraphProto]:
    preprocessing = Preprocessing(256, 224, interpolation=interpolation)
    graph = preprocessing_graph(preprocessing, 18, 10).graph
    condition = next(node for node in graph.node if node.op_type == "If")
    by_name = {attribute.name: attribute.g for attribute in condition.attribute}
    return graph, by_name["then_branch"], by_name["else_branch"]


@both_interpolations
def test_resize_and_slice_use_nchw(interpolation: Interpolation) -> None:
    """At run time, CUDA does not support antialiased Resize of uint8 in NHWC."""
    graph, _, shrink = branches(interpolation)
    assert [node.op_type for node in shrink.node] == ["Transpose", "Resize", "Slice"]
    transpose, resize, slice_node = shrink.node
    assert list(transpose.attribute[0].ints) == [0, 3, 1, 2]
    assert list(transpose.input) == ["image"]
    assert resize.input[0] == transpose.output[0]
    assert slice_node.input[0] == resize.output[0]
    axes = next(tensor for tensor in graph.initializer if tensor.name == slice_node.input[3])
    assert np.array_equal(numpy_helper.to_array(axes), [2, 3])


@both_interpolations
def test_branches_compute_no_shapes(interpolation: Interpolation) -> None:
    """A shape computed inside the If causes a copy and a synchronization in every call."""
    _, enlarge, shrink = branches(interpolation)
    assert not {"Concat", "Shape", "Range", "BitShift"} & {
        node.op_type for node in (*enlarge.node, *shrink.node)
    }


@both_interpolations
def test_sizes_and_pixels_share_no_constant(interpolation: Interpolation) -> None:
    """A constant read by both host and device causes a copy."""
    graph, enlarge, shrink = branches(interpolation)
    constants = {tensor.name for tensor in graph.initializer}
    host_values = {
        name
        for node in graph.node
        if node.op_type in ("Div", "Sub", "Add", "Mul", "Less", "Concat")
        for name in node.input
    }
    host_values &= {
        tensor.name for tensor in graph.initializer if tensor.data_type == TensorProto.INT64
    }
    device_values = {
        name
        for node in (*enlarge.node, *shrink.node)
        if node.op_type not in ("Resize", "Slice")
        for name in node.input
    }
    assert host_values & device_values & constants == set()

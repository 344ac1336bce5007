"""Network files that an NPU takes whole: static shapes, one image, no control flow.

What the NPUs have in common decides the form of the int8 file. QNN's operators take uint8
activations, and onnxruntime's helper for it describes scales by channel for convolutions only
(`get_qnn_qdq_config`); NNAPI takes uint8 activations with uint8 or int8 weights (helper.cc of
onnxruntime's provider). Both take an operator for quantized only if DequantizeLinear precedes and
QuantizeLinear follows it. 16-bit activations, which QNN also has, are unknown to the others.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QDQQuantizer, QuantType, TensorData, TensorsData

from edgetl.core.errors import ExportError
from edgetl.core.preprocessing import Preprocessing
from edgetl.export.graph.features import find_last_layer_input
from edgetl.export.graph.preprocessing import CROPPED_IMAGE, PIXELS
from edgetl.export.quantize.cleanup import clean_up_graph, wrap_quantizer_errors

UNKNOWN_INPUTS = "unknown_inputs"
"""Output of a network file: the input of its last layer, for the unknown score."""
_NORMALIZATION = "normalization"
_LAYERS_BY_TENSOR = ("Gemm", "MatMul")
"""Layers whose weights have one scale; scales by channel are common in convolutions only."""
_LEVEL_TOLERANCE = 1e-3
"""Largest deviation of a mean from an integer gray level, in gray levels."""


@dataclass(frozen=True)
class NormalizedNetwork:
    """A float network with the normalization of pixels as its first layer, if it needs one."""

    model: onnx.ModelProto
    input: str
    """Name of the input, float32."""
    scale: float
    """Step of the input's quantization: input = scale (gray level - zero_point)."""
    zero_point: int


def prepend_normalization(
    network: onnx.ModelProto, preprocessing: Preprocessing
) -> NormalizedNetwork:
    """Move the normalization into the network, so that its quantized input is a gray level.

    If all channels have one mean, an integer gray level, and one standard deviation, the
    quantization of the input is the normalization. Otherwise a depthwise 1 x 1 convolution
    precedes the network. It cannot be folded into a first convolution with padding: normalized
    pixels are padded with 0, which is another gray level in each channel.

    Args:
        network: `pixels` -> `logits`.
        preprocessing: mean and standard deviation of each channel.
    """
    model = onnx.ModelProto()
    model.CopyFrom(network)
    levels = 255 * np.asarray(preprocessing.mean)
    scales = 1 / (255 * np.asarray(preprocessing.std))
    is_uniform = len(set(preprocessing.mean)) == len(set(preprocessing.std)) == 1
    zero_point = round(float(levels[0]))
    if is_uniform and abs(levels[0] - zero_point) <= _LEVEL_TOLERANCE and zero_point in range(256):
        return NormalizedNetwork(model, PIXELS, float(scales[0]), zero_point)
    graph = model.graph
    weight, bias = f"{_NORMALIZATION}_weight", f"{_NORMALIZATION}_bias"
    graph.initializer.extend(
        [
            numpy_helper.from_array(scales.astype(np.float32).reshape(3, 1, 1, 1), weight),
            numpy_helper.from_array((-levels * scales).astype(np.float32), bias),
        ]
    )
    node = helper.make_node(
        "Conv",
        [CROPPED_IMAGE, weight, bias],
        [PIXELS],
        name=_NORMALIZATION,
        group=3,
        kernel_shape=[1, 1],
    )
    graph.node.insert(0, node)
    pixels = onnx.ValueInfoProto()
    pixels.CopyFrom(graph.input[0])
    graph.value_info.append(pixels)
    graph.input[0].name = CROPPED_IMAGE
    return NormalizedNetwork(model, CROPPED_IMAGE, 1.0, 0)


def quantize_network(
    network: onnx.ModelProto, ranges: TensorsData, preprocessing: Preprocessing
) -> onnx.ModelProto:
    """Quantize a whole network: `cropped` uint8 [batch, 3, S, S] -> `logits` float32.

    Every operator is surrounded by QuantizeLinear and DequantizeLinear, the last one included.
    Activations are uint8, weights int8 and symmetric: by channel in convolutions, by tensor
    elsewhere.

    Args:
        network: `pixels` -> `logits`, with folded BatchNorm and inferred shapes.
        ranges: range of every value in the network.
        preprocessing: becomes part of the network.

    Raises:
        ExportError: onnxruntime cannot quantize the network.
    """
    normalized = prepend_normalization(network, preprocessing)
    overrides: dict[str, list[dict[str, Any]]] = {
        normalized.input: [
            {
                "quant_type": QuantType.QUInt8,
                "scale": np.array(normalized.scale, np.float32),
                "zero_point": np.array(normalized.zero_point, np.uint8),
            }
        ]
    }
    constants = {value.name for value in normalized.model.graph.initializer}
    for node in normalized.model.graph.node:
        if node.op_type in _LAYERS_BY_TENSOR and node.input[1] in constants:
            overrides[node.input[1]] = [{"quant_type": QuantType.QInt8, "symmetric": True}]
    with wrap_quantizer_errors(
        "quantizer does not support this network for NPUs", "Remove {split}."
    ):
        quantizer = QDQQuantizer(
            normalized.model,
            per_channel=True,
            reduce_range=False,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QUInt8,
            tensors_range=_with_pixel_range(ranges, preprocessing),
            nodes_to_quantize=[],
            nodes_to_exclude=[],
            op_types_to_quantize=sorted({node.op_type for node in network.graph.node} | {"Conv"}),
            extra_options={"TensorQuantOverrides": overrides},
        )
        quantizer.quantize_model()
    return _open_input(clean_up_graph(quantizer.model.model), normalized.input)


def _with_pixel_range(ranges: TensorsData, preprocessing: Preprocessing) -> TensorsData:
    """Replace the ranges of pixels, which are known: no photo may be clipped."""
    mean, std = np.asarray(preprocessing.mean), np.asarray(preprocessing.std)
    bounds: dict[str, Any] = {name: data.range_value for name, data in ranges.items()}
    bounds[PIXELS] = (np.float32((-mean / std).min()), np.float32(((1 - mean) / std).max()))
    bounds[CROPPED_IMAGE] = (np.float32(0), np.float32(255))
    return TensorsData(
        ranges.calibration_method,
        {name: TensorData(lowest=low, highest=high) for name, (low, high) in bounds.items()},
    )


def _open_input(network: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """Remove the QuantizeLinear of the input, whose quantized values are gray levels."""
    graph = network.graph
    quantize = next(
        node for node in graph.node if node.op_type == "QuantizeLinear" and node.input[0] == name
    )
    quantized = quantize.output[0]
    graph.node.remove(quantize)
    _rename(graph, quantized, CROPPED_IMAGE)
    (graph_input,) = graph.input
    graph_input.name = CROPPED_IMAGE
    graph_input.type.tensor_type.elem_type = TensorProto.UINT8
    return network


def with_float_input(network: onnx.ModelProto, preprocessing: Preprocessing) -> onnx.ModelProto:
    """Return the network `cropped` -> `logits` with the input `pixels`, for calibration and tests.

    The gray levels are recovered from the normalized pixels, exactly.
    """
    model = onnx.ModelProto()
    model.CopyFrom(network)
    graph = model.graph
    _rename(graph, PIXELS, "normalized")
    constants = {
        "levels_scale": 255 * np.asarray(preprocessing.std, np.float32).reshape(3, 1, 1),
        "levels_offset": 255 * np.asarray(preprocessing.mean, np.float32).reshape(3, 1, 1),
    }
    graph.initializer.extend(
        numpy_helper.from_array(value.astype(np.float32), name) for name, value in constants.items()
    )
    nodes = [
        helper.make_node("Mul", [PIXELS, "levels_scale"], ["levels_scaled"]),
        helper.make_node("Add", ["levels_scaled", "levels_offset"], ["levels_shifted"]),
        helper.make_node("Round", ["levels_shifted"], ["levels"]),
        helper.make_node("Cast", ["levels"], [CROPPED_IMAGE], to=TensorProto.UINT8),
    ]
    for index, node in enumerate(nodes):
        graph.node.insert(index, node)
    (graph_input,) = graph.input
    graph_input.name = PIXELS
    graph_input.type.tensor_type.elem_type = TensorProto.FLOAT
    return model


def _rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name == old:
                    names[index] = new
    for value in graph.value_info:
        if value.name == old:
            value.name = new


def freeze_shapes(network: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy for one image, in which every value has a static shape.

    Flatten becomes Reshape, and the shapes of Reshape are written out: CoreML has no Flatten, and
    not every provider has 0 and -1 in a shape.

    Raises:
        ExportError: a shape is not static.
    """
    model = onnx.ModelProto()
    model.CopyFrom(network)
    graph = model.graph
    for value in (*graph.input, *graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    del graph.value_info[:]
    model = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    graph = model.graph
    shapes = {value.name: _static_shape(value) for value in (*graph.value_info, *graph.output)}
    for node in graph.node:
        shape = shapes.get(node.output[0])
        if node.op_type not in ("Flatten", "Reshape") or shape is None:
            continue
        name = f"{node.output[0]}_shape"
        graph.initializer.append(numpy_helper.from_array(np.array(shape, np.int64), name))
        reshape = helper.make_node("Reshape", [node.input[0], name], node.output, name=node.name)
        node.CopyFrom(reshape)
    _remove_unused(graph)
    dynamic = find_dynamic_values(model)
    if dynamic:
        raise ExportError(
            f"{len(dynamic)} values of the network have no static shape, the first is {dynamic[0]}: "
            "its file does not suit NPUs. Remove {split}."
        )
    return model


def find_dynamic_values(model: onnx.ModelProto) -> list[str]:
    """Return the values of a graph whose shapes are unknown or not static."""
    graph = model.graph
    declared = {
        value.name: _static_shape(value)
        for value in (*graph.input, *graph.value_info, *graph.output)
    }
    values = [*(value.name for value in graph.input)]
    values += [name for node in graph.node for name in node.output if name]
    return [name for name in values if declared.get(name) is None]


def _static_shape(value: onnx.ValueInfoProto) -> list[int] | None:
    tensor = value.type.tensor_type
    sides = [side.dim_value for side in tensor.shape.dim]
    return sides if tensor.HasField("shape") and all(side > 0 for side in sides) else None


def _remove_unused(graph: onnx.GraphProto) -> None:
    """Remove nodes, constants and declarations that no output depends on."""
    needed = {value.name for value in graph.output}
    nodes = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            nodes.append(node)
    for items, needed_items in (
        (graph.node, nodes[::-1]),
        (graph.initializer, [value for value in graph.initializer if value.name in needed]),
        (graph.value_info, [value for value in graph.value_info if value.name in needed]),
    ):
        copies = [type(item)() for item in needed_items]
        for copy, item in zip(copies, needed_items, strict=True):
            copy.CopyFrom(item)
        del items[:]
        items.extend(copies)


def add_unknown_inputs(network: onnx.ModelProto) -> list[int] | None:
    """Add the output UNKNOWN_INPUTS in place: the input of the last layer, in float32.

    Args:
        network: with static shapes.

    Returns:
        Its shape, [1, features] or [1, features, height, width]; None if the layer is not found.
    """
    graph = network.graph
    source = find_last_layer_input(network)
    if source is None:
        return None
    declared = {value.name: value for value in (*graph.input, *graph.value_info)}
    producer = next((node for node in graph.node if source in node.output), None)
    # A node of its own: the provider fuses the other one into the layer.
    copy = helper.make_node("Identity", [source], [UNKNOWN_INPUTS])
    if producer is not None and producer.op_type == "DequantizeLinear":
        copy.CopyFrom(producer)
        copy.output[0] = UNKNOWN_INPUTS
    copy.name = UNKNOWN_INPUTS
    graph.node.append(copy)
    output = onnx.ValueInfoProto()
    output.CopyFrom(declared[source])
    output.name = UNKNOWN_INPUTS
    graph.output.append(output)
    return _static_shape(output)


def count_operators(network: onnx.ModelProto) -> Counter[str]:
    """Return the number of nodes of each operator; others than ONNX's have their domain."""
    return Counter(
        node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"
        for node in network.graph.node
    )

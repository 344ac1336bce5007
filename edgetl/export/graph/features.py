"""Nodes that compute the features of images within a network, for the unknown score."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import onnx
from onnx import NodeProto, TensorProto, helper

from edgetl.export.graph.preprocessing import PIXELS
from edgetl.export.graph.torch_export import LOGITS

FEATURES = "unknown_features"
"""Value with the penultimate features, float32 [batch, features]."""
INTERMEDIATE_FEATURES = "unknown_intermediate"
"""Value with the intermediate features, float32 [batch, channels]."""
_PRODUCTS = {
    "Gemm": 2,
    "MatMul": 2,
    "MatMulInteger": 2,
    "Conv": 4,
    "ConvInteger": 4,
}
"""Operators of a layer with weights, with the number of axes of their input."""
_POSITION_WISE = (
    "Add", "Cast", "DequantizeLinear", "DynamicQuantizeLinear", "Flatten", "GlobalAveragePool",
    "Identity", "Mul", "QuantizeLinear", "ReduceMean", "Relu", "Reshape", "Squeeze",
)  # fmt: skip
"""Operators between the last layer and the logits, or between features and the last layer."""
_CONVOLUTIONS = ("Conv", "ConvInteger")
_ROUNDING = ("DequantizeLinear", "QuantizeLinear", "DynamicQuantizeLinear", "Identity")
"""Operators whose output is their first input, rounded at most."""
_INTERMEDIATE_DEPTH = 7 / 8
"""Share of the convolutions in front of the intermediate features, as near as possible.

With MobileNetV2, the outputs of all blocks from 13 to 16 of 17 are equally good.
"""
_MIN_DEPTH = 1 / 2


def append_features(model: onnx.ModelProto) -> bool:
    """Append nodes that compute FEATURES: the input of the last layer, averaged over positions.

    Returns:
        False, and the model is unchanged, if the layer is not found.
    """
    layer = _find_last_layer(model.graph)
    if layer is None:
        return False
    value = _find_float_value(model.graph, layer.input[0])
    _append_vector(model.graph, value, FEATURES, axes=_PRODUCTS[layer.op_type])
    return True


def append_intermediate_features(model: onnx.ModelProto) -> bool:
    """Append nodes that compute INTERMEDIATE_FEATURES: a value in the last layers, averaged.

    It is the input of a convolution through which everything flows, like the output of a residual
    block, so that networks of every family have one, except transformers.

    Returns:
        False, and the model is unchanged, if there is no such value.
    """
    value = _find_intermediate_value(model.graph)
    if value is None:
        return False
    _append_vector(model.graph, value, INTERMEDIATE_FEATURES, axes=4)
    return True


def _find_intermediate_value(graph: onnx.GraphProto) -> str | None:
    layer = _find_last_layer(graph)
    if layer is None:
        return None
    nodes = list(_list_nodes_between(graph, PIXELS, layer.input[0]))
    total = sum(node.op_type in _CONVOLUTIONS for node in nodes)
    depths = _find_bottlenecks(nodes, PIXELS, layer.input[0])
    producers = {output: node for node in nodes for output in node.output}
    best, best_error = None, 1 - _MIN_DEPTH
    for node in nodes:
        if node.op_type not in _CONVOLUTIONS:
            continue
        sources = _trace_rounding(node.input[0], producers)
        depth = max(depths.get(source, 0) for source in sources) / total
        error = abs(depth - _INTERMEDIATE_DEPTH)
        if _MIN_DEPTH <= depth < 1 and error < best_error:
            best, best_error = node.input[0], error
    return None if best is None else _find_float_value(graph, best)


def _list_nodes_between(graph: onnx.GraphProto, start: str, end: str) -> Iterator[NodeProto]:
    """Yield the nodes that depend on the value `start` and that `end` depends on, in order.

    Dependence on shapes alone, as of a reshape with the size of the batch, is left out.
    """
    dependent = {start}
    for node in graph.node:
        if node.op_type != "Shape" and dependent.intersection(node.input):
            dependent.update(node.output)
    needed = {end}
    selected = []
    for node in reversed(graph.node):
        if needed.intersection(node.output) and dependent.intersection(node.output):
            needed.update(node.input)
            selected.append(node)
    yield from reversed(selected)


def _find_bottlenecks(nodes: Sequence[NodeProto], start: str, end: str) -> dict[str, int]:
    """Return the values through which everything flows, with the number of convolutions before."""
    computed = {start, *(output for node in nodes for output in node.output)}
    last_use = {end: len(nodes)}
    for position, node in enumerate(nodes):
        last_use |= {name: position for name in node.input if name in computed and name != end}
    live = {start}
    convolutions = 0
    bottlenecks = {}
    for position, node in enumerate(nodes):
        convolutions += node.op_type in _CONVOLUTIONS
        live.update(name for name in node.output if name in last_use)
        live = {name for name in live if last_use[name] > position}
        if len(live) == 1:
            bottlenecks[next(iter(live))] = convolutions
    return bottlenecks


def _trace_rounding(value: str, producers: Mapping[str, NodeProto]) -> Iterator[str]:
    """Yield a value, and those that it was rounded from."""
    yield value
    node = producers.get(value)
    while node is not None and node.op_type in _ROUNDING:
        yield node.input[0]
        node = producers.get(node.input[0])


def _find_float_value(graph: onnx.GraphProto, value: str) -> str:
    """Return what a layer's input was quantized from in the graph, or the input."""
    producer = _find_producer(graph, value)
    if producer is not None and producer.op_type == "DynamicQuantizeLinear":
        return str(producer.input[0])
    return value


def _append_vector(graph: onnx.GraphProto, value: str, name: str, *, axes: int) -> None:
    """Append a value as a vector for each image, averaged over positions if it has four axes."""
    pooled, flat = f"{name}_pooled", f"{name}_flat"
    nodes = []
    if axes == 4:
        nodes.append(helper.make_node("GlobalAveragePool", [value], [pooled]))
        value = pooled
    nodes += [
        helper.make_node("Flatten", [value], [flat], axis=1),
        helper.make_node("Cast", [flat], [name], to=TensorProto.FLOAT),
    ]
    append_nodes(graph, nodes)


def find_last_layer_input(model: onnx.ModelProto) -> str | None:
    """Return the name of the last layer's input in float32; None if the layer is not found."""
    layer = _find_last_layer(model.graph)
    return None if layer is None else str(layer.input[0])


def _find_last_layer(graph: onnx.GraphProto) -> NodeProto | None:
    constants = {value.name for value in graph.initializer}
    value = LOGITS
    while True:
        node = _find_producer(graph, value)
        if node is None or node.op_type in _PRODUCTS:
            return node
        inputs = [name for name in node.input if name and name not in constants]
        if node.op_type not in _POSITION_WISE or not inputs:
            return None
        value = inputs[0]


def _find_producer(graph: onnx.GraphProto, value: str) -> NodeProto | None:
    return next((node for node in graph.node if value in node.output), None)


def append_nodes(graph: onnx.GraphProto, nodes: Sequence[NodeProto]) -> None:
    """Append nodes, each named by its first output."""
    for node in nodes:
        node.name = node.output[0]
        graph.node.append(node)

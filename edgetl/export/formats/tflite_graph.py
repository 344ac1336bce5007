"""ONNX graph in the form that the conversion to LiteRT reads: static shapes, folded constants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from edgetl.core.errors import ExportError

_FUSING_OPERATORS = ("Conv", "Gemm", "Add", "Sub", "Mul")
"""Operators that LiteRT computes together with the activation behind them."""
_TOLERANCE = 1e-6
"""Largest difference of a constant from that of an operator which edgetl recognizes."""


@dataclass
class Node:
    """A node with its attributes as Python values."""

    operator: str
    inputs: list[str]
    outputs: list[str]
    attributes: dict[str, Any] = field(default_factory=dict)
    activation: str = "NONE"
    """Activation that follows, by its name in LiteRT's schema."""


@dataclass
class StaticGraph:
    """Nodes, constants and the shapes of all values for a batch of one."""

    nodes: list[Node]
    constants: dict[str, NDArray[Any]]
    shapes: dict[str, tuple[int, ...]]
    inputs: list[str]
    outputs: list[str]
    consumers: dict[str, list[Node]] = field(default_factory=dict)

    def count_consumers(self) -> None:
        """Update `consumers` after a change of the nodes."""
        self.consumers = {}
        for node in self.nodes:
            for name in node.inputs:
                self.consumers.setdefault(name, []).append(node)

    def only_consumer(self, name: str) -> Node | None:
        """The node that alone reads a value; None if there are more, or it is an output."""
        readers = self.consumers.get(name, [])
        return readers[0] if len(readers) == 1 and name not in self.outputs else None


def read_static_graph(model: onnx.ModelProto) -> StaticGraph:
    """Fix the batch to 1, fold constants and join activations with the operators before them.

    Raises:
        ExportError: the shapes cannot be inferred.
    """
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    for value in fixed.graph.input:
        value.type.tensor_type.shape.dim[0].dim_value = 1
    for value in fixed.graph.output:
        value.type.tensor_type.ClearField("shape")
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    shapes = _infer_shapes(fixed)
    # Some shapes follow from constants that follow from other shapes.
    while _fold_constants(fixed.graph, shapes, opset):
        shapes = _infer_shapes(fixed)
    nodes = [
        Node(node.op_type, list(node.input), list(node.output), _attributes(node))
        for node in fixed.graph.node
    ]
    constants = {entry.name: numpy_helper.to_array(entry) for entry in fixed.graph.initializer}
    inputs = [value.name for value in fixed.graph.input if value.name not in constants]
    outputs = [value.name for value in fixed.graph.output]
    static = StaticGraph(nodes, constants, shapes, inputs, outputs)
    static.count_consumers()
    _join_hard_swish(static)
    _join_gelu(static)
    _join_activations(static)
    return static


def _infer_shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    del model.graph.value_info[:]
    try:
        graph = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    except onnx.shape_inference.InferenceError as cause:
        raise ExportError(f"The shapes of the network are not static: {cause}.") from cause
    shapes = {entry.name: tuple(entry.dims) for entry in graph.initializer}
    for value in [*graph.input, *graph.value_info, *graph.output]:
        dims = value.type.tensor_type.shape.dim
        if all(dim.HasField("dim_value") for dim in dims):
            shapes[value.name] = tuple(dim.dim_value for dim in dims)
    return shapes


def _fold_constants(
    graph: onnx.GraphProto, shapes: Mapping[str, tuple[int, ...]], opset: int
) -> bool:
    """Replace nodes that compute constants by the constants; return whether there were any."""
    constants = {entry.name: numpy_helper.to_array(entry) for entry in graph.initializer}
    remaining = []
    for node in graph.node:
        names = [name for name in node.input if name]
        if node.op_type == "Shape" and node.input[0] in shapes:
            attributes = _attributes(node)
            shape = np.array(shapes[node.input[0]], np.int64)
            values: list[NDArray[Any]] = [shape[attributes.get("start", 0) : attributes.get("end")]]
        elif (
            all(name in constants for name in names)
            # Quantized weights keep their integers.
            and node.op_type != "DequantizeLinear"
        ):
            evaluator = ReferenceEvaluator(node, opsets={"": opset})
            feeds = {name: constants[name] for name in names}
            values = [np.asarray(value) for value in evaluator.run(None, feeds)]
        else:
            remaining.append(node)
            continue
        for name, value in zip(node.output, values, strict=True):
            constants[name] = value
            graph.initializer.append(numpy_helper.from_array(value, name))
    if len(remaining) == len(graph.node):
        return False
    del graph.node[:]
    graph.node.extend(remaining)
    return True


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {entry.name: _attribute_value(entry) for entry in node.attribute}


def _attribute_value(attribute: onnx.AttributeProto) -> Any:
    value = helper.get_attribute_value(attribute)
    return value.decode() if isinstance(value, bytes) else value


def _join_hard_swish(static: StaticGraph) -> None:
    """Replace x * HardSigmoid(x), as PyTorch defines it, by HardSwish(x)."""
    gates = {
        node.outputs[0]: node
        for node in static.nodes
        if node.operator == "HardSigmoid" and _is_swish_gate(node.attributes)
    }
    for node in static.nodes:
        if node.operator != "Mul":
            continue
        for value, gate in (node.inputs, reversed(node.inputs)):
            producer = gates.get(gate)
            if producer is not None and producer.inputs[0] == value:
                node.operator, node.inputs = "HardSwish", [value]
                if static.only_consumer(gate) is node:
                    static.nodes.remove(producer)
                break
    static.count_consumers()


def _join_gelu(static: StaticGraph) -> None:
    """Replace x (erf(x / sqrt(2)) + 1) / 2, in any order of the products, by Gelu(x)."""
    producers = {node.outputs[0]: node for node in static.nodes}
    for erf in [node for node in static.nodes if node.operator == "Erf"]:
        scaled = producers.get(erf.inputs[0])
        shifted = static.only_consumer(erf.outputs[0])
        if scaled is None or shifted is None or shifted.operator != "Add":
            continue
        first = static.only_consumer(shifted.outputs[0])
        second = None if first is None else static.only_consumer(first.outputs[0])
        if first is None or second is None or {first.operator, second.operator} != {"Mul"}:
            continue
        source = scaled.inputs[0]
        others = [*_other_inputs(first, shifted), *_other_inputs(second, first)]
        factors = [static.constants[name] for name in others if name in static.constants]
        if (
            source in others
            and _are_constants(static, _other_inputs(shifted, erf), 1.0)
            and [factor.size for factor in factors] == [1]
            and abs(float(factors[0].ravel()[0]) - 0.5) < _TOLERANCE
            and _divides_by_root_of_two(scaled, static)
        ):
            second.operator, second.inputs = "Gelu", [source]
            for node in (erf, shifted, first):
                static.nodes.remove(node)
            if static.only_consumer(scaled.outputs[0]) is erf:
                static.nodes.remove(scaled)
    static.count_consumers()


def _other_inputs(node: Node, producer: Node) -> list[str]:
    return [name for name in node.inputs if name != producer.outputs[0]]


def _are_constants(static: StaticGraph, names: Sequence[str], number: float) -> bool:
    return all(
        name in static.constants and np.allclose(static.constants[name], number, atol=_TOLERANCE)
        for name in names
    )


def _divides_by_root_of_two(node: Node, static: StaticGraph) -> bool:
    factor = {"Div": np.sqrt(2), "Mul": np.sqrt(0.5)}.get(node.operator)
    return factor is not None and _are_constants(static, node.inputs[1:], float(factor))


def _is_swish_gate(attributes: Mapping[str, float]) -> bool:
    slope, offset = attributes.get("alpha", 0.2), attributes.get("beta", 0.5)
    return abs(slope - 1 / 6) < _TOLERANCE and abs(offset - 0.5) < _TOLERANCE


def _join_activations(static: StaticGraph) -> None:
    for node in list(static.nodes):
        reader = static.only_consumer(node.outputs[0])
        if node.operator not in _FUSING_OPERATORS or reader is None:
            continue
        activation = activation_of(reader, static.constants)
        if activation is not None:
            node.activation, node.outputs = activation, reader.outputs
            static.nodes.remove(reader)
    static.count_consumers()


def activation_of(node: Node, constants: Mapping[str, NDArray[Any]]) -> str | None:
    """LiteRT's name of an activation; None if it has none for the node."""
    if node.operator == "Relu":
        return "RELU"
    if node.operator != "Clip":
        return None
    low, high = clip_range(node, constants)
    return {(0.0, 6.0): "RELU6", (0.0, np.inf): "RELU", (-1.0, 1.0): "RELU_N1_TO_1"}.get(
        (low, high)
    )


def clip_range(node: Node, constants: Mapping[str, NDArray[Any]]) -> tuple[float, float]:
    """Range of a Clip, or of a Relu."""
    limits = [0.0, np.inf] if node.operator == "Relu" else [-np.inf, np.inf]
    for index, name in enumerate(node.inputs[1:3]):
        if name:
            limits[index] = float(constants[name])
    return limits[0], limits[1]

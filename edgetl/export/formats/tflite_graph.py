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
_SLOPE_TOLERANCE = 1e-6


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
    del fixed.graph.value_info[:]
    constants = {entry.name: numpy_helper.to_array(entry) for entry in fixed.graph.initializer}
    try:
        inferred = onnx.shape_inference.infer_shapes(fixed, strict_mode=True, data_prop=True)
    except onnx.shape_inference.InferenceError as cause:
        raise ExportError(f"The shapes of the network are not static: {cause}.") from cause
    graph = inferred.graph
    shapes = {name: tuple(value.shape) for name, value in constants.items()}
    for value in [*graph.input, *graph.value_info, *graph.output]:
        dims = value.type.tensor_type.shape.dim
        if all(dim.HasField("dim_value") for dim in dims):
            shapes[value.name] = tuple(dim.dim_value for dim in dims)
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    inputs = [value.name for value in graph.input if value.name not in constants]
    static = StaticGraph([], constants, shapes, inputs, [value.name for value in graph.output])
    _fold_constants(graph.node, static, opset)
    static.count_consumers()
    _join_hard_swish(static)
    _join_activations(static)
    return static


def _fold_constants(nodes: Sequence[onnx.NodeProto], static: StaticGraph, opset: int) -> None:
    constants = static.constants
    for node in nodes:
        attributes = {entry.name: _attribute_value(entry) for entry in node.attribute}
        names = [name for name in node.input if name]
        if node.op_type == "Shape" and node.input[0] in static.shapes:
            shape = np.array(static.shapes[node.input[0]], np.int64)
            constants[node.output[0]] = shape[attributes.get("start", 0) : attributes.get("end")]
        elif (
            all(name in constants for name in names)
            # Quantized weights keep their integers.
            and node.op_type != "DequantizeLinear"
        ):
            evaluator = ReferenceEvaluator(node, opsets={"": opset})
            values = evaluator.run(None, {name: constants[name] for name in names})
            for name, value in zip(node.output, values, strict=True):
                constants[name] = np.asarray(value)
                static.shapes[name] = constants[name].shape
        else:
            static.nodes.append(Node(node.op_type, list(node.input), list(node.output), attributes))


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


def _is_swish_gate(attributes: Mapping[str, float]) -> bool:
    slope, offset = attributes.get("alpha", 0.2), attributes.get("beta", 0.5)
    return abs(slope - 1 / 6) < _SLOPE_TOLERANCE and abs(offset - 0.5) < _SLOPE_TOLERANCE


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

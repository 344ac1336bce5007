"""Rewrites of operators that onnxruntime cannot quantize into equivalent ones that it can."""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

Rewrite = Callable[[NodeProto, onnx.GraphProto], list[NodeProto] | None]
"""Function that returns the replacement of a node, or None to keep it."""


def rewrite_operators(
    network: onnx.ModelProto, kept_operators: Collection[str] = ()
) -> onnx.ModelProto:
    """Return a copy in which operators are replaced by their quantizable form, if there is one.

    Args:
        network: the network, with inferred shapes.
        kept_operators: types of operators that are not replaced.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(network)
    nodes: list[NodeProto] = []
    for node in network.graph.node:
        rewrite = None if node.op_type in kept_operators else _REWRITES.get(node.op_type)
        replacement = rewrite(node, copy.graph) if rewrite else None
        nodes += replacement or [node]
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    return onnx.shape_inference.infer_shapes(copy)


def _hard_sigmoid(node: NodeProto, graph: onnx.GraphProto) -> list[NodeProto]:
    # clip(alpha x + beta, 0, 1), with ONNX's default values.
    attributes = {attribute.name: attribute.f for attribute in node.attribute}
    alpha = attributes.get("alpha", 0.2)
    beta = attributes.get("beta", 0.5)
    return _ramp(node, node.input[0], node.output[0], graph, alpha, beta)


def _hard_swish(node: NodeProto, graph: onnx.GraphProto) -> list[NodeProto]:
    # x clip(x / 6 + 1/2, 0, 1), as ONNX defines it.
    gate = f"{node.name}_gate"
    return [
        *_ramp(node, node.input[0], gate, graph, 1 / 6, 0.5),
        helper.make_node(
            "Mul", [node.input[0], gate], [node.output[0]], name=f"{node.name}_product"
        ),
    ]


def _ramp(
    node: NodeProto, source: str, target: str, graph: onnx.GraphProto, slope: float, offset: float
) -> list[NodeProto]:
    constants = {key: f"{node.name}_{key}" for key in ("slope", "offset", "low", "high")}
    for key, value in (("slope", slope), ("offset", offset), ("low", 0.0), ("high", 1.0)):
        graph.initializer.append(
            numpy_helper.from_array(np.array(value, np.float32), constants[key])
        )
    scaled, shifted = f"{node.name}_scaled", f"{node.name}_shifted"
    return [
        helper.make_node("Mul", [source, constants["slope"]], [scaled], name=f"{node.name}_scale"),
        helper.make_node(
            "Add", [scaled, constants["offset"]], [shifted], name=f"{node.name}_shift"
        ),
        helper.make_node(
            "Clip",
            [shifted, constants["low"], constants["high"]],
            [target],
            name=f"{node.name}_clip",
        ),
    ]


def _reduce_mean(node: NodeProto, graph: onnx.GraphProto) -> list[NodeProto] | None:
    # A mean over height and width is a global average pool.
    attributes = {attribute.name: attribute.i for attribute in node.attribute}
    axes_inputs = list(node.input)[1:]
    axes = next((value for value in graph.initializer if value.name in axes_inputs), None)
    source = next((value for value in graph.value_info if value.name == node.input[0]), None)
    if axes is None or source is None or len(source.type.tensor_type.shape.dim) != 4:
        return None
    if sorted(axis % 4 for axis in numpy_helper.to_array(axes).tolist()) != [2, 3]:
        return None
    if attributes.get("keepdims", 1):
        return [
            helper.make_node("GlobalAveragePool", [node.input[0]], [node.output[0]], name=node.name)
        ]
    pooled, shape = f"{node.name}_pooled", f"{node.name}_shape"
    graph.initializer.append(numpy_helper.from_array(np.array([0, -1], np.int64), shape))
    graph.value_info.append(helper.make_tensor_value_info(pooled, TensorProto.FLOAT, None))
    return [
        helper.make_node("GlobalAveragePool", [node.input[0]], [pooled], name=node.name),
        helper.make_node("Reshape", [pooled, shape], [node.output[0]], name=f"{node.name}_flat"),
    ]


DECOMPOSED_OPERATORS = {"HardSigmoid", "HardSwish"}
"""Operators whose quantizable form consists of several operators with rounding in each."""
_REWRITES: dict[str, Rewrite] = {
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _hard_swish,
    "ReduceMean": _reduce_mean,
}

"""Operators that onnxruntime does not quantize, written as ones that it does; in real numbers nothing changes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

Rewrite = Callable[[NodeProto, onnx.GraphProto], list[NodeProto] | None]
"""The nodes that take a node's place, or None where it stays."""


def rewrite_operators(network: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which every node that has one is replaced by its quantizable form."""
    copy = onnx.ModelProto()
    copy.CopyFrom(network)
    nodes: list[NodeProto] = []
    for node in network.graph.node:
        replacement = (
            _REWRITES[node.op_type](node, copy.graph) if node.op_type in _REWRITES else None
        )
        nodes += replacement or [node]
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    return onnx.shape_inference.infer_shapes(copy)


def _hard_sigmoid(node: NodeProto, graph: onnx.GraphProto) -> list[NodeProto]:
    """clip(alpha x + beta, 0, 1)."""
    given = {attribute.name: attribute.f for attribute in node.attribute}
    return _ramp(
        node, node.input[0], node.output[0], graph, given.get("alpha", 0.2), given.get("beta", 0.5)
    )


def _hard_swish(node: NodeProto, graph: onnx.GraphProto) -> list[NodeProto]:
    """X clip(x / 6 + 1/2, 0, 1), as ONNX defines it."""
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
    """The mean over height and width is a global average pool."""
    keep = next((attribute.i for attribute in node.attribute if attribute.name == "keepdims"), 1)
    axes = next(
        (
            numpy_helper.to_array(value).tolist()
            for value in graph.initializer
            if value.name in list(node.input)[1:]
        ),
        None,
    )
    rank = next(
        (
            len(value.type.tensor_type.shape.dim)
            for value in graph.value_info
            if value.name == node.input[0]
        ),
        0,
    )
    if axes is None or rank != 4 or sorted(axis % 4 for axis in axes) != [2, 3]:
        return None
    if keep:
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
"""Operators whose quantizable form is several operators, each of which is rounded."""
_REWRITES: dict[str, Rewrite] = {
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _hard_swish,
    "ReduceMean": _reduce_mean,
}

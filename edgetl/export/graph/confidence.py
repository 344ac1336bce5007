"""Nodes for calibrated probabilities and the score of unknown images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from edgetl.export.confidence.unknown import ENERGY_TEMPERATURE, FeatureBank, UnknownScore
from edgetl.export.graph.torch_export import LOGITS

FEATURES = "unknown_features"
"""Value with the penultimate features, float32 [batch, features]."""
UNKNOWN_SCORE = "unknown_score"
_PREFIX = "unknown_"
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
_SMALLEST_NORM = 1e-12


def append_features(model: onnx.ModelProto) -> bool:
    """Append nodes that compute FEATURES: the input of the last layer, averaged over positions.

    Returns:
        False, and the model is unchanged, if the layer is not found.
    """
    layer = _find_last_layer(model.graph)
    if layer is None:
        return False
    value = layer.input[0]
    producer = _find_producer(model.graph, value)
    if producer is not None and producer.op_type == "DynamicQuantizeLinear":
        value = producer.input[0]
    nodes = []
    if _PRODUCTS[layer.op_type] == 4:
        nodes.append(helper.make_node("GlobalAveragePool", [value], [_PREFIX + "pooled"]))
        value = _PREFIX + "pooled"
    nodes += [
        helper.make_node("Flatten", [value], [_PREFIX + "flat"], axis=1),
        helper.make_node("Cast", [_PREFIX + "flat"], [FEATURES], to=TensorProto.FLOAT),
    ]
    _append_nodes(model.graph, nodes)
    return True


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


def append_unknown_score(model: onnx.ModelProto, score: UnknownScore) -> None:
    """Append the output `unknown_score`, float32 [batch], computed from FEATURES and LOGITS.

    Constants of the bank are stored in int8; ONNX Runtime converts them when it loads the file. The
    weights of the score are folded into constants, as every node takes some microseconds.
    """
    graph = _ScoreGraph(model.graph)
    parts = []
    if score.bank is not None:
        parts.append(graph.append_distance(score.bank, score.distance_weight))
    if score.energy_weight:
        parts.append(graph.append_energy(score.energy_weight))
    if score.max_logit_weight:
        parts.append(graph.append_reduced_logits(LOGITS, "ReduceMax", -score.max_logit_weight))
    total = graph.sum([*parts, graph.constant("constant", [[score.constant]])])
    graph.append("Squeeze", [total, graph.axes], UNKNOWN_SCORE)
    output = helper.make_tensor_value_info(UNKNOWN_SCORE, TensorProto.FLOAT, ["batch"])
    model.graph.output.append(output)


class _ScoreGraph:
    """Builder of the nodes of a score; values are [batch, 1] unless stated otherwise."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._graph = graph
        self.axes = self.constant("axes", np.array([1], np.int64))

    def constant(self, name: str, value: Sequence[object] | NDArray[np.generic]) -> str:
        """Add a constant, float32 unless it is an array of integers; return its name."""
        array = np.asarray(value)
        if array.dtype.kind != "i":
            array = array.astype(np.float32)
        self._graph.initializer.append(numpy_helper.from_array(array, _PREFIX + name))
        return _PREFIX + name

    def append(self, operator: str, inputs: Sequence[str], output: str, **attributes: int) -> str:
        """Append a node with one output; return the output's name."""
        _append_nodes(
            self._graph,
            [helper.make_node(operator, inputs, [output], **dict[str, Any](attributes))],
        )
        return output

    def append_distance(self, bank: FeatureBank, weight: float) -> str:
        """Append the distance to the nearest neighbors, see `FeatureBank.distances`.

        Squares are expanded, |c - b|^2 = |c|^2 - 2 c b + |b|^2, so that the distances to all images
        of the bank are one matrix product.
        """
        scale, offset = bank.residual_scale, bank.offset.astype(np.float64)
        steps = bank.bank_scale.astype(np.float64)[:, None]
        neighbors = bank.bank * steps
        squares = (neighbors**2).sum(0) + 2 * offset @ neighbors
        # The last coordinate is the product with the mean; its row of the product is constant.
        codes = np.concatenate([bank.bank, np.full((1, bank.bank.shape[1]), 127, np.int8)])
        code_steps = np.concatenate([-2 * steps, [[-2 * scale / 127]]])

        norm = self.append("ReduceL2", [FEATURES, self.axes], _PREFIX + "norm", keepdims=1)
        smallest = self.constant("smallest_norm", [_SMALLEST_NORM])
        norm = self.append("Max", [norm, smallest], _PREFIX + "positive_norm")
        matrix = self._int8_matrix("projection", bank.projection)
        product = self.append("MatMul", [FEATURES, matrix], _PREFIX + "codes_product")
        product = self._scale(product, "projection", bank.projection_scale)
        coordinates = self.append("Div", [product, norm], _PREFIX + "coordinates")
        scaled = self._scale(coordinates, "bank", weight * code_steps.ravel())
        matrix = self._int8_matrix("bank", codes)
        bias = self.constant("bank_bias", weight * (squares + scale * (1 + bank.mean_square)))
        products = self.append("Gemm", [scaled, matrix, bias], _PREFIX + "products")
        count = self.constant("neighbors", np.array([bank.neighbors], np.int64))
        nodes = helper.make_node(
            "TopK",
            [products, count],
            [_PREFIX + "nearest", _PREFIX + "nearest_indices"],
            axis=1,
            largest=0,
            sorted=1,  # OpenCV has no other
        )
        _append_nodes(self._graph, [nodes])
        mean = self.append(
            "ReduceMean", [_PREFIX + "nearest", self.axes], _PREFIX + "nearest_mean", keepdims=1
        )
        offsets = self.constant("offset", np.append(offset, 0.0))
        centered = self.append("Sub", [coordinates, offsets], _PREFIX + "centered")
        square = self.append("Mul", [centered, centered], _PREFIX + "square")
        weights = np.append(weight * (1 - bank.residual_weights.astype(np.float64)), 0.0)
        square_weights = self.constant("square_weights", weights[:, None])
        residual = self.append("MatMul", [square, square_weights], _PREFIX + "residual")
        return self.append("Add", [mean, residual], _PREFIX + "distance")

    def append_energy(self, weight: float) -> str:
        """Append the weighted energy of the logits, see `compute_energy`."""
        factor = self.constant("energy_scale", [1 / ENERGY_TEMPERATURE])
        scaled = self.append("Mul", [LOGITS, factor], _PREFIX + "scaled_logits")
        return self.append_reduced_logits(scaled, "ReduceLogSumExp", -weight * ENERGY_TEMPERATURE)

    def append_reduced_logits(self, logits: str, operator: str, weight: float) -> str:
        """Append a weighted reduction of the value `logits`, [batch, classes]."""
        name = _PREFIX + operator.lower()
        reduced = self.append(operator, [logits, self.axes], name, keepdims=1)
        factor = self.constant(f"{operator.lower()}_weight", [[weight]])
        return self.append("Mul", [reduced, factor], f"{name}_weighted")

    def sum(self, values: Sequence[str]) -> str:
        """Append the sum of values."""
        total = values[0]
        for number, value in enumerate(values[1:], 1):
            total = self.append("Add", [total, value], f"{_PREFIX}sum_{number}")
        return total

    def _int8_matrix(self, name: str, codes: NDArray[np.int8]) -> str:
        """Append a matrix that is stored in int8; its steps are applied by `_scale`.

        OpenVINO takes a product of such a constant with its steps for compressed weights of a
        layer, and ignores steps by row. OpenCV 4 cannot multiply it at all.
        """
        stored = self.constant(f"{name}_int8", codes)
        return self.append("Cast", [stored], f"{_PREFIX}{name}", to=TensorProto.FLOAT)

    def _scale(self, value: str, name: str, steps: NDArray[np.floating]) -> str:
        """Append the product of a value [batch, n] and steps [n]."""
        factor = self.constant(f"{name}_steps", np.asarray(steps))
        return self.append("Mul", [value, factor], f"{_PREFIX}{name}_scaled")


def append_probabilities(model: onnx.ModelProto, temperature: float, name: str) -> None:
    """Append the output `name`: the softmax of the logits divided by the temperature.

    Args:
        model: has the output LOGITS, float32 [batch, classes].
        temperature: 1 leaves the division out.
        name: name of the output.
    """
    value = LOGITS
    logits = next(output for output in model.graph.output if output.name == LOGITS)
    classes = logits.type.tensor_type.shape.dim[1].dim_value
    if temperature != 1:
        factor = numpy_helper.from_array(np.array(1 / temperature, np.float32), "calibration")
        model.graph.initializer.append(factor)
        value = "calibrated_logits"
        _append_nodes(model.graph, [helper.make_node("Mul", [LOGITS, "calibration"], [value])])
    model.graph.node.append(helper.make_node("Softmax", [value], [name], name=name, axis=-1))
    model.graph.output.append(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", classes])
    )


def _append_nodes(graph: onnx.GraphProto, nodes: Sequence[NodeProto]) -> None:
    for node in nodes:
        node.name = node.output[0]
        graph.node.append(node)

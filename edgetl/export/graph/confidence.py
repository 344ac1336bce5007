"""Nodes for calibrated probabilities and the score of unknown images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgetl.export.confidence.unknown import (
    ENERGY_TEMPERATURE,
    FeatureBank,
    FeatureSpace,
    IntermediateExcess,
    UnknownScore,
)
from edgetl.export.graph.features import FEATURES, INTERMEDIATE_FEATURES, append_nodes
from edgetl.export.graph.torch_export import LOGITS

_PREFIX, _SCORE = "unknown_", "score"
UNKNOWN_SCORE = _PREFIX + _SCORE
_SMALLEST_NORM = 1e-12


def append_unknown_score(model: onnx.ModelProto, score: UnknownScore) -> None:
    """Append the output `unknown_score`, float32 [batch].

    It is computed from LOGITS, FEATURES and INTERMEDIATE_FEATURES, as far as the score needs them.

    Constants of the bank are stored in int8; ONNX Runtime converts them when it loads the file. The
    weights of the score are folded into constants, as every node takes some microseconds.
    """
    graph = _ScoreGraph(model.graph)
    parts = []
    if score.bank is not None:
        parts.append(graph.append_distance(score.bank, score.distance_weight))
    if score.intermediate is not None:
        builder = _ScoreGraph(model.graph, f"{INTERMEDIATE_FEATURES}_")
        parts.append(builder.append_excess(score.intermediate))
    if score.energy_weight:
        parts.append(graph.append_energy(score.energy_weight))
    if score.max_logit_weight:
        parts.append(graph.append_reduced_logits(LOGITS, "ReduceMax", -score.max_logit_weight))
    total = graph.sum([*parts, graph.constant("constant", [[score.constant]])])
    graph.append("Squeeze", [total, graph.axes], _SCORE)
    output = helper.make_tensor_value_info(UNKNOWN_SCORE, TensorProto.FLOAT, ["batch"])
    model.graph.output.append(output)


class _ScoreGraph:
    """Builder of the nodes of a score; values are [batch, 1] unless stated otherwise."""

    def __init__(self, graph: onnx.GraphProto, prefix: str = _PREFIX) -> None:
        self._graph = graph
        self._prefix = prefix
        self.axes = self.constant("axes", np.array([1], np.int64))

    def constant(self, name: str, value: Sequence[object] | NDArray[np.generic]) -> str:
        """Add a constant, float32 unless it is an array of integers; return its name."""
        array = np.asarray(value)
        if array.dtype.kind != "i":
            array = array.astype(np.float32)
        self._graph.initializer.append(numpy_helper.from_array(array, self._prefix + name))
        return self._prefix + name

    def append(self, operator: str, inputs: Sequence[str], output: str, **attributes: int) -> str:
        """Append a node with one output; return the output's name, which starts with the prefix."""
        name = self._prefix + output
        append_nodes(
            self._graph,
            [helper.make_node(operator, inputs, [name], **dict[str, Any](attributes))],
        )
        return name

    def append_distance(self, bank: FeatureBank, weight: float) -> str:
        """Append the distance to the nearest neighbors, see `FeatureBank.distances`.

        Squares are expanded, |c - b|^2 = |c|^2 - 2 c b + |b|^2, so that the distances to all images
        of the bank are one matrix product.
        """
        space = bank.space
        scale, offset = space.residual_scale, space.offset.astype(np.float64)
        steps = bank.bank_scale.astype(np.float64)[:, None]
        neighbors = bank.bank * steps
        squares = (neighbors**2).sum(0) + 2 * offset @ neighbors
        # The last coordinate is the product with the mean; its row of the product is constant.
        codes = np.concatenate([bank.bank, np.full((1, bank.bank.shape[1]), 127, np.int8)])
        code_steps = np.concatenate([-2 * steps, [[-2 * scale / 127]]])

        coordinates = self._coordinates(FEATURES, space)
        scaled = self._scale(coordinates, "bank", weight * code_steps.ravel())
        matrix = self._int8_matrix("bank", codes)
        bias = self.constant("bank_bias", weight * (squares + scale * (1 + space.mean_square)))
        products = self.append("Gemm", [scaled, matrix, bias], "products")
        count = self.constant("neighbors", np.array([bank.neighbors], np.int64))
        nodes = helper.make_node(
            "TopK",
            [products, count],
            [self._prefix + "nearest", self._prefix + "nearest_indices"],
            axis=1,
            largest=0,
            sorted=1,  # OpenCV has no other
        )
        append_nodes(self._graph, [nodes])
        mean = self.append(
            "ReduceMean",
            [self._prefix + "nearest", self.axes],
            "nearest_mean",
            keepdims=1,
        )
        residual = self._squares(coordinates, space, weight)
        return self.append("Add", [mean, residual], "distance")

    def append_excess(self, part: IntermediateExcess) -> str:
        """Append the excess of the intermediate distance, see `IntermediateExcess.compute`."""
        space, scale = part.space, part.space.residual_scale
        coordinates = self._coordinates(INTERMEDIATE_FEATURES, space)
        # The last coordinate is the product with the mean.
        linear = np.zeros((len(space.offset) + 1, 1))
        linear[-1] = -2 * scale * part.weight
        matrix = self.constant("linear", linear)
        bias = self.constant("bias", [part.weight * (scale * (1 + space.mean_square) - part.limit)])
        terms = self.append("Gemm", [coordinates, matrix, bias], "terms")
        squares = self._squares(coordinates, space, part.weight)
        total = self.append("Add", [terms, squares], "total")
        return self.append("Relu", [total], "excess")

    def _coordinates(self, features: str, space: FeatureSpace) -> str:
        """Append the coordinates of features, without offset, [batch, dimensions + 1]."""
        norm = self.append("ReduceL2", [features, self.axes], "norm", keepdims=1)
        smallest = self.constant("smallest_norm", [_SMALLEST_NORM])
        norm = self.append("Max", [norm, smallest], "positive_norm")
        matrix = self._int8_matrix("projection", space.projection)
        product = self.append("MatMul", [features, matrix], "codes_product")
        product = self._scale(product, "projection", space.projection_scale)
        return self.append("Div", [product, norm], "coordinates")

    def _squares(self, coordinates: str, space: FeatureSpace, weight: float) -> str:
        """Append the part of a distance that is a weighted sum of squared coordinates."""
        offsets = self.constant("offset", np.append(space.offset.astype(np.float64), 0.0))
        centered = self.append("Sub", [coordinates, offsets], "centered")
        square = self.append("Mul", [centered, centered], "square")
        # The 1 is the squared norm of the coordinates, a part of each distance.
        weights = np.append(weight * (1 - space.residual_weights.astype(np.float64)), 0.0)
        square_weights = self.constant("square_weights", weights[:, None])
        return self.append("MatMul", [square, square_weights], "residual")

    def append_energy(self, weight: float) -> str:
        """Append the weighted energy of the logits, see `compute_energy`."""
        factor = self.constant("energy_scale", [1 / ENERGY_TEMPERATURE])
        scaled = self.append("Mul", [LOGITS, factor], "scaled_logits")
        return self.append_reduced_logits(scaled, "ReduceLogSumExp", -weight * ENERGY_TEMPERATURE)

    def append_reduced_logits(self, logits: str, operator: str, weight: float) -> str:
        """Append a weighted reduction of the value `logits`, [batch, classes]."""
        name = operator.lower()
        reduced = self.append(operator, [logits, self.axes], name, keepdims=1)
        factor = self.constant(f"{operator.lower()}_weight", [[weight]])
        return self.append("Mul", [reduced, factor], f"{name}_weighted")

    def sum(self, values: Sequence[str]) -> str:
        """Append the sum of values."""
        total = values[0]
        for number, value in enumerate(values[1:], 1):
            total = self.append("Add", [total, value], f"sum_{number}")
        return total

    def _int8_matrix(self, name: str, codes: NDArray[np.int8]) -> str:
        """Append a matrix that is stored in int8; its steps are applied by `_scale`.

        OpenVINO takes a product of such a constant with its steps for compressed weights of a
        layer, and ignores steps by row. OpenCV 4 cannot multiply it at all.
        """
        stored = self.constant(f"{name}_int8", codes)
        return self.append("Cast", [stored], name, to=TensorProto.FLOAT)

    def _scale(self, value: str, name: str, steps: NDArray[np.floating]) -> str:
        """Append the product of a value [batch, n] and steps [n]."""
        factor = self.constant(f"{name}_steps", np.asarray(steps))
        return self.append("Mul", [value, factor], f"{name}_scaled")


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
        append_nodes(model.graph, [helper.make_node("Mul", [LOGITS, "calibration"], [value])])
    model.graph.node.append(helper.make_node("Softmax", [value], [name], name=name, axis=-1))
    model.graph.output.append(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", classes])
    )

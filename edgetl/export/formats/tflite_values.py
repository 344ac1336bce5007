"""Values of an ONNX graph while it is converted to LiteRT.

Images are channels-last in LiteRT. Each value records the order of its axes, so that transpositions
appear only where an operator needs the other order; convolutional networks have none. Quantized
values keep the steps of the QDQ nodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from edgetl.core.errors import ExportError
from edgetl.export.formats.tflite_file import Quantization, TfliteModel
from edgetl.export.formats.tflite_graph import Node, StaticGraph


@dataclass(frozen=True)
class Value:
    """A value of the ONNX graph in the LiteRT graph."""

    tensor: int
    shape: tuple[int, ...]
    """Shape in the ONNX graph."""
    channels_last: bool = False
    """Whether the tensor has the axes [batch, height, width, channels ...] instead of [batch,
    channels ..., height, width]."""
    quantization: Quantization | None = None
    """Steps of an int8 tensor; None for float32."""
    is_non_negative: bool = False


@dataclass(frozen=True)
class QuantizedConstant:
    """Integers of a constant with their steps."""

    integers: NDArray[np.int8]
    scale: NDArray[np.float32]
    zero_point: int
    axis: int

    def dequantize(self) -> NDArray[np.float32]:
        """Return the real numbers."""
        shape = [1] * self.integers.ndim
        if self.scale.size > 1:
            shape[self.axis] = -1
        centered = self.integers.astype(np.float32) - np.float32(self.zero_point)
        return np.asarray(centered * self.scale.reshape(shape), np.float32)


class Conversion:
    """State of a conversion: the values of the ONNX graph and the growing LiteRT graph."""

    def __init__(self, graph: StaticGraph) -> None:
        self.graph = graph
        self.model = TfliteModel()
        self._values: dict[str, Value] = {}
        self.quantized_constants: dict[str, QuantizedConstant] = {}
        # Tensors in another order of axes or type, by the tensor that they were made of.
        self._variants: dict[tuple[int, str], Value] = {}

    def add_input(self, name: str) -> int:
        """Add the image input, channels last; return its tensor."""
        shape = self.shape(name)
        tensor = self.model.add_tensor(name, permute(shape, last_order(len(shape))))
        self._values[name] = Value(tensor, shape, channels_last=True)
        return tensor

    # Values

    def value(self, name: str) -> Value:
        """Return a value that is computed from the image.

        Raises:
            ExportError: it is a constant.
        """
        if name not in self._values:
            raise ExportError(f"LiteRT cannot compute with the constant {name} at this place.")
        return self._values[name]

    def real(self, name: str) -> Value:
        """Return a value in float32."""
        value = self.value(name)
        if value.quantization is None:
            return value
        return self._variant(value, "DEQUANTIZE", replace(value, quantization=None))

    def channels_last(self, value: Value) -> Value:
        """Return an image value as [batch, height, width, channels]."""
        if value.channels_last:
            return value
        order = self.integers(last_order(len(value.shape)))
        return self._variant(value, "TRANSPOSE", replace(value, channels_last=True), order)

    def channels_first(self, value: Value) -> Value:
        """Return a value with ONNX's order of axes."""
        if not value.channels_last:
            return value
        result = replace(value, channels_last=False)
        if value.shape[-2:] == (1, 1):
            return self._variant(value, "RESHAPE", result, self.shape_constant(value.shape))
        order = np.argsort(last_order(len(value.shape))).tolist()
        return self._variant(value, "TRANSPOSE", result, self.integers(order))

    def _variant(self, value: Value, operator: str, result: Value, *inputs: int) -> Value:
        key = (value.tensor, operator)
        if key not in self._variants:
            self._variants[key] = self.emit(operator, [value.tensor, *inputs], result)
        return self._variants[key]

    def shape_constant(self, shape: Sequence[int]) -> int:
        """Add a shape whose batch is variable, so that the file can be resized."""
        return self.integers([-1, *shape[1:]])

    def integers(self, values: Sequence[int]) -> int:
        """Add a constant such as axes or sizes."""
        return self.model.add_constant("", np.array(values, np.int32))

    def constant(self, name: str) -> NDArray[np.float32]:
        """Return a constant in float32.

        Raises:
            ExportError: it is computed from the image.
        """
        if name in self.quantized_constants:
            return self.quantized_constants[name].dequantize()
        if name in self.graph.constants:
            return np.asarray(self.graph.constants[name], np.float32)
        raise ExportError(f"The weight {name} is not constant, which LiteRT needs.")

    def is_constant(self, name: str) -> bool:
        """Return whether a value does not depend on the image."""
        return name in self.quantized_constants or name in self.graph.constants

    def is_int8_constant(self, name: str) -> bool:
        """Return whether a constant can be LiteRT's weights in int8, which are symmetric."""
        constant = self.quantized_constants.get(name)
        return constant is not None and constant.zero_point == 0

    # Operators

    def emit(
        self, operator: str, inputs: Sequence[int], result: Value, options: object | None = None
    ) -> Value:
        """Add an operator; return `result` with its new tensor."""
        shape = result.shape
        if result.channels_last:
            shape = permute(shape, last_order(len(shape)))
        dtype = "float32" if result.quantization is None else "int8"
        tensor = self.model.add_tensor("", shape, dtype, result.quantization)
        self.model.add_operator(operator, inputs, [tensor], options)
        return replace(result, tensor=tensor)

    def store(self, name: str, value: Value) -> None:
        """Record the value of an ONNX name; LiteRT's tensor gets the name."""
        self._values[name] = value
        tensor = self.model.tensors[value.tensor]
        tensor.name = tensor.name or name

    def target_steps(self, name: str) -> Quantization | None:
        """Return the steps that a value is quantized with, if nothing reads it in float32."""
        readers = self.graph.consumers.get(name, [])
        if name in self.graph.outputs or any(
            reader.operator != "QuantizeLinear" for reader in readers
        ):
            return None
        steps = [self.steps(reader) for reader in readers]
        return steps[0] if steps and all(step.equals(steps[0]) for step in steps) else None

    def steps(self, node: Node) -> Quantization:
        """Return the steps of a QuantizeLinear or DequantizeLinear as those of int8.

        Raises:
            ExportError: the zero points of the channels differ.
        """
        scale = np.atleast_1d(self.graph.constants[node.inputs[1]]).astype(np.float32)
        zero_points = np.zeros(1, np.uint8)
        if len(node.inputs) > 2 and node.inputs[2]:
            zero_points = np.atleast_1d(self.graph.constants[node.inputs[2]])
        if np.any(zero_points != zero_points[0]):
            raise ExportError(f"LiteRT has one zero point for a tensor, {node.inputs[0]} has more.")
        offset = 128 if zero_points.dtype == np.uint8 else 0
        axis = node.attributes.get("axis", 1) if scale.size > 1 else 0
        return Quantization(scale, int(zero_points[0]) - offset, axis)

    def requantize(self, value: Value, steps: Quantization | None) -> Value:
        """Return a value with other steps."""
        if steps is None or (value.quantization and value.quantization.equals(steps)):
            return value
        return self.emit("QUANTIZE", [value.tensor], replace(value, quantization=steps))

    def common_steps(self, node: Node) -> Quantization | None:
        """Return the output's steps if the output and all inputs are int8."""
        steps = self.target_steps(node.outputs[0])
        for name in node.inputs:
            constant = self.quantized_constants.get(name)
            is_int8 = constant is not None and constant.scale.size == 1
            if not self.is_constant(name):
                is_int8 = self.value(name).quantization is not None
            if not is_int8:
                return None
        return steps

    def moved(self, node: Node) -> tuple[Value, Quantization | None]:
        """Return the input of an operator that keeps the steps, and the output's."""
        value = self.value(node.inputs[0])
        steps = self.target_steps(node.outputs[0])
        if value.quantization is not None and steps is not None:
            return value, steps
        return self.real(node.inputs[0]), None

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a value.

        Raises:
            ExportError: it depends on the image.
        """
        if name not in self.graph.shapes:
            raise ExportError(f"The shape of {name} is not static, which LiteRT needs.")
        return self.graph.shapes[name]


def permute(shape: Sequence[int], order: Sequence[int]) -> tuple[int, ...]:
    """Return the entries of a shape in another order."""
    return tuple(shape[axis] for axis in order)


def last_order(rank: int) -> tuple[int, ...]:
    """Return the order of axes that moves height and width behind the batch."""
    return (0, rank - 2, rank - 1, *range(1, rank - 2))


def activation_code(name: str) -> int:
    """Return the number of an activation in the schema."""
    return int(getattr(schema.ActivationFunctionType, name))

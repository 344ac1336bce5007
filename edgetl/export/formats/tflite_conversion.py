"""Conversion of an ONNX network to LiteRT, in float32 or, from QDQ form, in int8.

An operator between DequantizeLinear and QuantizeLinear becomes one int8 operator; any other is
computed in float32.

Sources: ONNX's operator reference; LiteRT's operators, their options in its schema, and its
quantization specification.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from edgetl.core.errors import ExportError
from edgetl.export.formats.tflite_file import Quantization
from edgetl.export.formats.tflite_graph import Node, activation_of, clip_range, read_static_graph
from edgetl.export.formats.tflite_values import (
    Conversion,
    QuantizedConstant,
    Value,
    activation_code,
    last_order,
    permute,
)

_PRODUCTS = ("Gemm", "MatMul")
_INT32_MAX = 2**31 - 1
_LOGISTIC_STEPS = Quantization(np.array([1 / 256], np.float32), -128)
"""Steps of the output that LiteRT prescribes for a logistic function in int8."""


def convert_onnx(model: onnx.ModelProto, path: Path) -> list[str]:
    """Write an ONNX model with one image input as a .tflite file.

    The input has the axes [1, height, width, channels]; inputs and outputs keep their names, and the
    metadata of the ONNX file becomes metadata of the file.

    Args:
        model: input float32 [batch, channels, height, width], in float32 or QDQ form.
        path: file to write.

    Returns:
        Names of LiteRT's operators, in order.

    Raises:
        ExportError: there is no LiteRT operator for a node.
    """
    graph = read_static_graph(model)
    conversion = Conversion(graph)
    [name, *others] = graph.inputs
    if others or len(graph.shapes[name]) != 4:
        raise ExportError(f"LiteRT files have one image input, got {', '.join(graph.inputs)}.")
    pixels = conversion.add_input(name)
    for node in graph.nodes:
        handler = _HANDLERS.get(node.operator)
        if handler is None:
            raise ExportError(
                f"edgetl has no conversion of the operator {node.operator} to LiteRT. Leave out "
                "litert for this architecture."
            )
        handler(conversion, node)
    outputs = {
        output: conversion.channels_first(conversion.real(output)).tensor
        for output in graph.outputs
    }
    for output, tensor in outputs.items():
        conversion.model.tensors[tensor].name = output
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    conversion.model.write(path, {name: pixels}, outputs, metadata)
    return conversion.model.operator_names()


# Quantization


def _quantize(conversion: Conversion, node: Node) -> None:
    value = conversion.value(node.inputs[0])
    conversion.store(node.outputs[0], conversion.requantize(value, conversion.steps(node)))


def _dequantize(conversion: Conversion, node: Node) -> None:
    name = node.inputs[0]
    if name not in conversion.graph.constants:
        # The int8 tensor stands for the real value; readers in float32 convert it.
        conversion.store(node.outputs[0], conversion.value(name))
        return
    integers, steps = conversion.graph.constants[name], conversion.steps(node)
    if integers.dtype == np.uint8:
        integers = (integers.astype(np.int16) - 128).astype(np.int8)
    constant = QuantizedConstant(integers, steps.scale, steps.zero_point, steps.axis)
    if integers.dtype == np.int8:
        conversion.quantized_constants[node.outputs[0]] = constant
    else:  # a bias in int32, whose steps follow from input and weights
        conversion.graph.constants[node.outputs[0]] = constant.dequantize()


# Layers with weights


def _convolution(conversion: Conversion, node: Node) -> None:
    groups = node.attributes.get("group", 1)
    outputs, inputs_per_group, *kernel = conversion.shape(node.inputs[1])
    is_depthwise = inputs_per_group == 1 and groups > 1
    order = (1, 2, 3, 0) if is_depthwise else (0, 2, 3, 1)
    value, steps = _layer_input(conversion, node)
    value = conversion.channels_last(value)
    strides = node.attributes.get("strides", [1, 1])
    dilations = node.attributes.get("dilations", [1, 1])
    extents = [(size - 1) * step + 1 for size, step in zip(kernel, dilations, strict=True)]
    result = conversion.shape(node.outputs[0])
    value, padding = _pad_window(conversion, value, node, extents, strides, result)
    weights, bias = _layer_constants(conversion, node, value, order)
    options = schema.DepthwiseConv2DOptionsT() if is_depthwise else schema.Conv2DOptionsT()
    options.padding, options.fusedActivationFunction = padding, activation_code(node.activation)
    options.strideH, options.strideW = strides
    options.dilationHFactor, options.dilationWFactor = dilations
    if is_depthwise:
        options.depthMultiplier = outputs // groups
    output = Value(0, result, True, steps, node.activation.startswith("RELU"))
    operator = "DEPTHWISE_CONV_2D" if is_depthwise else "CONV_2D"
    inputs = [value.tensor, weights, bias]
    conversion.store(node.outputs[0], conversion.emit(operator, inputs, output, options))


def _fully_connected(conversion: Conversion, node: Node) -> None:
    """Convert Gemm and MatMul with constant weights, and the product of two values."""
    if not conversion.is_constant(node.inputs[1]):
        _matrix_product(conversion, node)
        return
    attributes = node.attributes
    if attributes.get("transA", 0) or attributes.get("alpha", 1.0) != 1.0:
        raise ExportError("LiteRT has no product with transA or alpha of ONNX's Gemm.")
    order = (0, 1) if attributes.get("transB", 0) else (1, 0)
    value, steps = _layer_input(conversion, node)
    value = conversion.channels_first(value)
    weights, bias = _layer_constants(conversion, node, value, order)
    options = schema.FullyConnectedOptionsT()
    if value.quantization is None and conversion.is_int8_constant(node.inputs[1]):
        # The logits are not quantized. LiteRT quantizes the layer's input, which was int8 already.
        options.asymmetricQuantizeInputs = True
    options.fusedActivationFunction = activation_code(node.activation)
    options.keepNumDims = True
    result = Value(
        0, conversion.shape(node.outputs[0]), False, steps, node.activation.startswith("RELU")
    )
    inputs = [value.tensor, weights, bias]
    conversion.store(node.outputs[0], conversion.emit("FULLY_CONNECTED", inputs, result, options))


def _matrix_product(conversion: Conversion, node: Node) -> None:
    values = [conversion.channels_first(conversion.real(name)) for name in node.inputs]
    result = Value(0, conversion.shape(node.outputs[0]))
    tensors = [value.tensor for value in values]
    options = schema.BatchMatMulOptionsT()
    conversion.store(node.outputs[0], conversion.emit("BATCH_MATMUL", tensors, result, options))


def _layer_input(conversion: Conversion, node: Node) -> tuple[Value, Quantization | None]:
    value, steps = conversion.moved(node)
    if steps is None or not conversion.is_int8_constant(node.inputs[1]):
        return conversion.real(node.inputs[0]), None
    return value, steps


def _layer_constants(
    conversion: Conversion, node: Node, value: Value, order: Sequence[int]
) -> tuple[int, int]:
    """Add weights and bias for an input in float32 or int8; return their tensors."""
    name = node.inputs[1]
    weights = conversion.constant(name).transpose(order)
    channel_axis = 0 if node.operator in _PRODUCTS else order.index(0)
    bias = np.zeros(weights.shape[channel_axis], np.float32)
    if len(node.inputs) > 2 and node.inputs[2]:
        bias = bias + conversion.constant(node.inputs[2]).ravel() * node.attributes.get("beta", 1.0)
    real_bias = bias.astype(np.float32)
    is_product = node.operator in _PRODUCTS
    if not conversion.is_int8_constant(name) or (value.quantization is None and not is_product):
        tensor = conversion.model.add_constant(name, weights.copy())
        return tensor, conversion.model.add_constant(f"{name}.bias", real_bias)
    constant = conversion.quantized_constants[name]
    tensor = conversion.model.add_constant(
        name, constant.integers.transpose(order).copy(), _weight_steps(constant, order)
    )
    if value.quantization is None:
        return tensor, conversion.model.add_constant(f"{name}.bias", real_bias)
    scale = value.quantization.scale.astype(np.float64) * constant.scale
    rounded = np.clip(np.rint(bias / scale), -_INT32_MAX, _INT32_MAX).astype(np.int32)
    steps = Quantization(scale.astype(np.float32))
    return tensor, conversion.model.add_constant(f"{name}.bias", rounded, steps)


def _weight_steps(constant: QuantizedConstant, order: Sequence[int]) -> Quantization:
    axis = order.index(constant.axis % len(order)) if constant.scale.size > 1 else 0
    return Quantization(constant.scale, 0, axis)


# Windows: padding and pooling


def _pad_window(
    conversion: Conversion,
    value: Value,
    node: Node,
    extents: Sequence[int],
    strides: Sequence[int],
    result: Sequence[int],
    lowest: bool = False,
) -> tuple[Value, int]:
    """Pad an image for a sliding window, unless LiteRT's own padding is the same.

    Args:
        conversion: the conversion.
        value: image, channels last.
        node: node with ONNX's attributes.
        extents: height and width of the window, with dilation.
        strides: steps of the window.
        result: shape of the output.
        lowest: pad with the lowest number instead of 0.

    Returns:
        The padded image and LiteRT's padding for it.
    """
    pads = list(node.attributes.get("pads", [0, 0, 0, 0]))
    automatic = node.attributes.get("auto_pad", "NOTSET")
    sizes, needed, same = value.shape[2:], [], []
    for axis in range(2):
        total = (result[2 + axis] - 1) * strides[axis] + extents[axis] - sizes[axis]
        default = max(0, (math.ceil(sizes[axis] / strides[axis]) - 1) * strides[axis])
        default = max(0, default + extents[axis] - sizes[axis])
        same.append((default // 2, default - default // 2))
        before = pads[axis]
        if automatic == "SAME_UPPER":
            before = max(total, 0) // 2
        elif automatic == "SAME_LOWER":
            before = max(total, 0) - max(total, 0) // 2
        # Rounding up (ceil_mode) needs more behind, unused pixels need less.
        needed.append((before, max(total - before, 0)))
    if needed == [(0, 0), (0, 0)]:
        return value, int(schema.Padding.VALID)
    if needed == same:
        return value, int(schema.Padding.SAME)
    (top, bottom), (left, right) = needed
    amounts = np.array([[0, 0], [top, bottom], [left, right], [0, 0]], np.int32)
    inputs = [value.tensor, conversion.model.add_constant("", amounts)]
    operator, options = "PAD", schema.PadOptionsT()
    if lowest:
        operator, options = "PADV2", schema.PadV2OptionsT()
        number = np.array(np.finfo(np.float32).min, np.float32)
        if value.quantization is not None:
            number = np.array(-128, np.int8)
        inputs.append(conversion.model.add_constant("", number, value.quantization))
    batch, channels, height, width = value.shape
    shape = (batch, channels, height + top + bottom, width + left + right)
    padded = conversion.emit(operator, inputs, replace(value, shape=shape), options)
    return padded, int(schema.Padding.VALID)


def _pool(conversion: Conversion, node: Node) -> None:
    is_maximum = node.operator == "MaxPool"
    if node.attributes.get("dilations", [1, 1]) != [1, 1]:
        raise ExportError("LiteRT has no pooling with dilation.")
    value, steps = conversion.moved(node)
    value = conversion.channels_last(value)
    kernel = node.attributes["kernel_shape"]
    strides = node.attributes.get("strides", [1, 1])
    result = conversion.shape(node.outputs[0])
    padded, padding = _pad_window(
        conversion,
        value,
        node,
        kernel,
        strides,
        result,
        # 0 is never above the maximum of numbers that are not negative.
        lowest=is_maximum and not value.is_non_negative,
    )
    counts_padding = node.attributes.get("count_include_pad", 0)
    uses_padding = padded is not value or padding == schema.Padding.SAME
    if not is_maximum and uses_padding:
        # LiteRT averages over the pixels of the image only, or of the padded image.
        if counts_padding and padded is value:
            value, padding = _pad_explicitly(conversion, value, node), int(schema.Padding.VALID)
        elif counts_padding:
            value = padded
        elif padded is not value:
            raise ExportError("LiteRT has no average pooling with this padding.")
    else:
        value = padded
    options = schema.Pool2DOptionsT()
    options.padding = padding
    options.filterHeight, options.filterWidth = kernel
    options.strideH, options.strideW = strides
    operator = "MAX_POOL_2D" if is_maximum else "AVERAGE_POOL_2D"
    output = replace(value, shape=result)
    pooled = conversion.emit(operator, [value.tensor], output, options)
    conversion.store(node.outputs[0], conversion.requantize(pooled, steps))


def _pad_explicitly(conversion: Conversion, value: Value, node: Node) -> Value:
    top, left, bottom, right = node.attributes["pads"]
    amounts = np.array([[0, 0], [top, bottom], [left, right], [0, 0]], np.int32)
    batch, channels, height, width = value.shape
    shape = (batch, channels, height + top + bottom, width + left + right)
    inputs = [value.tensor, conversion.model.add_constant("", amounts)]
    return conversion.emit("PAD", inputs, replace(value, shape=shape), schema.PadOptionsT())


def _global_average(conversion: Conversion, node: Node) -> None:
    _reduce(conversion, node, "MEAN", (2, 3), keep=True)


def _reduction(operator: str) -> Callable[[Conversion, Node], None]:
    def convert(conversion: Conversion, node: Node) -> None:
        keep = bool(node.attributes.get("keepdims", 1))
        _reduce(conversion, node, operator, _reduced_axes(conversion, node), keep)

    return convert


def _reduced_axes(conversion: Conversion, node: Node) -> tuple[int, ...]:
    rank = len(conversion.shape(node.inputs[0]))
    axes = node.attributes.get("axes")
    if len(node.inputs) > 1 and node.inputs[1]:
        axes = conversion.graph.constants[node.inputs[1]].ravel().tolist()
    return tuple(sorted(axis % rank for axis in (range(rank) if axes is None else axes)))


def _reduce(
    conversion: Conversion, node: Node, operator: str, axes: tuple[int, ...], keep: bool
) -> None:
    value, steps = conversion.moved(node)
    conversion.store(
        node.outputs[0],
        _emit_reduction(
            conversion, operator, value, axes, keep, conversion.shape(node.outputs[0]), steps
        ),
    )


def _emit_reduction(
    conversion: Conversion,
    operator: str,
    value: Value,
    axes: tuple[int, ...],
    keep: bool,
    shape: tuple[int, ...],
    steps: Quantization | None = None,
) -> Value:
    rank = len(value.shape)
    if value.channels_last and not keep and axes != (rank - 2, rank - 1):
        value = conversion.channels_first(value)
    physical = axes
    if value.channels_last:
        order = last_order(rank)
        physical = tuple(sorted(order.index(axis) for axis in axes))
    options = schema.ReducerOptionsT()
    options.keepDims = keep
    inputs = [value.tensor, conversion.model.add_constant("", np.array(physical, np.int32))]
    result = replace(
        value, shape=shape, channels_last=value.channels_last and keep, quantization=steps
    )
    return conversion.emit(operator, inputs, result, options)


# Element by element


def _binary(operator: str, options: type) -> Callable[[Conversion, Node], None]:
    def convert(conversion: Conversion, node: Node) -> None:
        steps = conversion.common_steps(node)
        shape = conversion.shape(node.outputs[0])
        operands, channels_last = _align(conversion, node, len(shape), steps is not None)
        entry = options()
        if hasattr(entry, "fusedActivationFunction"):
            entry.fusedActivationFunction = activation_code(node.activation)
        result = Value(0, shape, channels_last, steps, node.activation.startswith("RELU"))
        tensors = [operand.tensor for operand in operands]
        conversion.store(node.outputs[0], conversion.emit(operator, tensors, result, entry))

    return convert


def _align(conversion: Conversion, node: Node, rank: int, int8: bool) -> tuple[list[Value], bool]:
    """Return the inputs of a node in one order of axes; constants are transposed here."""
    read = conversion.value if int8 else conversion.real
    computed = {name: read(name) for name in node.inputs if not conversion.is_constant(name)}
    channels_last = (
        rank > 3
        and any(value.channels_last for value in computed.values())
        and all(len(value.shape) == rank for value in computed.values())
    )
    operands = []
    for name in node.inputs:
        if name in computed:
            align = conversion.channels_last if channels_last else conversion.channels_first
            operands.append(align(computed[name]))
        else:
            operands.append(_add_constant(conversion, name, rank if channels_last else 0, int8))
    return operands, channels_last


def _add_constant(conversion: Conversion, name: str, rank: int, int8: bool) -> Value:
    """Add an operand, channels last if `rank` is not 0."""
    array: NDArray[Any] = conversion.constant(name)
    steps = None
    if int8:
        constant = conversion.quantized_constants[name]
        array, steps = constant.integers, Quantization(constant.scale, constant.zero_point)
    shape = array.shape
    if rank:
        shape = (1,) * (rank - array.ndim) + shape
        array = array.reshape(shape).transpose(last_order(rank)).copy()
    tensor = conversion.model.add_constant(name, array, steps)
    return Value(tensor, shape, bool(rank), steps, bool(np.all(conversion.constant(name) >= 0)))


def _unary(operator: str) -> Callable[[Conversion, Node], None]:
    def convert(conversion: Conversion, node: Node) -> None:
        value = conversion.real(node.inputs[0])
        output = replace(value, is_non_negative=operator in ("LOGISTIC", "EXP", "SQRT", "ABS"))
        conversion.store(node.outputs[0], conversion.emit(operator, [value.tensor], output))

    return convert


def _gelu(conversion: Conversion, node: Node) -> None:
    options = schema.GeluOptionsT()
    options.approximate = node.attributes.get("approximate", "none") == "tanh"
    value = replace(conversion.real(node.inputs[0]), is_non_negative=False)
    conversion.store(node.outputs[0], conversion.emit("GELU", [value.tensor], value, options))


def _sigmoid(conversion: Conversion, node: Node) -> None:
    value, steps = conversion.moved(node)
    output = replace(value, is_non_negative=True)
    if steps is not None:
        output = replace(output, quantization=_LOGISTIC_STEPS)
    gate = conversion.emit("LOGISTIC", [value.tensor], output)
    conversion.store(node.outputs[0], conversion.requantize(gate, steps))


def _clip(conversion: Conversion, node: Node) -> None:
    low, high = clip_range(node, conversion.graph.constants)
    value, steps = conversion.moved(node)
    if steps is not None and _saturates(steps, low, high):
        # The range of int8 clips.
        result = conversion.requantize(value, steps)
        conversion.store(node.outputs[0], replace(result, is_non_negative=low >= 0))
        return
    value = conversion.real(node.inputs[0])
    activation = activation_of(node, conversion.graph.constants)
    result = replace(value, is_non_negative=low >= 0)
    if activation is not None:
        value = conversion.emit(activation, [value.tensor], result)
    else:
        for operator, limit in (("MAXIMUM", low), ("MINIMUM", high)):
            if np.isfinite(limit):
                bound = conversion.model.add_constant("", np.array(limit, np.float32))
                options = schema.MaximumMinimumOptionsT()
                value = conversion.emit(operator, [value.tensor, bound], result, options)
    conversion.store(node.outputs[0], value)


def _saturates(steps: Quantization, low: float, high: float) -> bool:
    """Return whether int8 represents nothing outside [low, high], up to half a step."""
    scale = float(steps.scale[0])
    smallest, largest = (-128 - steps.zero_point) * scale, (127 - steps.zero_point) * scale
    return smallest >= low - scale / 2 and largest <= high + scale / 2


def _hard_sigmoid(conversion: Conversion, node: Node) -> None:
    """Convert clip(a x + b, 0, 1) as relu6(6 a x + 6 b) / 6."""
    slope, offset = node.attributes.get("alpha", 0.2), node.attributes.get("beta", 0.5)
    value = conversion.real(node.inputs[0])
    for operator, number, activation in (
        ("MUL", 6 * slope, "NONE"),
        ("ADD", 6 * offset, "RELU6"),
        ("MUL", 1 / 6, "NONE"),
    ):
        if operator == "MUL" and abs(number - 1) < 1e-6:
            continue
        options = schema.MulOptionsT() if operator == "MUL" else schema.AddOptionsT()
        options.fusedActivationFunction = activation_code(activation)
        factor = conversion.model.add_constant("", np.array(number, np.float32))
        value = conversion.emit(operator, [value.tensor, factor], value, options)
    conversion.store(node.outputs[0], replace(value, is_non_negative=True))


def _batch_norm(conversion: Conversion, node: Node) -> None:
    """Convert a BatchNorm that follows no convolution: one product and one sum."""
    scale, bias, mean, variance = (
        conversion.constant(name).astype(np.float64) for name in node.inputs[1:5]
    )
    factor = scale / np.sqrt(variance + node.attributes.get("epsilon", 1e-5))
    value = conversion.real(node.inputs[0])
    value = conversion.channels_last(value) if len(value.shape) == 4 else value
    for operator, numbers in (("MUL", factor), ("ADD", bias - mean * factor)):
        options = schema.MulOptionsT() if operator == "MUL" else schema.AddOptionsT()
        tensor = conversion.model.add_constant("", numbers.astype(np.float32))
        result = replace(value, is_non_negative=False)
        value = conversion.emit(operator, [value.tensor, tensor], result, options)
    conversion.store(node.outputs[0], value)


def _layer_norm(conversion: Conversion, node: Node) -> None:
    """Convert a normalization over the last axes, in float32."""
    value = conversion.channels_first(conversion.real(node.inputs[0]))
    rank = len(value.shape)
    axes = tuple(range(node.attributes.get("axis", -1) % rank, rank))
    shape = tuple(1 if axis in axes else size for axis, size in enumerate(value.shape))
    value = replace(value, is_non_negative=False)

    def combine(operator: str, first: Value, second: int, options: object) -> Value:
        return conversion.emit(operator, [first.tensor, second], first, options)

    mean = _emit_reduction(conversion, "MEAN", value, axes, True, shape)
    centered = combine("SUB", value, mean.tensor, schema.SubOptionsT())
    square = combine("MUL", centered, centered.tensor, schema.MulOptionsT())
    variance = _emit_reduction(conversion, "MEAN", square, axes, True, shape)
    epsilon = np.array(node.attributes.get("epsilon", 1e-5), np.float32)
    constant = conversion.model.add_constant("", epsilon)
    positive = combine("ADD", variance, constant, schema.AddOptionsT())
    factor = conversion.emit("RSQRT", [positive.tensor], positive)
    value = combine("MUL", centered, factor.tensor, schema.MulOptionsT())
    for operator, name in zip(("MUL", "ADD"), node.inputs[1:], strict=False):
        options = schema.MulOptionsT() if operator == "MUL" else schema.AddOptionsT()
        constant = conversion.model.add_constant(name, conversion.constant(name))
        value = combine(operator, value, constant, options)
    conversion.store(node.outputs[0], value)


def _softmax(conversion: Conversion, node: Node) -> None:
    value = conversion.channels_first(conversion.real(node.inputs[0]))
    if node.attributes.get("axis", -1) % len(value.shape) != len(value.shape) - 1:
        raise ExportError("LiteRT has a softmax over the last axis only.")
    options = schema.SoftmaxOptionsT()
    options.beta = 1.0
    conversion.store(node.outputs[0], conversion.emit("SOFTMAX", [value.tensor], value, options))


# Shapes


def _reshape(conversion: Conversion, node: Node) -> None:
    value, steps = conversion.moved(node)
    shape = conversion.shape(node.outputs[0])
    # Splitting or joining channels keeps height and width where they are.
    channels_last = value.channels_last and len(shape) > 3 and shape[-2:] == value.shape[-2:]
    if not channels_last and value.shape[-2:] != (1, 1):
        value = conversion.channels_first(value)
    if shape != value.shape:
        physical = permute(shape, last_order(len(shape))) if channels_last else shape
        target = conversion.shape_constant(physical)
        result = replace(value, shape=shape, channels_last=channels_last)
        value = conversion.emit("RESHAPE", [value.tensor, target], result)
    conversion.store(node.outputs[0], conversion.requantize(value, steps))


def _gather(conversion: Conversion, node: Node) -> None:
    """Convert a Gather of all elements in order, PyTorch's `as_strided`, which is a reshape."""
    size = conversion.shape(node.inputs[0])
    indices = conversion.graph.constants.get(node.inputs[1])
    if indices is None or len(size) != 1 or indices.ravel().tolist() != list(range(size[0])):
        raise ExportError("edgetl has no conversion of the operator Gather to LiteRT.")
    _reshape(conversion, node)


def _transpose(conversion: Conversion, node: Node) -> None:
    value, steps = conversion.moved(node)
    order = tuple(node.attributes["perm"])
    if order[0]:
        raise ExportError("edgetl converts networks to LiteRT only if the batch stays in front.")
    shape, rank = permute(value.shape, order), len(order)
    last = last_order(rank)
    if rank == 4 and order == last and value.channels_last:
        value = replace(value, shape=shape, channels_last=False)
    elif rank == 4 and order == (0, 3, 1, 2) and not value.channels_last:
        value = replace(value, shape=shape, channels_last=True)
    else:
        if order[0] or order[-2:] != (rank - 2, rank - 1):
            value = conversion.channels_first(value)
        if value.channels_last:
            order = tuple(last.index(order[axis]) for axis in last)
        axes = conversion.integers(order)
        value = conversion.emit("TRANSPOSE", [value.tensor, axes], replace(value, shape=shape))
    conversion.store(node.outputs[0], conversion.requantize(value, steps))


def _concatenate(conversion: Conversion, node: Node) -> None:
    steps = conversion.common_steps(node)
    shape = conversion.shape(node.outputs[0])
    operands, channels_last = _align(conversion, node, len(shape), steps is not None)
    # LiteRT wants the same steps everywhere.
    operands = [conversion.requantize(operand, steps) for operand in operands]
    axis = node.attributes["axis"] % len(shape)
    options = schema.ConcatenationOptionsT()
    options.axis = last_order(len(shape)).index(axis) if channels_last else axis
    is_non_negative = all(operand.is_non_negative for operand in operands)
    result = Value(0, shape, channels_last, steps, is_non_negative)
    tensors = [operand.tensor for operand in operands]
    conversion.store(node.outputs[0], conversion.emit("CONCATENATION", tensors, result, options))


def _slice_parts(conversion: Conversion, node: Node) -> None:
    """Convert Split into slices, which may have different sizes."""
    value = conversion.value(node.inputs[0])
    if any(conversion.target_steps(name) is None for name in node.outputs):
        value = conversion.real(node.inputs[0])
    axis = node.attributes.get("axis", 0) % len(value.shape)
    start = 0
    for name in node.outputs:
        shape = conversion.shape(name)
        begin = [0] * len(shape)
        begin[axis] = start
        start += shape[axis]
        steps = conversion.target_steps(name) if value.quantization is not None else None
        part = _emit_slice(conversion, value, begin, shape)
        conversion.store(name, conversion.requantize(part, steps))


def _slice(conversion: Conversion, node: Node) -> None:
    value, steps = conversion.moved(node)
    shape = conversion.shape(node.outputs[0])
    starts = conversion.graph.constants[node.inputs[1]].tolist()
    axes = list(range(len(starts)))
    if len(node.inputs) > 3 and node.inputs[3]:
        axes = conversion.graph.constants[node.inputs[3]].tolist()
    if len(node.inputs) > 4 and np.any(conversion.graph.constants[node.inputs[4]] != 1):
        raise ExportError("edgetl has no conversion of slices with steps to LiteRT.")
    begin = [0] * len(shape)
    for start, axis in zip(starts, axes, strict=True):
        size = value.shape[axis]
        begin[axis % len(shape)] = min(start + size if start < 0 else start, size)
    part = _emit_slice(conversion, value, begin, shape)
    conversion.store(node.outputs[0], conversion.requantize(part, steps))


def _emit_slice(
    conversion: Conversion, value: Value, begin: Sequence[int], shape: tuple[int, ...]
) -> Value:
    limits = [start + size for start, size in zip(begin, shape, strict=True)]
    order = tuple(range(len(shape)))
    if value.channels_last:
        order = last_order(len(shape))
    options = schema.StridedSliceOptionsT()
    if shape[0] == value.shape[0]:
        # The first axis is taken whole, also of a batch of another size.
        options.beginMask = options.endMask = 1
    inputs = [conversion.integers(permute(values, order)) for values in (begin, limits)]
    inputs.append(conversion.integers([1] * len(shape)))
    result = replace(value, shape=shape)
    return conversion.emit("STRIDED_SLICE", [value.tensor, *inputs], result, options)


def _pad(conversion: Conversion, node: Node) -> None:
    value, steps = conversion.moved(node)
    mode = node.attributes.get("mode", "constant")
    number = conversion.graph.constants.get(node.inputs[2]) if len(node.inputs) > 2 else None
    if mode != "constant" or (number is not None and float(number)):
        raise ExportError("edgetl converts padding with zeros only to LiteRT.")
    rank = len(value.shape)
    pads = conversion.graph.constants[node.inputs[1]].reshape(2, rank).T.astype(np.int32)
    order = last_order(rank) if value.channels_last else tuple(range(rank))
    inputs = [value.tensor, conversion.model.add_constant("", pads[list(order)].copy())]
    result = replace(value, shape=conversion.shape(node.outputs[0]))
    padded = conversion.emit("PAD", inputs, result, schema.PadOptionsT())
    conversion.store(node.outputs[0], conversion.requantize(padded, steps))


def _cast(conversion: Conversion, node: Node) -> None:
    if node.attributes["to"] != onnx.TensorProto.FLOAT:
        raise ExportError("LiteRT files compute in float32 and int8 only, without other types.")
    conversion.store(node.outputs[0], conversion.real(node.inputs[0]))


def _identity(conversion: Conversion, node: Node) -> None:
    value, steps = conversion.moved(node)
    conversion.store(node.outputs[0], conversion.requantize(value, steps))


# Scores of unknown images


def _top_k(conversion: Conversion, node: Node) -> None:
    value = conversion.real(node.inputs[0])
    if node.attributes.get("axis", -1) % len(value.shape) != len(value.shape) - 1:
        raise ExportError("LiteRT has a TopK over the last axis only.")
    count = int(conversion.graph.constants[node.inputs[1]].ravel()[0])
    is_largest = bool(node.attributes.get("largest", 1))
    if not is_largest:
        value = conversion.emit("NEG", [value.tensor], value, schema.NegOptionsT())
    shape = (*value.shape[:-1], count)
    amount = conversion.model.add_constant("", np.array(count, np.int32))
    largest = conversion.model.add_tensor("", shape)
    indices = conversion.model.add_tensor("", shape, "int32")
    options = schema.TopKV2OptionsT()
    conversion.model.add_operator("TOPK_V2", [value.tensor, amount], [largest, indices], options)
    result = Value(largest, shape)
    if not is_largest:
        result = conversion.emit("NEG", [largest], result, schema.NegOptionsT())
    conversion.store(node.outputs[0], result)


def _norm(conversion: Conversion, node: Node) -> None:
    """Convert ReduceL2: the root of the sum of squares."""
    value = conversion.channels_first(conversion.real(node.inputs[0]))
    square = conversion.emit("MUL", [value.tensor, value.tensor], value, schema.MulOptionsT())
    axes, keep = _reduced_axes(conversion, node), bool(node.attributes.get("keepdims", 1))
    shape = conversion.shape(node.outputs[0])
    total = _emit_reduction(conversion, "SUM", square, axes, keep, shape)
    conversion.store(node.outputs[0], conversion.emit("SQRT", [total.tensor], total))


def _log_sum_exp(conversion: Conversion, node: Node) -> None:
    """Convert ReduceLogSumExp, with the maximum subtracted first, so that no power overflows."""
    value = conversion.channels_first(conversion.real(node.inputs[0]))
    if not node.attributes.get("keepdims", 1):
        raise ExportError("edgetl converts ReduceLogSumExp with keepdims only to LiteRT.")
    axes, shape = _reduced_axes(conversion, node), conversion.shape(node.outputs[0])
    largest = _emit_reduction(conversion, "REDUCE_MAX", value, axes, True, shape)
    centered = conversion.emit("SUB", [value.tensor, largest.tensor], value, schema.SubOptionsT())
    powers = conversion.emit("EXP", [centered.tensor], value, schema.ExpOptionsT())
    total = _emit_reduction(conversion, "SUM", powers, axes, True, shape)
    logarithm = conversion.emit("LOG", [total.tensor], total)
    conversion.store(
        node.outputs[0],
        conversion.emit("ADD", [logarithm.tensor, largest.tensor], largest, schema.AddOptionsT()),
    )


_HANDLERS: dict[str, Callable[[Conversion, Node], None]] = {
    "Add": _binary("ADD", schema.AddOptionsT),
    "AveragePool": _pool,
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": _concatenate,
    "Conv": _convolution,
    "DequantizeLinear": _dequantize,
    "Div": _binary("DIV", schema.DivOptionsT),
    "Dropout": _identity,
    "Exp": _unary("EXP"),
    "Flatten": _reshape,
    "Gather": _gather,
    "Gelu": _gelu,
    "Gemm": _fully_connected,
    "GlobalAveragePool": _global_average,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _unary("HARD_SWISH"),
    "Identity": _identity,
    "LayerNormalization": _layer_norm,
    "MatMul": _fully_connected,
    "Max": _binary("MAXIMUM", schema.MaximumMinimumOptionsT),
    "MaxPool": _pool,
    "Min": _binary("MINIMUM", schema.MaximumMinimumOptionsT),
    "Mul": _binary("MUL", schema.MulOptionsT),
    "Pad": _pad,
    "QuantizeLinear": _quantize,
    "ReduceL2": _norm,
    "ReduceLogSumExp": _log_sum_exp,
    "ReduceMax": _reduction("REDUCE_MAX"),
    "ReduceMean": _reduction("MEAN"),
    "ReduceSum": _reduction("SUM"),
    "Relu": _clip,
    "Reshape": _reshape,
    "Sigmoid": _sigmoid,
    "Slice": _slice,
    "Softmax": _softmax,
    "Split": _slice_parts,
    "Sqrt": _unary("SQRT"),
    "Squeeze": _reshape,
    "Sub": _binary("SUB", schema.SubOptionsT),
    "Tanh": _unary("TANH"),
    "TopK": _top_k,
    "Transpose": _transpose,
    "Unsqueeze": _reshape,
}

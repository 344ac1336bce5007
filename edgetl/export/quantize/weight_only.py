"""Quantization without calibration, to a quarter of the size: weight-only and dynamic int8."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

from edgetl.export.quantize.cleanup import clean_up_graph, wrap_quantizer_errors
from edgetl.export.quantize.layers import find_layers
from edgetl.export.quantize.task import QuantizationTask, QuantizedModel


def quantize_weights_int8(task: QuantizationTask) -> QuantizedModel:
    """Store each layer's weights as int8 with a scale per output channel; compute in float32.

    onnxruntime expands the weights when it loads the file. Speed and memory are those of fp32, the
    file is a quarter of the size.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(task.network)
    weights = {layer.node.input[1]: layer.weight for layer in find_layers(copy)}
    initializers = [value for value in copy.graph.initializer if value.name not in weights]
    nodes = []
    for name, weight in weights.items():
        values, scales = _quantize_weight(weight)
        scales = scales.reshape(-1, *[1] * (weight.ndim - 1))
        initializers += [
            numpy_helper.from_array(values, f"{name}_int8"),
            numpy_helper.from_array(scales, f"{name}_scale"),
        ]
        # onnxruntime folds Cast and Mul when it loads the file; DequantizeLinear would be computed
        # in every run.
        nodes += [
            helper.make_node(
                "Cast",
                [f"{name}_int8"],
                [f"{name}_steps"],
                name=f"{name}_cast",
                to=TensorProto.FLOAT,
            ),
            helper.make_node(
                "Mul", [f"{name}_steps", f"{name}_scale"], [name], name=f"{name}_expand"
            ),
        ]
        copy.graph.value_info.append(
            helper.make_tensor_value_info(name, TensorProto.FLOAT, weight.shape)
        )
    del copy.graph.initializer[:]
    copy.graph.initializer.extend(initializers)
    nodes += list(copy.graph.node)
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    return QuantizedModel(copy, "weights int8", "weights in int8, arithmetic in float32")


def _quantize_weight(weight: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    peak = np.abs(weight).reshape(len(weight), -1).max(1)
    scales = np.where(peak > 0, peak / 127, 1.0).astype(np.float32)
    steps = np.round(weight / scales.reshape(-1, *[1] * (weight.ndim - 1)))
    return np.clip(steps, -127, 127).astype(np.int8), scales


def quantize_dynamic_int8(task: QuantizationTask) -> QuantizedModel:
    """Quantize dynamically with onnxruntime: int8 weights, activations by their range in each run.

    Raises:
        ExportError: onnxruntime cannot quantize the network.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(task.network)
    # The quantizer transposes weights without updating their recorded shapes.
    del copy.graph.value_info[:]
    with (
        wrap_quantizer_errors(
            "dynamic quantizer does not support this network",
            "Remove int8-dynamic from {variants}.",
        ),
        tempfile.TemporaryDirectory() as folder,
    ):
        target = Path(folder) / "dynamic.onnx"
        # Weights must be unsigned: onnxruntime's ConvInteger does not support signed weights.
        quantize_dynamic(copy, str(target), weight_type=QuantType.QUInt8)
        model = onnx.load(target)
    return QuantizedModel(
        clean_up_graph(model),
        "int8 dynamic",
        "weights in int8, activations by their range in each run",
    )

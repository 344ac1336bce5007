"""Weights alone in int8, or int8 arithmetic with ranges found anew for every image: a quarter of the size, without calibration."""

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
    """Each layer's weights as int8 with a scale for every output channel; arithmetic stays float32.

    onnxruntime expands the weights when it loads the file: as fast as fp32, as large in memory, a quarter of it on the disk.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(task.network)
    smaller = {layer.node.input[1]: layer.weight for layer in find_layers(copy)}
    kept = [value for value in copy.graph.initializer if value.name not in smaller]
    nodes = []
    for name, weight in smaller.items():
        values, scales = _quantize_weight(weight)
        kept += [
            numpy_helper.from_array(values, f"{name}_int8"),
            numpy_helper.from_array(scales.reshape(-1, *[1] * (weight.ndim - 1)), f"{name}_scale"),
        ]
        # Not DequantizeLinear: onnxruntime would compute it anew in every run, these it folds when it loads the file.
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
    copy.graph.initializer.extend(kept)
    nodes += list(copy.graph.node)
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    return QuantizedModel(copy, "weights int8", summary="weights in int8, arithmetic in float32")


def _quantize_weight(weight: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    peak = np.abs(weight).reshape(len(weight), -1).max(1)
    scales = np.where(peak > 0, peak / 127, 1.0).astype(np.float32)
    steps = np.round(weight / scales.reshape(-1, *[1] * (weight.ndim - 1)))
    return np.clip(steps, -127, 127).astype(np.int8), scales


def quantize_dynamic_int8(task: QuantizationTask) -> QuantizedModel:
    """Onnxruntime's dynamic quantization: weights in int8, activations quantized by their own range at every run.

    Raises:
        ExportError: the quantizer cannot take the network.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(task.network)
    # The quantizer transposes weights and does not correct what was noted of their shapes.
    del copy.graph.value_info[:]
    with (
        wrap_quantizer_errors("dynamic quantizer cannot take this network", "it"),
        tempfile.TemporaryDirectory() as folder,
    ):
        target = Path(folder) / "dynamic.onnx"
        # Unsigned weights: onnxruntime has no ConvInteger for signed ones.
        quantize_dynamic(copy, str(target), weight_type=QuantType.QUInt8)
        model = onnx.load(target)
    return QuantizedModel(
        clean_up_graph(model),
        "int8 dynamic",
        summary="weights in int8, activations by their own range at every run",
    )

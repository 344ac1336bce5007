"""What quantizers leave behind, put in order: nodes out of order, constants written many times, notes."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import onnx
from onnx import helper, numpy_helper
from onnxruntime.quantization.onnx_model import ONNXModel

from edgetl.core.errors import ExportError


@contextmanager
def wrap_quantizer_errors(quantizer: str, variant: str) -> Iterator[None]:
    """Run one of onnxruntime's quantizers in the block: without its warnings, and with its failure as one sentence.

    Raises:
        ExportError: it cannot take the network.
    """
    root = logging.getLogger()
    level = root.level
    # It warns on the root logger of what is wanted here: nodes that stay in float.
    root.setLevel(logging.ERROR)
    try:
        yield
    except Exception as cause:  # the quantizers raise whatever numpy, onnx and themselves raise
        reason = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
        raise ExportError(
            f"onnxruntime's {quantizer}: {reason} Leave {variant} out of --variants."
        ) from cause
    finally:
        root.setLevel(level)


def clean_up_graph(network: onnx.ModelProto) -> onnx.ModelProto:
    """The network with its nodes in topological order, each constant once and no notes; it may be changed in place."""
    wrapped = ONNXModel(network)
    wrapped.topological_sort()
    model: onnx.ModelProto = wrapped.model
    _deduplicate_initializers(model)
    _set_dequantize_axes(model)
    for owner in (model, model.graph, *model.graph.node):
        owner.ClearField("doc_string")
    del model.metadata_props[:]
    return model


def _deduplicate_initializers(network: onnx.ModelProto) -> None:
    # Quantization writes zero points of nothing but zeros for every layer.
    first: dict[tuple[int, tuple[int, ...], bytes], str] = {}
    renamed: dict[str, str] = {}
    kept = []
    for value in network.graph.initializer:
        array = numpy_helper.to_array(value)
        name = first.setdefault((value.data_type, tuple(value.dims), array.tobytes()), value.name)
        if name == value.name:
            kept.append(value)
        else:
            renamed[value.name] = name
    del network.graph.initializer[:]
    network.graph.initializer.extend(kept)
    for node in network.graph.node:
        for position, name in enumerate(node.input):
            node.input[position] = renamed.get(name, name)


def _set_dequantize_axes(network: onnx.ModelProto) -> None:
    """Constants of one axis are quantized along axis 0, said aloud.

    ONNX's default is axis 1, which means nothing where there is one scale; OpenCV's dnn (4.14) refuses the file for it.
    """
    axes = {value.name: len(value.dims) for value in network.graph.initializer}
    for node in network.graph.node:
        named = any(attribute.name == "axis" for attribute in node.attribute)
        if node.op_type == "DequantizeLinear" and axes.get(node.input[0], 2) < 2 and not named:
            node.attribute.append(helper.make_attribute("axis", 0))

"""Cleanup of ONNX graphs written by onnxruntime's quantizers, and handling of their errors."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import onnx
from onnx import helper, numpy_helper
from onnxruntime.quantization.onnx_model import ONNXModel

from edgetl.core.config.export import ExportConfig
from edgetl.core.errors import ExportError


@contextmanager
def wrap_quantizer_errors(quantizer: str, remedy: str) -> Iterator[None]:
    """Run one of onnxruntime's quantizers in the block, without its warnings.

    Args:
        quantizer: its name and what failed, for the message.
        remedy: next step, for the message.

    Raises:
        ExportError: the quantizer failed.
    """
    root = logging.getLogger()
    level = root.level
    # The quantizer logs warnings about nodes that stay in float, which is intended here.
    root.setLevel(logging.ERROR)
    try:
        yield
    except Exception as cause:  # quantizers raise exceptions of numpy, onnx and their own
        reason = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
        raise ExportError(f"onnxruntime's {quantizer}: {reason} {remedy}", ExportConfig) from cause
    finally:
        root.setLevel(level)


def clean_up_graph(network: onnx.ModelProto) -> onnx.ModelProto:
    """Sort the nodes topologically, deduplicate constants and remove notes.

    The network may be changed in place; use the returned model.
    """
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
    # The quantizers write all-zero zero points for every layer.
    names_by_content: dict[tuple[int, tuple[int, ...], bytes], str] = {}
    renamed: dict[str, str] = {}
    unique = []
    for value in network.graph.initializer:
        content = (
            value.data_type,
            tuple(value.dims),
            numpy_helper.to_array(value).tobytes(),
        )
        name = names_by_content.setdefault(content, value.name)
        if name == value.name:
            unique.append(value)
        else:
            renamed[value.name] = name
    del network.graph.initializer[:]
    network.graph.initializer.extend(unique)
    for node in network.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = renamed.get(name, name)


def _set_dequantize_axes(network: onnx.ModelProto) -> None:
    """Set axis 0 explicitly on DequantizeLinear nodes of scalars and vectors.

    ONNX's default is axis 1, which has no effect with one scale, but OpenCV's dnn (4.14) rejects
    such files.
    """
    ranks = {value.name: len(value.dims) for value in network.graph.initializer}
    for node in network.graph.node:
        has_axis = any(attribute.name == "axis" for attribute in node.attribute)
        if node.op_type == "DequantizeLinear" and ranks.get(node.input[0], 2) < 2 and not has_axis:
            node.attribute.append(helper.make_attribute("axis", 0))

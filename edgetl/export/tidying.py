"""What quantizers leave behind, put in order: nodes out of order, constants written many times, notes."""

from __future__ import annotations

import onnx
from onnx import numpy_helper
from onnxruntime.quantization.onnx_model import ONNXModel


def tidied(network: onnx.ModelProto) -> onnx.ModelProto:
    """The network with its nodes in topological order, each constant once and no notes; it may be changed in place."""
    wrapped = ONNXModel(network)
    wrapped.topological_sort()
    model: onnx.ModelProto = wrapped.model
    _share_constants(model)
    for owner in (model, model.graph, *model.graph.node):
        owner.ClearField("doc_string")
    del model.metadata_props[:]
    return model


def _share_constants(network: onnx.ModelProto) -> None:
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

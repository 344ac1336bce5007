"""Optional output `activation_maps`: the logits of each location of the features.

The classifier, which is everything behind the global average pooling, computes logits from the mean
of the features over all locations. A copy of its nodes, with the same weights, computes logits from
the features of each location alone. For a linear classifier these are the class activation maps of
Zhou et al., 2016, arXiv:1512.04150, and their mean over the locations is the logit.

onnxruntime computes all outputs of a graph, requested or not. All names that are added here begin
with `activation_maps`, by which `device/runtime/onnx_file.py` removes them before the file is run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from edgetl.core.config.export import ExportConfig
from edgetl.core.errors import ExportError
from edgetl.device.runtime.onnx_file import ACTIVATION_MAPS
from edgetl.export.graph.torch_export import LOGITS
from edgetl.export.quantize.rewrites import rewrite_operators

FEATURE_ROWS = f"{ACTIVATION_MAPS}/rows"
"""Inner value: the features of each location of each image as the classifier's input."""
_CHANNELS_FIRST, _CHANNELS_LAST = (2, 3), (1, 2)
"""Height and width among the axes of the features."""
_REMOVABLE_ACTIVATIONS = ("Relu", "Clip")
"""Activations that onnxruntime's quantizer drops if the quantization after them clips alike."""


@dataclass(frozen=True)
class _Classifier:
    """Global average pooling of a network and the nodes behind it."""

    pooling: NodeProto
    spatial_axes: tuple[int, int]
    feature_shape: Sequence[int]
    """Shape of the pooling's input; the batch may be 0."""
    nodes: Sequence[NodeProto]
    """Nodes from the pooled features to the logits, in graph order."""
    size_nodes: Sequence[NodeProto]
    """Nodes that compute what these need of the batch size, from the shape of another value."""

    @property
    def grid(self) -> list[int]:
        """Number of locations, [height, width]."""
        return [self.feature_shape[axis] for axis in self.spatial_axes]

    @property
    def pooled_shape(self) -> list[int]:
        """Shape of the pooling's output for any batch."""
        (channel_axis,) = {1, 2, 3} - set(self.spatial_axes)
        channels = self.feature_shape[channel_axis]
        keeps_axes = self.pooling.op_type != "ReduceMean" or _attribute(self.pooling, "keepdims", 1)
        if not keeps_axes:
            return [-1, channels]
        return [-1, *(channels if axis == channel_axis else 1 for axis in (1, 2, 3))]


def add_activation_maps(
    network: onnx.ModelProto, float_network: onnx.ModelProto
) -> onnx.ModelProto:
    """Return a copy of a network with the output `activation_maps`.

    Args:
        network: `pixels` -> `logits` in any precision.
        float_network: the float32 network that it was made from.

    Returns:
        A network with the outputs `logits` and `activation_maps`, float32 [batch, classes, h, w].

    Raises:
        ExportError: the network has no global average pooling before its classifier.
    """
    classifier = _find_classifier(network)
    if classifier is None:
        raise ExportError(
            "This network has no global average pooling before its classifier, so it has no class "
            "activation maps. Remove {explain}; everything else works without it.",
            ExportConfig,
        )
    copy = onnx.ModelProto()
    copy.CopyFrom(network)
    graph = copy.graph
    batch, classes = graph.output[0].type.tensor_type.shape.dim
    features, grid = _name("features"), _name("grid")
    features_last = classifier.pooling.input[0]
    if classifier.spatial_axes == _CHANNELS_FIRST:
        graph.node.append(_make_node("Transpose", [features_last], features, perm=[0, 2, 3, 1]))
        features_last = features
    constants = {
        _name("pooled_shape"): classifier.pooled_shape,
        _name("grid_shape"): [-1, *classifier.grid, classes.dim_value],
    }
    graph.initializer.extend(
        numpy_helper.from_array(np.array(shape, np.int64), name)
        for name, shape in constants.items()
    )
    graph.node.append(_make_node("Reshape", [features_last, _name("pooled_shape")], FEATURE_ROWS))
    row_logits = _append_copy(classifier, graph, float_network)
    graph.node.append(_make_node("Reshape", [row_logits, _name("grid_shape")], grid))
    graph.node.append(_make_node("Transpose", [grid], ACTIVATION_MAPS, perm=[0, 3, 1, 2]))
    shape = [batch.dim_param, classes.dim_value, *classifier.grid]
    graph.output.append(helper.make_tensor_value_info(ACTIVATION_MAPS, TensorProto.FLOAT, shape))
    return copy


def _find_classifier(network: onnx.ModelProto) -> _Classifier | None:
    """Find the last global average pooling that the logits depend on through nothing else."""
    graph = onnx.shape_inference.infer_shapes(network).graph
    shapes = {
        value.name: [dimension.dim_value for dimension in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.value_info)
    }
    constants = {value.name: value for value in graph.initializer}
    for pooling in reversed(graph.node):
        shape = shapes.get(pooling.input[0], []) if pooling.input else []
        axes = _pooled_axes(pooling, shape, constants)
        if axes is None or not all(shape[1:]):
            continue
        nodes = _find_nodes_behind(pooling, graph)
        if nodes is not None:
            return _Classifier(pooling, axes, shape, *nodes)
    return None


def _pooled_axes(
    node: NodeProto, shape: Sequence[int], constants: Mapping[str, TensorProto]
) -> tuple[int, int] | None:
    """Return the spatial axes that a node averages over, or None if it is no global pooling."""
    if len(shape) != 4:
        return None
    if node.op_type == "GlobalAveragePool":
        return _CHANNELS_FIRST
    if node.op_type == "AveragePool":
        has_full_kernel = list(_attribute(node, "kernel_shape", [])) == list(shape[2:])
        has_padding = any(_attribute(node, "pads", []))
        return _CHANNELS_FIRST if has_full_kernel and not has_padding else None
    if node.op_type == "ReduceMean" and len(node.input) > 1 and node.input[1] in constants:
        reduced = numpy_helper.to_array(constants[node.input[1]]).tolist()
        axes = tuple(sorted(axis % 4 for axis in reduced))
        return next(
            (layout for layout in (_CHANNELS_FIRST, _CHANNELS_LAST) if axes == layout), None
        )
    return None


def _find_nodes_behind(
    pooling: NodeProto, graph: onnx.GraphProto
) -> tuple[list[NodeProto], list[NodeProto]] | None:
    """Return the nodes from a pooling's output to the logits, and those for the batch size.

    The exporter reads the batch size from the network's input where features are channels-last in
    memory, as in ConvNeXt and Swin.

    Returns:
        None if a node also depends on another part of the network, or if the logits do not depend
        on the pooling.
    """
    variable = {value.name for value in graph.input}
    pooled: set[str] = set()
    sizes: set[str] = set()
    nodes, size_nodes = [], []
    for node in graph.node:
        inputs = set(node.input)
        if inputs & pooled:
            if inputs & variable:
                return None
            nodes.append(node)
            pooled.update(node.output)
        elif node.output[0] == pooling.output[0]:
            pooled.update(node.output)
        elif inputs & variable and not _is_batch_size(node):
            variable.update(node.output)
        elif inputs & (variable | sizes):
            size_nodes.append(node)
            sizes.update(node.output)
    if LOGITS not in pooled:
        return None
    needed = {name for node in nodes for name in node.input}
    for node in reversed(size_nodes):
        if needed & set(node.output):
            needed.update(node.input)
    return nodes, [node for node in size_nodes if needed & set(node.output)]


def _is_batch_size(node: NodeProto) -> bool:
    """Return whether a node reads the first side of a shape and nothing else."""
    first, last = _attribute(node, "start", 0), _attribute(node, "end", None)
    return node.op_type == "Shape" and (first, last) == (0, 1)


def _append_copy(
    classifier: _Classifier, graph: onnx.GraphProto, float_network: onnx.ModelProto
) -> str:
    """Append a copy of the classifier that reads FEATURE_ROWS; return the name of its logits.

    The copy does not quantize activations: their ranges hold for means over all locations, and
    features of a single location exceed them several times.
    """
    dropped = _find_dropped_activations(classifier, graph, float_network)
    copies = {classifier.pooling.output[0]: FEATURE_ROWS}
    # The batch of the copy are the rows.
    copies |= {
        node.input[0]: FEATURE_ROWS for node in classifier.size_nodes if node.op_type == "Shape"
    }
    for node in (*classifier.size_nodes, *classifier.nodes):
        source = node.input[0]
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and source in copies:
            if source in dropped and node.op_type == "QuantizeLinear":
                copies[source] = _append_activation(dropped.pop(source), copies[source], graph)
            copies[node.output[0]] = copies[source]
            continue
        outputs = {name: _name(name) for name in node.output if name}
        duplicate = graph.node.add()
        duplicate.CopyFrom(node)
        duplicate.name = _name(f"{node.name}_{node.output[0]}")
        duplicate.input[:] = [copies.get(name, name) for name in node.input]
        duplicate.output[:] = [outputs.get(name, name) for name in node.output]
        copies |= outputs
    return copies[LOGITS]


@dataclass(frozen=True)
class _Activation:
    """Activation of the float network."""

    node: NodeProto
    bounds: Sequence[TensorProto]


def _find_dropped_activations(
    classifier: _Classifier, graph: onnx.GraphProto, float_network: onnx.ModelProto
) -> dict[str, _Activation]:
    """Return the activations that the quantizer replaced by clipping, by the names of their output.

    Their output is now that of the node before them (`QDQRemovableActivation` in onnxruntime).
    """
    if all(node.op_type != "QuantizeLinear" for node in classifier.nodes):
        return {}
    operators = {name: node.op_type for node in graph.node for name in node.output}
    float_graph = rewrite_operators(float_network).graph
    constants = {value.name: value for value in float_graph.initializer}
    return {
        node.output[0]: _Activation(node, [constants[name] for name in node.input[1:]])
        for node in float_graph.node
        if node.op_type in _REMOVABLE_ACTIVATIONS
        and operators.get(node.output[0], node.op_type) != node.op_type
    }


def _append_activation(activation: _Activation, source: str, graph: onnx.GraphProto) -> str:
    """Append an activation to the copy of the classifier; return the name of its output."""
    node = activation.node
    names = []
    for bound in activation.bounds:
        constant = graph.initializer.add()
        constant.CopyFrom(bound)
        constant.name = _name(f"{node.name}_{bound.name}")
        names.append(constant.name)
    output = _name(f"{node.name}_restored")
    graph.node.append(_make_node(node.op_type, [source, *names], output))
    return output


def _name(suffix: str) -> str:
    return f"{ACTIVATION_MAPS}/{suffix}"


def _make_node(operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> NodeProto:
    name = _name(f"{operator}_{output.removeprefix(_name(''))}")
    return helper.make_node(operator, inputs, [output], name=name, **attributes)


def _attribute(node: NodeProto, name: str, default: Any) -> Any:
    values = (helper.get_attribute_value(item) for item in node.attribute if item.name == name)
    return next(values, default)

"""Cross-layer equalization: balance the weights of adjacent layers.

Scaling a channel down by s in one layer and up by s in the next does not change the output if the
activation between them is positively homogeneous, as ReLU is; ReLU6, HardSwish and SiLU are not.
Per-tensor weights benefit most, because one wide channel no longer sets the step for all channels.

Source: Nagel et al., 2019, arXiv:1906.04721.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import onnx
from numpy.typing import NDArray

from edgetl.export.quantize.layers import Layer, find_layers, with_constants

_PASSES = 8
_MAX_FACTOR = 1e3
"""Largest factor, so that a nearly dead channel of one layer does not explode in the other."""


def equalize(network: onnx.ModelProto) -> onnx.ModelProto | None:
    """Return an equivalent copy with balanced weights.

    Returns:
        None if no two layers follow each other directly or through ReLU.
    """
    layers = {layer.name: layer for layer in find_layers(network)}
    pairs = _find_layer_pairs(network, layers)
    if not pairs:
        return None
    weights = {name: layer.weight.astype(np.float64) for name, layer in layers.items()}
    biases = {
        name: layer.bias.astype(np.float64)
        for name, layer in layers.items()
        if layer.bias is not None
    }
    for _ in range(_PASSES):
        for first, second in pairs:
            is_depthwise = layers[second].groups > 1
            factor = _channel_factors(weights[first], weights[second], is_depthwise)
            trailing_axes = weights[first].ndim - 1
            weights[first] = weights[first] / factor.reshape(-1, *[1] * trailing_axes)
            if first in biases:
                biases[first] = biases[first] / factor
            # A depthwise layer has its input channels on axis 0, other layers on axis 1.
            shape = (1, -1, *[1] * (weights[second].ndim - 2))
            if is_depthwise:
                shape = (-1, 1, 1, 1)
            weights[second] = weights[second] * factor.reshape(shape)
    constants = {
        layer.node.input[1]: weights[name].astype(np.float32) for name, layer in layers.items()
    }
    constants |= {
        layers[name].node.input[2]: value.astype(np.float32) for name, value in biases.items()
    }
    return with_constants(network, constants)


def _channel_factors(
    first: NDArray[np.float64], second: NDArray[np.float64], is_depthwise: bool
) -> NDArray[np.float64]:
    """Return the factor of each channel between two layers, [channels]; 1 for dead channels."""
    output_peaks = np.abs(first).reshape(len(first), -1).max(1)
    axes: tuple[int, ...] = (0, 2, 3)
    if second.ndim == 2:
        axes = (0,)
    elif is_depthwise:
        axes = (1, 2, 3)
    input_peaks = np.abs(second).max(axis=axes)
    is_alive = (output_peaks > 0) & (input_peaks > 0)
    ratio = output_peaks / np.where(input_peaks > 0, input_peaks, 1.0)
    factor = np.where(is_alive, np.sqrt(ratio), 1.0)
    return np.clip(np.where(factor > 0, factor, 1.0), 1 / _MAX_FACTOR, _MAX_FACTOR)


def _find_layer_pairs(network: onnx.ModelProto, layers: dict[str, Layer]) -> list[tuple[str, str]]:
    """Return pairs of layer names in which the first layer feeds only the second."""
    users: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in network.graph.node:
        for name in node.input:
            users[name].append(node)
    shared = {name for name, nodes in users.items() if len(nodes) > 1}
    outputs = {value.name for value in network.graph.output}
    pairs = []
    for layer in layers.values():
        value = layer.node.output[0]
        while value not in outputs and len(users[value]) == 1 and users[value][0].op_type == "Relu":
            value = users[value][0].output[0]
        if value in outputs or len(users[value]) != 1 or users[value][0].name not in layers:
            continue
        second = layers[users[value][0].name]
        # In layers with groups, except depthwise ones, the channels of a group share weights.
        is_depthwise = second.groups == len(second.weight) and second.weight.shape[1] == 1
        has_separate_channels = second.groups == 1 or is_depthwise
        # Constants with several users belong to other layers too.
        constants = {*layer.node.input[1:], *second.node.input[1:]}
        if has_separate_channels and second.node.input[0] == value and not constants & shared:
            pairs.append((layer.name, second.name))
    return pairs

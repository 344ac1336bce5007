"""Cross-layer equalisation: neighbouring layers share out the ranges of their weights (Nagel et al., 2019, arXiv:1906.04721).

A channel scaled down by s in one layer and up by s in the next changes nothing if what lies between is linear for positive factors, as
ReLU is; ReLU6, HardSwish and SiLU are not. Per-tensor weights gain most: one wide channel no longer sets the step for all.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import onnx

from edgetl.export.quantize.layers import Layer, find_layers, with_constants

_ROUNDS = 8
_MAX_FACTOR = 1e3
"""Largest factor: a channel that is all but dead in one layer must not explode in the other."""


def equalize(network: onnx.ModelProto) -> onnx.ModelProto | None:
    """A copy that computes the same with evener weights; None where no two layers follow each other directly or through ReLU."""
    found = {layer.name: layer for layer in find_layers(network)}
    pairs = _find_layer_pairs(network, found)
    if not pairs:
        return None
    weight = {name: layer.weight.astype(np.float64) for name, layer in found.items()}
    bias = {
        name: None if layer.bias is None else layer.bias.astype(np.float64)
        for name, layer in found.items()
    }
    for _ in range(_ROUNDS):
        for first, second in pairs:
            depthwise = found[second].groups > 1
            after = weight[second]
            own = np.abs(weight[first]).reshape(len(weight[first]), -1).max(1)
            along = (0,) if after.ndim == 2 else (1, 2, 3) if depthwise else (0, 2, 3)
            other = np.abs(after).max(axis=along)
            alive = (own > 0) & (other > 0)
            factor = np.where(alive, np.sqrt(own / np.where(other > 0, other, 1.0)), 1.0)
            factor = np.clip(np.where(factor > 0, factor, 1.0), 1 / _MAX_FACTOR, _MAX_FACTOR)
            weight[first] = weight[first] / factor.reshape(-1, *[1] * (weight[first].ndim - 1))
            old = bias[first]
            bias[first] = None if old is None else old / factor
            shape = (-1, 1, 1, 1) if depthwise else (1, -1, *[1] * (after.ndim - 2))
            weight[second] = after * factor.reshape(shape)
    changed = {
        layer.node.input[1]: weight[name].astype(np.float32) for name, layer in found.items()
    }
    changed |= {
        found[name].node.input[2]: value.astype(np.float32)
        for name, value in bias.items()
        if value is not None
    }
    return with_constants(network, changed)


def _find_layer_pairs(network: onnx.ModelProto, found: dict[str, Layer]) -> list[tuple[str, str]]:
    """Names of layers of which the first feeds nothing but the second."""
    users: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in network.graph.node:
        for name in node.input:
            users[name].append(node)
    shared = {name for name, nodes in users.items() if len(nodes) > 1}
    outputs = {value.name for value in network.graph.output}
    pairs = []
    for layer in found.values():
        value = layer.node.output[0]
        while value not in outputs and len(users[value]) == 1 and users[value][0].op_type == "Relu":
            value = users[value][0].output[0]
        if value in outputs or len(users[value]) != 1 or users[value][0].name not in found:
            continue
        second = found[users[value][0].name]
        # Grouped but not depthwise: channels of a group share weights. Constants used twice belong to more than this pair.
        whole = second.groups in (1, len(second.weight)) and (
            second.groups == 1 or second.weight.shape[1] == 1
        )
        constants = {*layer.node.input[1:], *second.node.input[1:]}
        if whole and second.node.input[0] == value and not constants & shared:
            pairs.append((layer.name, second.name))
    return pairs

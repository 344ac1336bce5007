"""Layers with weights in an ONNX network: convolutions and fully connected layers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, numpy_helper


@dataclass(frozen=True)
class Layer:
    """A node with constant weights."""

    node: NodeProto
    weight: NDArray[np.float32]
    """Weights: [out, in / groups, height, width] of Conv, [out, in] of Gemm with transB."""
    bias: NDArray[np.float32] | None
    groups: int

    @property
    def name(self) -> str:
        """Name of the node."""
        return str(self.node.name)


def find_layers(network: onnx.ModelProto) -> Iterator[Layer]:
    """Yield Conv nodes and Gemm nodes with transB=1 (PyTorch's Linear) in graph order."""
    constants = {value.name: value for value in network.graph.initializer}
    for node in network.graph.node:
        attributes = {attribute.name: attribute for attribute in node.attribute}
        if node.op_type not in ("Conv", "Gemm") or node.input[1] not in constants:
            continue
        if node.op_type == "Gemm" and not ("transB" in attributes and attributes["transB"].i):
            continue
        has_bias = len(node.input) > 2 and node.input[2] in constants
        yield Layer(
            node,
            numpy_helper.to_array(constants[node.input[1]]),
            numpy_helper.to_array(constants[node.input[2]]) if has_bias else None,
            attributes["group"].i if "group" in attributes else 1,
        )


def with_constants(
    network: onnx.ModelProto, constants: dict[str, NDArray[np.float32]]
) -> onnx.ModelProto:
    """Return a copy with new values for the initializers named in `constants`."""
    copy = onnx.ModelProto()
    copy.CopyFrom(network)
    for value in copy.graph.initializer:
        if value.name in constants:
            array = constants[value.name].astype(np.float32)
            value.CopyFrom(numpy_helper.from_array(array, value.name))
    return copy


def weight_limit(bits: int) -> int:
    """Return the largest integer of rounded weights.

    Args:
        bits: 8, or 7 for onnxruntime's reduced range, whose step is 1/64 of the largest weight.
    """
    return 127 if bits == 8 else 64


def weight_scales(
    weight: NDArray[np.float32], per_channel: bool, bits: int = 8
) -> NDArray[np.float32]:
    """Return the steps of signed symmetric weights, with as many axes as `weight`.

    Args:
        weight: the first axis is the output channel.
        per_channel: use a scale for each output channel instead of one for all.
        bits: see `weight_limit`.
    """
    axes = tuple(range(1, weight.ndim)) if per_channel else None
    peak = np.maximum(np.abs(weight).max(axis=axes, keepdims=True), 1e-12)
    return np.asarray(peak / weight_limit(bits), np.float32)


def fake_quantize_weight(
    weight: NDArray[np.float32], per_channel: bool, bits: int = 8
) -> NDArray[np.float32]:
    """Round weights to signed symmetric integers and convert them back to float.

    Args:
        weight: see `weight_scales`.
        per_channel: see `weight_scales`.
        bits: see `weight_limit`.
    """
    scale = weight_scales(weight, per_channel, bits)
    return np.asarray(np.round(weight / scale) * scale, np.float32)

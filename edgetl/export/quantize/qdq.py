"""One way to quantize: onnxruntime's own quantizer, given ranges and a scheme."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

import onnx
from onnxruntime.quantization import QDQQuantizer, QuantType, TensorsData
from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

from edgetl.export.quantize.calibration import CalibrationMethodName
from edgetl.export.quantize.cleanup import clean_up_graph, wrap_quantizer_errors
from edgetl.export.quantize.layers import find_layers

QUANTIZABLE_OPERATORS = sorted({*QLinearOpsRegistry, *QDQRegistry})
"""What onnxruntime quantizes; everything else stays in float."""

_FUSED_ACTIVATIONS = ("Relu", "Clip")
"""Activations that onnxruntime computes within the convolution before them."""


@dataclass(frozen=True)
class Scheme:
    """Choices of static quantization; weights are signed and symmetric."""

    method: CalibrationMethodName
    per_channel: bool
    """A scale for each output channel's weights, or one for all."""
    activations: Literal["uint8", "int8"]
    reduce_range: bool = False
    """Weights in 7 bits: without VNNI sums of two 8-bit products saturate in 16 bits."""

    @property
    def name(self) -> str:
        """For people: `U8S8 per channel, minmax`."""
        types = "U8S8" if self.activations == "uint8" else "S8S8"
        return f"{types}{' 7-bit weights' * self.reduce_range} per {'channel' if self.per_channel else 'tensor'}, {self.method}"

    def to_json(self) -> dict[str, Any]:
        """As it stands in bundle.json."""
        return asdict(self)


def quantize(
    network: onnx.ModelProto, ranges: TensorsData, scheme: Scheme, excluded: Collection[str] = ()
) -> onnx.ModelProto:
    """The network in QDQ form: quantized values between QuantizeLinear and DequantizeLinear, weights as int8.

    Args:
        network: float, BatchNorm folded, with inferred shapes.
        ranges: of every value in it.
        excluded: names of nodes that stay in float.

    Raises:
        ExportError: onnxruntime's quantizer cannot take the network.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(network)
    with wrap_quantizer_errors(f"quantizer cannot take this network ({scheme.name})", "int8"):
        quantizer = QDQQuantizer(
            copy,
            per_channel=scheme.per_channel,
            reduce_range=scheme.reduce_range,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QUInt8 if scheme.activations == "uint8" else QuantType.QInt8,
            tensors_range=ranges,
            nodes_to_quantize=[],
            nodes_to_exclude=sorted({*excluded, *_nodes_after_last_layer(network)}),
            op_types_to_quantize=QUANTIZABLE_OPERATORS,
            # The logits are 8 bits' worst place: nothing after them could average the rounding out.
            extra_options={"OpTypesToExcludeOutputQuantization": ["Gemm"]},
        )
        quantizer.quantize_model()
    return clean_up_graph(quantizer.model.model)


def _nodes_after_last_layer(network: onnx.ModelProto) -> Iterator[str]:
    # A head that is a convolution (SqueezeNet's) has its pooling behind it: a few hundred numbers, and then the logits.
    nodes = list(network.graph.node)
    names = [node.name for node in nodes]
    last = max((names.index(layer.name) for layer in find_layers(network)), default=len(names))
    yield from (node.name for node in nodes[last + 1 :] if node.op_type not in _FUSED_ACTIVATIONS)

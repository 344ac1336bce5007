"""Quantization to QDQ form with onnxruntime's quantizer, for given ranges and scheme."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import onnx
from onnxruntime.quantization import QDQQuantizer, QuantType, TensorsData
from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

from edgetl.core.artifacts.bundle import QuantizationScheme
from edgetl.export.quantize.cleanup import clean_up_graph, wrap_quantizer_errors
from edgetl.export.quantize.layers import find_layers

QUANTIZABLE_OPERATORS = sorted({*QLinearOpsRegistry, *QDQRegistry})
"""Operators that onnxruntime quantizes; all others stay in float."""

_FUSED_ACTIVATIONS = ("Relu", "Clip")
"""Activations that onnxruntime fuses into the preceding convolution."""


def quantize(
    network: onnx.ModelProto,
    ranges: TensorsData,
    scheme: QuantizationScheme,
    excluded: Collection[str] = (),
) -> onnx.ModelProto:
    """Quantize a network to QDQ form: QuantizeLinear and DequantizeLinear pairs, int8 weights.

    Args:
        network: float network with folded BatchNorm and inferred shapes.
        ranges: range of every value in the network.
        scheme: options of the quantization.
        excluded: names of nodes that stay in float.

    Raises:
        ExportError: onnxruntime cannot quantize the network.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(network)
    with wrap_quantizer_errors(
        f"quantizer does not support this network ({scheme.name})", "Remove int8 from {variants}."
    ):
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
            # Rounding hurts most at the logits, because no layer after them averages it out.
            extra_options={"OpTypesToExcludeOutputQuantization": ["Gemm"]},
        )
        quantizer.quantize_model()
    return clean_up_graph(quantizer.model.model)


def _nodes_after_last_layer(network: onnx.ModelProto) -> Iterator[str]:
    # With a convolutional head, as in SqueezeNet, pooling follows the last layer and yields the
    # logits. It is cheap and stays in float.
    nodes = list(network.graph.node)
    names = [node.name for node in nodes]
    last = max((names.index(layer.name) for layer in find_layers(network)), default=len(names))
    for node in nodes[last + 1 :]:
        if node.op_type not in _FUSED_ACTIVATIONS:
            yield node.name

"""Postprocessing file: from a network's outputs to probabilities and unknown scores.

Softmax in 8 bits would round probabilities to 1/256, and TopK of the unknown score is on few NPUs,
so both run on the CPU. They take some microseconds.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx
from onnx import TensorProto, helper

from edgetl.export.confidence.confidence import Confidence
from edgetl.export.graph.assemble import PROBABILITIES
from edgetl.export.graph.confidence import append_probabilities, append_unknown_score
from edgetl.export.graph.features import FEATURES
from edgetl.export.graph.torch_export import LOGITS
from edgetl.export.npu.network import UNKNOWN_INPUTS


def postprocessing_graph(
    network: onnx.ModelProto, confidence: Confidence, features: Sequence[int] | None
) -> onnx.ModelProto:
    """Build `logits` and, for an unknown score, `unknown_inputs` -> `probabilities`, `unknown_score`.

    The batch is dynamic.

    Args:
        network: network file, for its opset and the number of classes.
        confidence: temperature and unknown score to compute.
        features: shape of `unknown_inputs`, [1, features] or [1, features, height, width]; None if
            the network does not have this output.
    """
    logits = next(output for output in network.graph.output if output.name == LOGITS)
    classes = logits.type.tensor_type.shape.dim[1].dim_value
    value = helper.make_tensor_value_info(LOGITS, TensorProto.FLOAT, ["batch", classes])
    # The output tells `append_probabilities` the number of classes.
    graph = helper.make_graph([], "postprocessing", [value], [value])
    model = helper.make_model(
        graph, opset_imports=list(network.opset_import), ir_version=network.ir_version
    )
    append_probabilities(model, confidence.temperature, PROBABILITIES)
    if confidence.unknown_model is not None:
        if features is not None:
            _append_features(model.graph, features)
        append_unknown_score(model, confidence.unknown_model.score)
    outputs = [output for output in model.graph.output if output.name != LOGITS]
    del model.graph.output[:]
    model.graph.output.extend(outputs)
    onnx.checker.check_model(model, full_check=True)
    return model


def _append_features(graph: onnx.GraphProto, shape: Sequence[int]) -> None:
    graph.input.append(
        helper.make_tensor_value_info(UNKNOWN_INPUTS, TensorProto.FLOAT, ["batch", *shape[1:]])
    )
    value = UNKNOWN_INPUTS
    if len(shape) == 4:
        value = "unknown_pooled"
        graph.node.append(helper.make_node("GlobalAveragePool", [UNKNOWN_INPUTS], [value]))
    graph.node.append(helper.make_node("Flatten", [value], [FEATURES], axis=1))

"""Assembly of the self-contained ONNX file: preprocessing, network, softmax and metadata."""

from __future__ import annotations

import onnx
import onnx.compose
import onnx.utils
from onnx import TensorProto, helper

from edgetl.core.artifacts.model_metadata import ModelMetadata
from edgetl.core.config.export import InputKind
from edgetl.core.preprocessing import Preprocessing
from edgetl.export.confidence.confidence import Confidence
from edgetl.export.graph.confidence import append_probabilities, append_unknown_score
from edgetl.export.graph.features import append_features, append_intermediate_features
from edgetl.export.graph.fixed_size import fixed_size_graph
from edgetl.export.graph.preprocessing import CROPPED_IMAGE, PIXELS, preprocessing_graph
from edgetl.export.graph.torch_export import LOGITS

PROBABILITIES = "probabilities"


def assemble(
    network: onnx.ModelProto,
    preprocessing: Preprocessing,
    input_kind: InputKind,
    metadata: ModelMetadata,
    fixed_size: tuple[int, int] | None = None,
    confidence: Confidence | None = None,
) -> onnx.ModelProto:
    """Join preprocessing (for `image` input), network and softmax, and add metadata.

    Args:
        network: `pixels` float32 [batch, 3, S, S] -> `logits`.
        preprocessing: what the graph computes for `image` input.
        input_kind: `image` or `tensor`.
        metadata: added to the file.
        fixed_size: (height, width) if images have one size only; see `fixed_size_graph`.
        confidence: calibration and unknown score to compute; None for neither.

    Returns:
        A model with outputs `logits` and `probabilities`, both float32 [batch, classes], and
        `unknown_score`, float32 [batch], if there is such a score.
    """
    confidence = confidence or Confidence()
    metadata = confidence.add_to_metadata(metadata)
    model = onnx.ModelProto()
    model.CopyFrom(network)
    if input_kind == "image":
        opset = next(
            entry.version for entry in network.opset_import if entry.domain in ("", "ai.onnx")
        )
        if fixed_size is None:
            front = preprocessing_graph(preprocessing, opset, network.ir_version)
            crop_type = TensorProto.UINT8
        else:
            front = fixed_size_graph(preprocessing, fixed_size, opset, network.ir_version)
            crop_type = TensorProto.FLOAT
        model = onnx.compose.merge_models(front, network, io_map=[(PIXELS, PIXELS)])
        # The merged model lists the opset of both parts, which onnxruntime's quantizer refuses.
        del model.opset_import[:]
        model.opset_import.extend(network.opset_import)
        # The parity proof splits the shipped file at these values, which must be declared.
        shape: list[str | int | None] = ["batch", 3, preprocessing.crop, preprocessing.crop]
        model.graph.value_info.extend(
            [
                helper.make_tensor_value_info(CROPPED_IMAGE, crop_type, shape),
                helper.make_tensor_value_info(PIXELS, TensorProto.FLOAT, shape),
            ]
        )
    append_probabilities(model, confidence.temperature, PROBABILITIES)
    if confidence.unknown_model is not None:
        score = confidence.unknown_model.score
        if score.bank is not None:
            append_features(model)
        if score.intermediate is not None:
            append_intermediate_features(model)
        append_unknown_score(model, score)
    model.graph.name = "edgetl"
    model.producer_name, model.producer_version = "edgetl", metadata.version
    helper.set_model_props(model, metadata.to_properties())
    onnx.checker.check_model(model, full_check=True)
    return model


def extract_network(model: onnx.ModelProto) -> onnx.ModelProto:
    """Extract the network `pixels` -> `logits` from an assembled file, without preprocessing."""
    network: onnx.ModelProto = onnx.utils.Extractor(model).extract_model([PIXELS], [LOGITS])
    return network


def with_outputs(model: onnx.ModelProto, names: list[str]) -> onnx.ModelProto:
    """Return a copy that also outputs the inner values `names`, of any type and shape."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    declared = {value.name: value for value in copy.graph.value_info}
    outputs = {value.name for value in copy.graph.output}
    for name in names:
        if name not in outputs:
            copy.graph.output.append(declared.get(name, onnx.ValueInfoProto(name=name)))
    return copy

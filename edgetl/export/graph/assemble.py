"""One self-contained ONNX file: preprocessing, network, softmax, and what it needs to explain itself."""

from __future__ import annotations

import json
from typing import Any

import onnx
import onnx.compose
import onnx.utils
from onnx import TensorProto, helper

from edgetl.core.config.export import InputKind
from edgetl.core.preprocessing import Preprocessing
from edgetl.device.runtime.bundle import METADATA_PREFIX
from edgetl.export.graph.fixed_size import fixed_size_graph
from edgetl.export.graph.preprocessing import CROPPED_IMAGE, PIXELS, preprocessing_graph
from edgetl.export.graph.torch_export import LOGITS

PROBABILITIES = "probabilities"


def assemble(
    network: onnx.ModelProto,
    contract: Preprocessing,
    input_kind: InputKind,
    metadata: dict[str, Any],
    fixed_size: tuple[int, int] | None = None,
) -> onnx.ModelProto:
    """Join preprocessing (for `image` input), network and softmax, and write `metadata` into the file.

    With `fixed_size`, (height, width), the image input has that size alone; see `fixed_size_graph`.
    Outputs are `logits` and `probabilities`, both float32 [batch, classes].
    """
    model = onnx.ModelProto()
    model.CopyFrom(network)
    if input_kind == "image":
        opset = next(
            entry.version for entry in network.opset_import if entry.domain in ("", "ai.onnx")
        )
        if fixed_size is None:
            before, crop_type = (
                preprocessing_graph(contract, opset, network.ir_version),
                TensorProto.UINT8,
            )
        else:
            before = fixed_size_graph(contract, fixed_size, opset, network.ir_version)
            crop_type = TensorProto.FLOAT
        model = onnx.compose.merge_models(before, network, io_map=[(PIXELS, PIXELS)])
        # Declared, so that parity can cut the shipped file open at these values.
        model.graph.value_info.extend(
            [
                helper.make_tensor_value_info(
                    CROPPED_IMAGE, crop_type, ["batch", 3, contract.crop, contract.crop]
                ),
                helper.make_tensor_value_info(
                    PIXELS, TensorProto.FLOAT, ["batch", 3, contract.crop, contract.crop]
                ),
            ]
        )
    classes = network.graph.output[0].type.tensor_type.shape.dim[1].dim_value
    model.graph.node.append(
        helper.make_node("Softmax", [LOGITS], [PROBABILITIES], name="probabilities", axis=-1)
    )
    model.graph.output.append(
        helper.make_tensor_value_info(PROBABILITIES, TensorProto.FLOAT, ["batch", classes])
    )
    model.graph.name = "edgetl"
    model.producer_name, model.producer_version = "edgetl", str(metadata["version"])
    helper.set_model_props(
        model,
        {
            METADATA_PREFIX + key: json.dumps(value, ensure_ascii=False, sort_keys=True)
            for key, value in metadata.items()
        },
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def extract_network(model: onnx.ModelProto) -> onnx.ModelProto:
    """The network inside an assembled file, `pixels` -> `logits`: the very nodes that ship, without the preprocessing."""
    part: onnx.ModelProto = onnx.utils.Extractor(model).extract_model([PIXELS], [LOGITS])
    return part


def with_outputs(model: onnx.ModelProto, names: list[str]) -> onnx.ModelProto:
    """A copy that also yields the inner values `names`, of whatever type and shape they are."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    known = {value.name: value for value in copy.graph.value_info}
    present = {value.name for value in copy.graph.output}
    for name in names:
        if name not in present:
            copy.graph.output.append(known.get(name, onnx.ValueInfoProto(name=name)))
    return copy

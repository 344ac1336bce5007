"""Export of the trained network to ONNX with PyTorch's dynamo exporter."""

from __future__ import annotations

import ast
import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from edgetl.core.config.export import ExportConfig
from edgetl.core.errors import ExportError
from edgetl.export.graph.preprocessing import PIXELS

LOGITS = "logits"


@dataclass(frozen=True)
class NetworkGraph:
    """An exported network with the output values of its modules."""

    model: onnx.ModelProto
    """`pixels` float32 [batch, 3, S, S] -> `logits` float32 [batch, classes].

    BatchNorm is folded, and metadata about this machine is removed.
    """
    module_outputs: dict[str, str]
    """Module path (`features.3`) to the name of its output value, in graph order."""


def export_network_graph(
    network: nn.Module, image_size: int, classes: int, opset: int
) -> NetworkGraph:
    """Export `network` (in eval mode, on the CPU) with a dynamic batch.

    Raises:
        ExportError: the exporter does not support the network, or wrote another opset or shape.
    """
    # Use two images, because the exporter may treat a batch of one as constant.
    model = _export_module(
        _without_inplace(network),
        (torch.zeros(2, 3, image_size, image_size),),
        [PIXELS],
        [LOGITS],
        opset,
    )
    written_opset = next(
        entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")
    )
    if written_opset != opset:
        raise ExportError(
            f"PyTorch {torch.__version__} wrote opset {written_opset} instead of {opset}. "
            f"Use {{opset}} {written_opset}.",
            ExportConfig,
        )
    _assert_dimensions(model, image_size, classes)
    module_outputs = _find_module_outputs(model)
    _strip_metadata(model)
    _prevent_hard_swish_fusion(model)
    return NetworkGraph(model, module_outputs)


def _without_inplace(network: nn.Module) -> nn.Module:
    # Undoing in-place operations takes a third of the exporter's time; the graph has none anyway.
    copied = copy.deepcopy(network)
    for module in copied.modules():
        if getattr(module, "inplace", False):
            module.inplace = False  # type: ignore[assignment]
    return copied


def _export_module(
    module: nn.Module,
    example: tuple[Tensor, ...],
    inputs: list[str],
    outputs: list[str] | None = None,
    opset: int = 18,
) -> onnx.ModelProto:
    """Export any module; the first axis of every value is a dynamic batch.

    Args:
        module: takes and returns tensors.
        example: inputs with at least two rows each.
        inputs: names of the inputs.
        outputs: names of the outputs.
        opset: ONNX opset.

    Raises:
        ExportError: the exporter does not support the module.
    """
    batch = torch.export.Dim("batch")
    try:
        with _silence_exporter():
            program = torch.onnx.export(
                module,
                example,
                dynamo=True,
                dynamic_shapes=({0: batch},) * len(example),
                input_names=inputs,
                output_names=outputs,
                opset_version=opset,
                optimize=True,
                external_data=False,
                verbose=False,
            )
    except Exception as cause:  # the exporter raises its own, torch's and onnxscript's exceptions
        reason = str(cause).strip().splitlines() or [type(cause).__name__]
        raise ExportError(
            f"PyTorch {torch.__version__} cannot export {type(module).__name__} "
            f"for inputs {[tuple(value.shape[1:]) for value in example]} to opset {opset}: {reason[0]} "
            "Try another {opset} or newer versions of torch and onnxscript.",
            ExportConfig,
        ) from cause
    if program is None:
        raise ExportError(
            f"PyTorch {torch.__version__} returned no ONNX program for {type(module).__name__}."
        )
    return program.model_proto


@contextlib.contextmanager
def _silence_exporter() -> Iterator[None]:
    loggers = [
        logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")
    ]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _assert_dimensions(model: onnx.ModelProto, image_size: int, classes: int) -> None:
    for value, expected in (
        (model.graph.input[0], [3, image_size, image_size]),
        (model.graph.output[0], [classes]),
    ):
        dimensions = value.type.tensor_type.shape.dim
        fixed = [dimension.dim_value for dimension in dimensions[1:]]
        if not dimensions or not dimensions[0].dim_param or fixed != expected:
            shape = [dimension.dim_param or dimension.dim_value for dimension in dimensions]
            expected_shape = f"[batch, {', '.join(map(str, expected))}]"
            raise ExportError(
                f"The exporter wrote {value.name} with shape {shape} instead of {expected_shape}. "
                "Try another {opset} or another version of torch.",
                ExportConfig,
            )
        dimensions[0].dim_param = "batch"


def _find_module_outputs(model: onnx.ModelProto) -> dict[str, str]:
    """Map each module path to the output of its last node.

    Graph order is topological, so later nodes overwrite earlier ones.
    """
    outputs: dict[str, str] = {}
    for node in model.graph.node:
        metadata = {entry.key: entry.value for entry in node.metadata_props}
        scopes = metadata.get("pkg.torch.onnx.name_scopes", "[]")
        for path in ast.literal_eval(scopes)[1:-1]:
            outputs.pop(path, None)
            outputs[path] = node.output[0]
    return outputs


def _strip_metadata(model: onnx.ModelProto) -> None:
    """Remove the exporter's notes.

    They contain stack traces with this machine's paths and double the size of small graphs.
    """
    graph = model.graph
    for owner in (
        model,
        graph,
        *graph.node,
        *graph.input,
        *graph.output,
        *graph.value_info,
        *graph.initializer,
    ):
        owner.ClearField("doc_string")
        owner.ClearField("metadata_props")
    del model.functions[:]


def _prevent_hard_swish_fusion(model: onnx.ModelProto) -> None:
    """Replace HardSigmoid's slope of 1/6 by the next float32, which does not change the labels.

    OpenCV's dnn (versions 4.14 and 5.0) fuses x * HardSigmoid(y) with a slope of exactly 1/6 into
    HardSwish(x), whatever y is, and computes wrong logits for networks with squeeze-and-excitation.
    """
    sixth = np.float32(1 / 6)
    for node in model.graph.node:
        for attribute in node.attribute:
            if (
                node.op_type == "HardSigmoid"
                and attribute.name == "alpha"
                and np.float32(attribute.f) == sixth
            ):
                attribute.f = float(np.nextafter(sixth, np.float32(1)))

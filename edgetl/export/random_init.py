"""An architecture as the ONNX file that training it would lead to, with random weights: the latency is the same, the answers are not."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import torchvision
from onnx import helper, numpy_helper
from torch import fx, nn

from edgetl import __version__
from edgetl.core.config.export import ExportConfig
from edgetl.core.config.finetune import FinetuneConfig
from edgetl.core.errors import ArchitectureError, ConfigError, ExportError, ParityError
from edgetl.core.preprocessing import Preprocessing
from edgetl.device.runtime.session import create_session
from edgetl.export.bundle_writer import read_back
from edgetl.export.graph.assemble import assemble, extract_network
from edgetl.export.graph.preprocessing import PIXELS
from edgetl.export.graph.torch_export import LOGITS, export_network_graph
from edgetl.train.features.fusion import fold_batch_norm
from edgetl.train.features.fx_to_onnx import convert_fx_to_onnx
from edgetl.train.model.factory import build_adapted_model
from edgetl.train.model.torchvision_models import (
    check_architecture,
    get_architecture,
    preprocessing_for,
)

_BATCH_SIZE = 4
"""Random images that BatchNorm takes its statistics from, and on which the file is compared with PyTorch."""
_TRACEABLE_FAMILIES = {
    "efficientnet",
    "mnasnet",
    "mobilenetv2",
    "mobilenetv3",
    "regnet",
    "resnet",
    "shufflenetv2",
    "squeezenet",
}
"""Families of which the tracer writes what PyTorch's exporter writes: onnxruntime makes the same operators of both."""


@dataclass(frozen=True)
class UntrainedFile:
    """What was written, and that it is what PyTorch computes."""

    file: Path
    preprocessing: Preprocessing
    parameters: int
    """With the new head."""
    imagenet_top1: float | None
    """Percent, of torchvision's default weights at their own size, as torchvision states it."""
    check: dict[str, Any]
    """{"max_logit_difference", "tolerance"} between the file and PyTorch on identical tensors."""
    inference_s: float
    """Seconds of one image through the network here, roughly: for saying how long a measurement will take."""


def check_names(architectures: Sequence[str]) -> None:
    """Raise ConfigError with a line for every name that torchvision does not know, with the nearest that it does."""
    problems = []
    for name in dict.fromkeys(architectures):
        try:
            check_architecture(name)
        except ArchitectureError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(problems))


def write_untrained(
    architecture: str, image_size: int, classes: int, seed: int, threads: int, file: Path
) -> UntrainedFile:
    """Write `architecture` with `edgetl finetune`'s own head, and with preprocessing inside: uint8 `image` to float32 `logits`.

    Nothing is downloaded and no random state of the caller's is touched.

    Raises:
        ArchitectureError: it cannot take images of this size, or cannot be given a new head.
        ExportError: it cannot be written as ONNX.
        ParityError: the file does not answer as PyTorch does.
    """
    contract = preprocessing_for(architecture, image_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build_adapted_model(
            architecture,
            contract.crop,
            classes,
            FinetuneConfig.head_width,
            FinetuneConfig.dropout,
            None,
        ).model
        pixels = torch.randn(_BATCH_SIZE, 3, contract.crop, contract.crop)
        _initialize_batch_norm_stats(network, pixels)
    metadata = {
        "labels": [f"class {number}" for number in range(classes)],
        "preprocessing": contract.to_json(),
        "input": "image",
        "version": __version__,
        "run_id": "untrained",
        "model": architecture,
    }
    model = assemble(
        _export_untrained_graph(network, architecture, contract.crop, classes),
        contract,
        "image",
        metadata,
    )
    file.write_bytes(model.SerializeToString(deterministic=True))
    check, run_s = _check_and_time(network, file, pixels, threads)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return UntrainedFile(file, contract, parameters, imagenet_top1(architecture), check, run_s)


def imagenet_top1(architecture: str) -> float | None:
    """Percent, as torchvision states it for its default weights; None where it states none."""
    meta = torchvision.models.get_model_weights(architecture).DEFAULT.meta
    found = meta.get("_metrics", {}).get("ImageNet-1K", {}).get("acc@1")
    return None if found is None else float(found)


def _initialize_batch_norm_stats(network: nn.Module, pixels: torch.Tensor) -> None:
    """As training would: with BatchNorm as it comes values die out or grow from block to block, and a comparison of logits says little."""
    norms = [
        module
        for module in network.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
    ]
    network.eval()
    for norm in norms:
        norm.momentum = None  # a plain average, which one pass fills
        norm.train()
    with torch.no_grad():
        network(pixels)
    network.eval()


def _export_untrained_graph(
    network: nn.Module, architecture: str, image_size: int, classes: int
) -> onnx.ModelProto:
    """`pixels` -> `logits`, as `edgetl export` writes it.

    For most convolutional families the tracer writes it in a fifth of a second, else PyTorch's exporter in 2 to 20 s. Compared at 64 and
    224 px: the operators after onnxruntime's optimisation are the same, equally often, and the answers are equal to the bit. AlexNet, VGG
    (pools that do nothing) and DenseNet (BatchNorm that only the exporter folds: a third slower when traced) are not the same.
    """
    if get_architecture(architecture).family in _TRACEABLE_FAMILIES:
        # Whatever the tracer makes of a forward method that it was not written for: the exporter is there.
        with contextlib.suppress(Exception):
            piece = fold_batch_norm(fx.symbolic_trace(network))
            return _match_exporter_output(
                convert_fx_to_onnx(piece, (torch.zeros(2, 3, image_size, image_size),), [PIXELS])
            )
    return export_network_graph(network, image_size, classes, ExportConfig.opset).model


def _match_exporter_output(traced: onnx.ModelProto) -> onnx.ModelProto:
    """The traced graph with the exporter's choices: a mean for the global pool, and the last layer's own value as `logits`.

    onnxruntime lays out the one and the other differently; with these its optimised networks are the same, operator for operator.
    """
    graph = traced.graph
    inner = graph.node.pop().input[0]
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [LOGITS if name == inner else name for name in names]
        if node.op_type == "GlobalAveragePool":
            node.op_type = "ReduceMean"
            node.input.append("pooled_axes")
            node.attribute.append(helper.make_attribute("keepdims", 1))
    if any("pooled_axes" in node.input for node in graph.node):
        graph.initializer.append(numpy_helper.from_array(np.array([2, 3]), "pooled_axes"))
    graph.output[0].name = LOGITS
    return traced


def _check_and_time(
    network: nn.Module, file: Path, pixels: torch.Tensor, threads: int
) -> tuple[dict[str, Any], float]:
    session = create_session(
        extract_network(read_back(file)).SerializeToString(), threads=threads, spinning=False
    )
    with torch.inference_mode():
        reference = network(pixels).numpy()
    answer = session.run([LOGITS], {PIXELS: pixels.numpy()})[0]
    if reference.shape != answer.shape:
        raise ExportError(
            f"The file gives logits {answer.shape} where PyTorch gives {reference.shape}."
        )
    difference = float(np.abs(reference - answer).max())
    # Random weights give logits of any size.
    tolerance = ExportConfig.network_tolerance * max(1.0, float(np.abs(reference).max()))
    if not difference <= tolerance:  # not finite is not within it either
        raise ParityError(
            f"It does not answer as PyTorch does: logits differ by {difference:.3g}, tolerance {tolerance:g}. `edgetl export` says where."
        )
    taken = []
    for _ in range(3):
        started = time.perf_counter()
        session.run([LOGITS], {PIXELS: pixels[:1].numpy()})
        taken.append(time.perf_counter() - started)
    return {"max_logit_difference": difference, "tolerance": tolerance}, min(taken)

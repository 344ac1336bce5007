"""Export of an untrained architecture: random weights, but the latency of the trained model."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import fx, nn

from edgetl import __version__
from edgetl.core.architectures import source_of
from edgetl.core.artifacts.candidates import CandidateParity
from edgetl.core.artifacts.model_metadata import ModelMetadata
from edgetl.core.config.export import ExportConfig
from edgetl.core.config.finetune import FinetuneConfig
from edgetl.core.errors import ArchitectureError, ConfigError, ExportError, ParityError
from edgetl.core.preprocessing import Preprocessing
from edgetl.device.runtime.session import create_session
from edgetl.export.bundle_writer import read_back
from edgetl.export.graph.assemble import assemble, extract_network
from edgetl.export.graph.preprocessing import PIXELS
from edgetl.export.graph.torch_export import LOGITS, export_network_graph
from edgetl.train.common.autotune import best_duration_s
from edgetl.train.features.fusion import fold_batch_norm
from edgetl.train.features.fx_to_onnx import convert_fx_to_onnx
from edgetl.train.model.factory import build_adapted_model
from edgetl.train.model.reparameterization import fuse_branches
from edgetl.train.model.sources.base import source_for
from edgetl.train.model.stock_models import (
    check_architecture,
    get_architecture,
    preprocessing_for,
)

_BATCH_SIZE = 4
"""Number of random images, for BatchNorm statistics and the comparison with PyTorch."""
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
"""Families for which the tracer matches PyTorch's exporter: onnxruntime optimizes both alike."""


@dataclass(frozen=True)
class UntrainedFile:
    """An exported file with random weights, and its check against PyTorch."""

    file: Path
    preprocessing: Preprocessing
    parameters: int
    """Number of parameters, including the new head."""
    imagenet_top1: float | None
    """Top-1 in percent of torchvision's default weights at their default size, by torchvision."""
    parity: CandidateParity
    inference_s: float
    """Rough seconds of one inference here, to estimate the duration of a measurement."""


def check_names(architectures: Sequence[str]) -> None:
    """Check that torchvision has all of the architectures.

    Raises:
        ConfigError: names are unknown; each has a line with the most similar known name.
    """
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
    """Write `architecture` with random weights, the head of `edgetl finetune` and preprocessing.

    The file's input is uint8 `image` [batch, height, width, 3], its output float32 `logits`.
    Nothing is downloaded, and the caller's random state is not changed.

    Raises:
        ArchitectureError: the architecture does not accept images of this size or a new head.
        ExportError: the network cannot be exported to ONNX.
        ParityError: the file's logits do not match PyTorch's.
    """
    preprocessing = preprocessing_for(architecture, image_size)
    crop = preprocessing.crop
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build_adapted_model(
            architecture,
            crop,
            classes,
            FinetuneConfig.head_width,
            FinetuneConfig.dropout,
            None,
        ).model
        pixels = torch.randn(_BATCH_SIZE, 3, crop, crop)
        initialize_batch_norm_stats(network, pixels)
    metadata = ModelMetadata(
        labels=tuple(f"class {number}" for number in range(classes)),
        preprocessing=preprocessing,
        input="image",
        run_id="untrained",
        version=__version__,
        model=architecture,
    )
    graph = _export_untrained_graph(fuse_branches(network), architecture, crop, classes)
    model = assemble(graph, preprocessing, "image", metadata)
    file.write_bytes(model.SerializeToString(deterministic=True))
    parity, inference_s = _check_and_time(network, file, pixels, threads)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return UntrainedFile(
        file,
        preprocessing,
        parameters,
        source_for(architecture).imagenet_top1(architecture),
        parity,
        inference_s,
    )


def initialize_batch_norm_stats(network: nn.Module, pixels: torch.Tensor) -> None:
    """Set BatchNorm statistics from `pixels`.

    With the initial statistics, values vanish or grow from block to block, and a comparison of
    logits is not meaningful.
    """
    norms = [
        module
        for module in network.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
    ]
    network.eval()
    for norm in norms:
        norm.momentum = None  # cumulative average, complete after one pass
        norm.train()
    with torch.no_grad():
        network(pixels)
    network.eval()


def _export_untrained_graph(
    network: nn.Module, architecture: str, image_size: int, classes: int
) -> onnx.ModelProto:
    """Export `pixels` -> `logits` as `edgetl export` does.

    The tracer handles most convolutional families in 0.2 s; PyTorch's exporter takes 2 to 20 s. At
    64 and 224 px, onnxruntime's optimized graphs have the same operators with the same counts, and
    the logits are bit-identical. The tracer does not match the exporter for AlexNet and VGG (pools
    without effect) and DenseNet (only the exporter folds its BatchNorm; traced, it is a third
    slower).
    """
    is_traceable = get_architecture(architecture, image_size).family in _TRACEABLE_FAMILIES
    if is_traceable and source_of(architecture) != "timm":
        # If the tracer fails on an unsupported forward method, use the exporter.
        with contextlib.suppress(Exception):
            module = fold_batch_norm(fx.symbolic_trace(network))
            example = (torch.zeros(2, 3, image_size, image_size),)
            return _match_exporter_output(convert_fx_to_onnx(module, example, [PIXELS]))
    return export_network_graph(network, image_size, classes, ExportConfig.opset).model


def _match_exporter_output(traced: onnx.ModelProto) -> onnx.ModelProto:
    """Rewrite a traced graph as PyTorch's exporter would write it.

    The global pool becomes a mean, and the last layer's output becomes `logits`. Otherwise
    onnxruntime chooses other layouts; with these changes its optimized graphs are identical.
    """
    graph = traced.graph
    last_layer_output = graph.node.pop().input[0]
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [LOGITS if name == last_layer_output else name for name in names]
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
) -> tuple[CandidateParity, float]:
    session = create_session(
        extract_network(read_back(file)).SerializeToString(), threads=threads, spinning=False
    )
    with torch.inference_mode():
        reference = network(pixels).numpy()
    logits = session.run([LOGITS], {PIXELS: pixels.numpy()})[0]
    if reference.shape != logits.shape:
        raise ExportError(
            f"The file's logits have shape {logits.shape}, PyTorch's have {reference.shape}."
        )
    difference = float(np.abs(reference - logits).max())
    # The tolerance is relative, as random weights can give logits of any magnitude.
    tolerance = ExportConfig.network_tolerance * max(1.0, float(np.abs(reference).max()))
    if not difference <= tolerance:  # also true for NaN
        raise ParityError(
            f"The file does not match PyTorch: logits differ by {difference:.3g}, tolerance {tolerance:g}. "
            "Run `edgetl export` to find the first module that differs."
        )
    image = pixels[:1].numpy()
    inference_s = best_duration_s(lambda: session.run([LOGITS], {PIXELS: image}), 3)
    return CandidateParity(difference, tolerance), inference_s

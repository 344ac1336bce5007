"""Conversion to ExecuTorch programs whose operators run in XNNPACK.

Sources: ExecuTorch's documentation, "XNNPACK Backend" and its page on quantization.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.fx import GraphModule

from edgetl.core.errors import ExportError, MissingPackageError
from edgetl.core.progress import LOGGER
from edgetl.export.formats.task import ConversionTask, ConvertedFile
from edgetl.export.quantize.images import CroppedImages

_CALIBRATION_IMAGES = 100
_ANNOTATION = "quantization_annotation"
"""Key of a node's annotation in PT2E."""
_CLAMPS = (torch.ops.aten.hardtanh.default, torch.ops.aten.hardtanh_.default)
"""ReLU6 in an exported network."""
_INT8_METHOD = (
    "PT2E static quantization for XNNPACK: weights by channel, activations by tensor, ranges from "
    "histograms of {images} training images"
)


def convert_to_executorch(task: ConversionTask) -> list[ConvertedFile]:
    """Write the network as ExecuTorch programs for one image: float32, and int8 if requested.

    Raises:
        ExportError: ExecuTorch cannot export or lower the network.
        MissingPackageError: it is not installed.
    """
    _check_installed()
    side = task.crop
    files = [
        ConvertedFile(
            "executorch-fp32",
            _write_program(_export(task.module, side), task.paths("executorch", "executorch-fp32")),
            "fp32",
        )
    ]
    if task.wants_int8:
        images = task.images.calibration.take(_CALIBRATION_IMAGES)
        task.notify("Quantizing for ExecuTorch", 0, 0)
        try:
            program = _export(_quantize(task.module, images, side), side)
            paths = _write_program(program, task.paths("executorch", "executorch-int8"))
        except ExportError as cause:
            LOGGER.warning("executorch-int8 is left out: %s", cause)
        else:
            method = _INT8_METHOD.format(images=len(images))
            files.append(ConvertedFile("executorch-int8", paths, "int8", method))
    return files


def _check_installed() -> None:
    try:
        with _silence():
            import executorch.exir  # noqa: F401
            import torchao.quantization.pt2e  # noqa: F401
    except ImportError as cause:
        raise MissingPackageError(
            f'ExecuTorch is not installed ({cause}). Run `pip install "edgetl[executorch]"`.'
        ) from cause


def _export(module: nn.Module, side: int) -> ExportedProgram:
    """Export the network for one image.

    A program of variable batch leaves operators to ExecuTorch's own kernels, and is slower.
    """
    with _convert_errors("exported"):
        return torch.export.export(module, (torch.zeros(1, 3, side, side),))


def _quantize(module: nn.Module, images: CroppedImages, side: int) -> nn.Module:
    """Return the network with quantized weights and activations, calibrated on the images."""
    with _convert_errors("quantized"):
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

        prepared = prepare_pt2e(_export(module, side).module(), _make_quantizer())
        with torch.no_grad():
            for batch in images.batches(1):
                prepared(torch.from_numpy(batch))
        quantized: nn.Module = convert_pt2e(prepared)
        return quantized


def _make_quantizer() -> Any:
    """Return ExecuTorch's quantizer for XNNPACK, with the ranges of layers taken behind a clamp.

    It takes the range of a layer in front of ReLU6, where values of 70 occur, and uses it behind as
    well. XNNPACK computes layer and clamp as one operator, so the values between them need no range.
    With EfficientNet-Lite0 on 220 photos of flowers, logits are 0.22 instead of 0.90 off on average.
    """
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e.quantizer import QuantizationAnnotation

    class Quantizer(XNNPACKQuantizer):  # type: ignore[misc]
        def annotate(self, model: GraphModule) -> GraphModule:
            annotated: GraphModule = super().annotate(model)
            for node in annotated.graph.nodes:
                if node.target not in _CLAMPS or len(node.args[0].users) > 1:
                    continue
                layer = node.args[0].meta.get(_ANNOTATION)
                if layer is None or layer.output_qspec is None:
                    continue
                node.meta[_ANNOTATION] = QuantizationAnnotation(
                    output_qspec=layer.output_qspec, _annotated=True
                )
                layer.output_qspec = None
            return annotated

    quantizer = Quantizer()
    quantizer.set_global(get_symmetric_quantization_config(is_per_channel=True))
    return quantizer


def _write_program(program: ExportedProgram, paths: Sequence[Path]) -> tuple[Path, ...]:
    """Lower a network to XNNPACK and write it; return its path."""
    with _convert_errors("lowered to XNNPACK"):
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
        content = lowered.to_executorch().buffer
    paths[0].write_bytes(content)
    return tuple(paths)


@contextlib.contextmanager
def _convert_errors(step: str) -> Iterator[None]:
    try:
        with torch.no_grad(), _silence():
            yield
    except ExportError:
        raise
    except Exception as cause:  # PyTorch's and ExecuTorch's compilers raise errors of any class
        lines = str(cause).strip().splitlines() or [type(cause).__name__]
        raise ExportError(
            f"The network cannot be {step} for ExecuTorch: {lines[0][:300].rstrip('.')}. "
            "Leave ExecuTorch out of the formats."
        ) from cause


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Hide warnings on experimental functions and on the versions of dependencies."""
    loggers = [logging.getLogger(name) for name in ("torch.utils._pytree", "torch.export")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)

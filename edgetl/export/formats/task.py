"""Input and output of every converter: `ConversionTask` and `ConvertedFile`.

A converter is a function (task) -> converted files and a row in `edgetl.core.registry.FORMATS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import onnx
from torch import nn

from edgetl.core.progress import ProgressCallback
from edgetl.core.runtimes import RUNTIMES
from edgetl.export.confidence.confidence import Confidence
from edgetl.export.quantize.images import QuantizationImages
from edgetl.export.quantize.scoring import Logits, compute_logits


@dataclass(frozen=True)
class OnnxNetwork:
    """A network as ONNX, alone and with all outputs of a variant."""

    network: onnx.ModelProto
    """`pixels` float32 [batch, 3, S, S] -> `logits`."""
    model: onnx.ModelProto
    """The same with the outputs `probabilities` and, if unknown images are detected,
    `unknown_score`."""
    confidence: Confidence
    """Calibration and detector in these outputs, with their figures."""


@dataclass(frozen=True)
class ConversionTask:
    """A trained network to convert."""

    module: nn.Module
    """The network in PyTorch, in evaluation mode: float32 [batch, 3, S, S] -> logits."""
    float32: OnnxNetwork
    int8: OnnxNetwork | None
    """The variant int8 of the bundle in QDQ form; None if there is none."""
    wants_int8: bool
    """Whether int8 was among the variants to export."""
    assemble: Callable[[onnx.ModelProto], OnnxNetwork]
    """Add the outputs of a variant to another network, for example a quantized one."""
    crop: int
    """Side S of the input in pixels."""
    load_images: Callable[[], QuantizationImages]
    max_accuracy_drop: float
    """Largest accepted loss of top-1 in percentage points."""
    folder: Path
    """Folder of the bundle, for the files."""
    notify: ProgressCallback

    @cached_property
    def images(self) -> QuantizationImages:
        """Training images for calibration and for scoring candidates, decoded at first use.

        Raises:
            ExportError: there are too few images.
        """
        return self.load_images()

    @cached_property
    def held_out_logits(self) -> Logits:
        """Logits of the float32 network for the held-out images, [images, classes]."""
        return compute_logits(self.float32.network, self.images.held_out)

    def paths(self, runtime: str, name: str) -> tuple[Path, ...]:
        """Return the paths for the files of a variant, in the order of the runtime's suffixes."""
        return tuple(self.folder / f"{name}{suffix}" for suffix in RUNTIMES[runtime].suffixes)


@dataclass(frozen=True)
class ConvertedFile:
    """A variant that a converter has written; it is not proven yet."""

    name: str
    """Name of the variant: the runtime and the precision."""
    files: tuple[Path, ...]
    """Its files; two variants may share them."""
    precision: str
    """Precision to compute in: fp32, bf16, fp16 or int8."""
    method: str | None = None
    """Short description of the quantization; None for the float32 weights."""
    confidence: Confidence | None = None
    """Confidence of the graph that it was converted from; None for that of float32."""


Converter = Callable[[ConversionTask], Sequence[ConvertedFile]]
"""Converter of a format.

Raises ExportError with the reason and the next step if nothing can be converted.
"""

"""Input and output of every quantizer: `QuantizationTask` and `QuantizedModel`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import onnx

from edgetl.export.quantize.images import QuantizationImages


@dataclass(frozen=True)
class QuantizationTask:
    """A float network to quantize."""

    network: onnx.ModelProto
    """`pixels` float32 [batch, 3, S, S] -> `logits`, with folded BatchNorm and inferred shapes."""
    module_outputs: dict[str, str]
    """Module path to the name of its output value in `network`."""
    load_images: Callable[[], QuantizationImages]
    max_accuracy_drop: float
    """Largest allowed loss of top-1 in percentage points."""
    notify: Callable[[str, int, int], None]
    """Called with (step, done, total)."""
    quick: bool = False
    """Try only the schemes chosen most often, without repairs."""

    @cached_property
    def images(self) -> QuantizationImages:
        """Training images, decoded at first use.

        Raises:
            ExportError: there are too few images.
        """
        return self.load_images()


@dataclass(frozen=True)
class QuantizedModel:
    """A quantized network with the input and output of the float network."""

    network: onnx.ModelProto
    precision: str
    report: dict[str, Any] = field(default_factory=dict)
    """Details of the search, for bundle.json."""
    is_within_limit: bool = True
    """False if the accuracy drop on the held-out images exceeds the limit."""
    summary: str = ""
    """Short description of the chosen method."""

"""Input and output of every quantizer: `QuantizationTask` and `QuantizedModel`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import onnx

from edgetl.core.artifacts.bundle import Float16Record, SearchRecord
from edgetl.core.config.export import ExportConfig, SearchMode
from edgetl.core.progress import ProgressCallback
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
    notify: ProgressCallback
    search: SearchMode = ExportConfig.search
    """Extent of the search for int8."""

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
    method: str
    """Short description of the quantization."""
    search: SearchRecord | Float16Record | None = None
    """Details for bundle.json."""

    @property
    def is_within_limit(self) -> bool:
        """False if the accuracy drop on the held-out images exceeds the limit."""
        return not isinstance(self.search, SearchRecord) or self.search.is_within_limit

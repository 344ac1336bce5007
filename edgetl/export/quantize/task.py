"""What every way to make a network smaller is given, and what it returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import onnx

from edgetl.export.quantize.images import QuantizationImages


@dataclass(frozen=True)
class QuantizationTask:
    """A float network to be made smaller."""

    network: onnx.ModelProto
    """`pixels` float32 [batch, 3, S, S] -> `logits`; BatchNorm folded, types of inner values known."""
    module_outputs: dict[str, str]
    """Module path to the name of the value that it yields in `network`."""
    load_images: Callable[[], QuantizationImages]
    max_accuracy_drop: float
    """Points of top-1 that may be lost."""
    notify: Callable[[str, int, int], None]
    """Told of each step in words, with how much of it is done."""
    quick: bool = False
    """Try what is chosen most often, and repair nothing."""

    @cached_property
    def images(self) -> QuantizationImages:
        """Training images, decoded at first use.

        Raises:
            ExportError: too few.
        """
        return self.load_images()


@dataclass(frozen=True)
class QuantizedModel:
    """The smaller network, with the same input and output."""

    network: onnx.ModelProto
    precision: str
    report: dict[str, Any] = field(default_factory=dict)
    """How it was found, for bundle.json."""
    is_within_limit: bool = True
    """False where it loses more than it may on the held-back images."""
    summary: str = ""
    """What was chosen, in a few words."""

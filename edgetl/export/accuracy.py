"""Accuracy of each variant on the test images of a run, which nothing else uses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn

from edgetl.core.artifacts.bundle import AccuracyRecord
from edgetl.core.config.export import InputKind
from edgetl.core.preprocessing import Preprocessing
from edgetl.export.parity.metrics import (
    EvaluationImages,
    Logits,
    compute_accuracy,
    load_network_inputs,
    logits_for_images,
)

_BATCH_SIZE = 32
ImageSize = tuple[int, int] | None
"""Fixed size (height, width) of the photos of a variant; None for any size."""


@dataclass(frozen=True)
class AccuracyTest:
    """Measurement of accuracy on the test images of a run, in comparison with PyTorch."""

    images: EvaluationImages
    network: nn.Module
    """PyTorch network, in evaluation mode."""
    labels: list[str]
    preprocessing: Preprocessing
    input: InputKind
    _pytorch_logits: dict[ImageSize, Logits] = field(default_factory=dict)

    def measure_file(self, file: Path, size: ImageSize = None) -> AccuracyRecord | None:
        """Return the accuracy of an ONNX file on the test images."""
        return self.measure(
            lambda files: logits_for_images(file, files, self.preprocessing, self.input, size), size
        )

    def measure(
        self, run: Callable[[Sequence[Path]], Logits], size: ImageSize = None
    ) -> AccuracyRecord | None:
        """Return the accuracy on the test images of a function from files to logits."""
        logits = run(self.images.files)
        return compute_accuracy(logits, self.pytorch_logits(size), self.images, self.labels)

    def pytorch_logits(self, size: ImageSize = None) -> Logits:
        """Return PyTorch's logits for the images, [images, classes]; computed once for a size."""
        if size not in self._pytorch_logits:
            files = self.images.files
            self._pytorch_logits[size] = np.concatenate(
                [
                    self._run_pytorch(files[start : start + _BATCH_SIZE], size)
                    for start in range(0, len(files), _BATCH_SIZE)
                ]
            )
        return self._pytorch_logits[size]

    def _run_pytorch(self, files: Sequence[Path], size: ImageSize) -> Logits:
        pixels = load_network_inputs(files, self.preprocessing, size)
        with torch.inference_mode():
            logits: Logits = self.network(torch.from_numpy(pixels)).numpy()
        return logits

"""A small network as ExecuTorch programs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn

from edgetl.core.preprocessing import Preprocessing
from edgetl.export.confidence.confidence import Confidence
from edgetl.export.formats.task import ConversionTask, OnnxNetwork
from edgetl.export.quantize.images import CroppedImages, QuantizationImages

CROP = 32


class SmallNetwork(nn.Module):
    """Convolutions like MobileNet's, with the same random weights each time."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.layers = nn.Sequential(
                nn.Conv2d(3, 16, 3, 2, 1, bias=False),
                nn.BatchNorm2d(16),
                nn.ReLU6(),
                nn.Conv2d(16, 16, 3, 1, 1, groups=16),
                nn.ReLU6(),
                nn.Conv2d(16, 32, 1),
                nn.AdaptiveAvgPool2d(1),
                nn.Flatten(),
                nn.Linear(32, 5),
            )
        self.eval()

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return logits [batch, 5] for float32 [batch, 3, CROP, CROP]."""
        logits: torch.Tensor = self.layers(pixels)
        return logits


def training_images() -> QuantizationImages:
    """Return random images for calibration."""
    pixels = np.random.default_rng(1).integers(0, 256, (24, CROP, CROP, 3), np.uint8)
    images = CroppedImages(pixels, None, Preprocessing(resize=40, crop=CROP))
    return QuantizationImages(images, images)


def conversion_task(
    folder: Path, module: nn.Module | None = None, wants_int8: bool = True
) -> ConversionTask:
    """Return a task without ONNX networks, which the conversion to ExecuTorch does not need."""
    empty = OnnxNetwork(onnx.ModelProto(), onnx.ModelProto(), Confidence())
    return ConversionTask(
        module=module or SmallNetwork(),
        float32=empty,
        int8=None,
        wants_int8=wants_int8,
        assemble=lambda network: OnnxNetwork(network, network, Confidence()),
        crop=CROP,
        load_images=training_images,
        max_accuracy_drop=1.0,
        folder=folder,
        notify=lambda step, done, total: None,
    )


def convert_small_network(folder: Path) -> dict[str, Path]:
    """Write the programs and return their paths by variant."""
    from edgetl.export.formats.executorch import convert_to_executorch

    return {item.name: item.files[0] for item in convert_to_executorch(conversion_task(folder))}

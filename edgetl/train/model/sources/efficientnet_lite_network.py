"""Networks of EfficientNet-Lite, in plain PyTorch.

EfficientNet (Tan & Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks",
2019) for edge runtimes (Liu, "Higher accuracy on vision models with EfficientNet-Lite", TensorFlow
blog, 2020): without squeeze-and-excitation, with ReLU6 instead of swish so that int8 loses little,
and with a stem and a last convolution of fixed width. Layers are padded as in TensorFlow, where the
weights were trained.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

_STEM_CHANNELS, _LAST_CHANNELS = 32, 1280
_CLASSES = 1000


@dataclass(frozen=True)
class LiteScale:
    """Compound scaling of one member of the family."""

    width: float
    depth: float
    image_size: int
    """Side of the input that the published accuracy is for, pixels."""
    dropout: float


LITE_SCALES = {
    "efficientnet_lite0": LiteScale(1.0, 1.0, 224, 0.2),
    "efficientnet_lite1": LiteScale(1.0, 1.1, 240, 0.2),
    "efficientnet_lite2": LiteScale(1.1, 1.2, 260, 0.3),
}


@dataclass(frozen=True)
class _Stage:
    """Consecutive blocks of equal width; only the first has the stride."""

    expansion: int
    channels: int
    repeats: int
    stride: int
    kernel: int


_STAGES = (
    _Stage(1, 16, 1, 1, 3),
    _Stage(6, 24, 2, 2, 3),
    _Stage(6, 40, 2, 2, 5),
    _Stage(6, 80, 3, 2, 3),
    _Stage(6, 112, 3, 1, 5),
    _Stage(6, 192, 4, 2, 5),
    _Stage(6, 320, 1, 1, 3),
)
"""Stages of EfficientNet-B0."""


class EfficientNetLite(nn.Module):
    """EfficientNet-Lite [batch, 3, S, S] -> logits [batch, 1000].

    The names of its tensors do not depend on the input size. Stochastic depth is left out: it
    regularizes 350 epochs of ImageNet, not a few epochs of a fine-tuning run.
    """

    def __init__(self, scale: LiteScale, image_size: int) -> None:
        """Build the network.

        Args:
            scale: compound scaling.
            image_size: side of the input, pixels, which determines the padding.
        """
        super().__init__()
        self.stem = _make_convolution(3, _STEM_CHANNELS, image_size, kernel=3, stride=2)
        size = math.ceil(image_size / 2)
        blocks: list[nn.Module] = []
        channels = _STEM_CHANNELS
        for stage in _scale_stages(scale):
            for index in range(stage.repeats):
                stride = stage.stride if index == 0 else 1
                blocks.append(_InvertedResidual(channels, stage, size, stride))
                channels = stage.channels
                size = math.ceil(size / stride)
        self.blocks = nn.Sequential(*blocks)
        self.last_conv = _make_convolution(channels, _LAST_CHANNELS, size)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(scale.dropout)
        self.classifier = nn.Linear(_LAST_CHANNELS, _CLASSES)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the logits of a batch of normalized images."""
        features = self.last_conv(self.blocks(self.stem(pixels)))
        logits: Tensor = self.classifier(self.dropout(torch.flatten(self.pool(features), 1)))
        return logits


class _InvertedResidual(nn.Module):
    """Expansion, depthwise convolution and linear projection, with a shortcut where shapes match."""

    def __init__(self, channels: int, stage: _Stage, input_size: int, stride: int) -> None:
        super().__init__()
        width = channels * stage.expansion
        self.expand: nn.Module = nn.Identity()
        if stage.expansion > 1:
            self.expand = _make_convolution(channels, width, input_size)
        self.depthwise = _make_convolution(
            width, width, input_size, stage.kernel, stride, groups=width
        )
        self.project = _make_convolution(
            width, stage.channels, math.ceil(input_size / stride), activation=False
        )
        self._has_shortcut = stride == 1 and channels == stage.channels

    def forward(self, values: Tensor) -> Tensor:
        projected: Tensor = self.project(self.depthwise(self.expand(values)))
        return values + projected if self._has_shortcut else projected


def _make_convolution(
    input_channels: int,
    output_channels: int,
    input_size: int,
    kernel: int = 1,
    stride: int = 1,
    groups: int = 1,
    activation: bool = True,
) -> nn.Sequential:
    """Return a convolution with TensorFlow's padding, BatchNorm and ReLU6."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    before, after = compute_same_padding(input_size, kernel, stride)
    if before != after:
        # A convolution's padding is symmetric in PyTorch. The exporter joins this layer with the
        # convolution, whose padding may differ from side to side in ONNX.
        layers["pad"] = nn.ZeroPad2d((before, after, before, after))
    layers["conv"] = nn.Conv2d(
        input_channels,
        output_channels,
        kernel,
        stride,
        padding=before if before == after else 0,
        groups=groups,
        bias=False,
    )
    # TensorFlow's momentum is 0.01, too slow for the few hundred steps of a fine-tuning run: on
    # images unlike ImageNet's (magnetic tiles, decision 005) it costs 8 points of accuracy.
    layers["norm"] = nn.BatchNorm2d(output_channels, eps=1e-3, momentum=0.1)
    if activation:
        layers["activation"] = nn.ReLU6(inplace=True)
    return nn.Sequential(layers)


def compute_same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Return the padding before and after an axis in TensorFlow's mode "SAME".

    The output has ceil(size / stride) values; an odd number of zeros puts one more at the end.
    """
    total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def _scale_stages(scale: LiteScale) -> Iterator[_Stage]:
    for index, stage in enumerate(_STAGES):
        repeats = stage.repeats
        if 0 < index < len(_STAGES) - 1:  # Lite keeps the depth of the first and the last stage
            repeats = math.ceil(scale.depth * repeats)
        yield _Stage(
            stage.expansion,
            _round_channels(scale.width * stage.channels),
            repeats,
            stage.stride,
            stage.kernel,
        )


def _round_channels(channels: float) -> int:
    """Round to a multiple of 8 that is not more than 10% smaller."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * channels else rounded + 8


def rename_checkpoint_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of lukemelas' EfficientNet-PyTorch to those of `EfficientNetLite`.

    Tensors of other names stay as they are.
    """
    return {_rename_tensor(name): tensor for name, tensor in tensors.items()}


_OUTER_LAYERS = {
    "_conv_stem": "stem.conv",
    "_bn0": "stem.norm",
    "_conv_head": "last_conv.conv",
    "_bn1": "last_conv.norm",
    "_fc": "classifier",
}
_BLOCK_LAYERS = {
    "_expand_conv": "expand.conv",
    "_bn0": "expand.norm",
    "_depthwise_conv": "depthwise.conv",
    "_bn1": "depthwise.norm",
    "_project_conv": "project.conv",
    "_bn2": "project.norm",
}


def _rename_tensor(name: str) -> str:
    match name.split("."):
        case ["_blocks", index, layer, tensor] if layer in _BLOCK_LAYERS:
            return f"blocks.{index}.{_BLOCK_LAYERS[layer]}.{tensor}"
        case [layer, tensor] if layer in _OUTER_LAYERS:
            return f"{_OUTER_LAYERS[layer]}.{tensor}"
    return name

"""A small network in PyTorch and as the files of ncnn, written without pnnx."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgetl.export.formats.ncnn_model import NcnnLayer, write_param, write_weights

SIDE, CLASSES, CHANNELS = 16, 3, 8


class SmallNetwork(nn.Module):
    """A convolution, a depthwise one, a pointwise one and a matrix product."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, CHANNELS, 3, 2, 1)
        self.depthwise = nn.Conv2d(CHANNELS, CHANNELS, 3, 1, 1, groups=CHANNELS)
        self.pointwise = nn.Conv2d(CHANNELS, 2 * CHANNELS, 1)
        self.classifier = nn.Linear(2 * CHANNELS, CLASSES)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return logits."""
        values = torch.relu(
            self.pointwise(torch.relu(self.depthwise(torch.relu(self.first(pixels)))))
        )
        return self.classifier(values.mean((2, 3)))


def make_layers(network: SmallNetwork) -> list[NcnnLayer]:
    """Return the layers of ncnn, with the outputs `logits` and `probabilities`."""
    relu = {9: "1"}
    kernel = {1: "3", 4: "1", 5: "1"}
    return [
        NcnnLayer("Input", "input", (), ("pixels",)),
        _weighted("Convolution", "first", ("pixels",), "a", network.first, {**kernel, 3: "2", **relu}),
        _weighted(
            "ConvolutionDepthWise", "depthwise", ("a",), "b", network.depthwise,
            {**kernel, 7: str(CHANNELS), **relu},
        ),
        _weighted("Convolution", "pointwise", ("b",), "c", network.pointwise, {1: "1", 5: "1", **relu}),
        NcnnLayer("Reduction", "mean", ("c",), ("d",), {0: "3", 1: "0", -23303: "2,1,2", 4: "0", 5: "1"}),
        _weighted("InnerProduct", "classifier", ("d",), "e", network.classifier, {1: "1"}),
        NcnnLayer("Split", "split", ("e",), ("logits", "f")),
        NcnnLayer("Softmax", "softmax", ("f",), ("probabilities",), {0: "0", 1: "1"}),
    ]  # fmt: skip


def write_small_model(folder: Path) -> tuple[SmallNetwork, tuple[Path, Path]]:
    """Write the files; return the network and their paths."""
    network = SmallNetwork().eval()
    files = (folder / "ncnn-fp32.param", folder / "ncnn-fp32.bin")
    layers = make_layers(network)
    write_param(files[0], layers)
    write_weights(files[1], layers)
    return network, files


def compute_logits(network: nn.Module, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return PyTorch's logits."""
    with torch.no_grad():
        logits: NDArray[np.float32] = network(torch.from_numpy(pixels)).numpy()
    return logits


def make_pixels(count: int, seed: int = 0) -> NDArray[np.float32]:
    """Return random network inputs."""
    return np.random.default_rng(seed).normal(0, 1, (count, 3, SIDE, SIDE)).astype(np.float32)


def _weighted(
    kind: str,
    name: str,
    bottoms: tuple[str, ...],
    top: str,
    module: nn.Conv2d | nn.Linear,
    parameters: dict[int, str],
) -> NcnnLayer:
    weights = module.weight.detach().numpy().ravel()
    size = 2 if kind == "InnerProduct" else 6
    assert module.bias is not None
    return NcnnLayer(
        kind,
        name,
        bottoms,
        (top,),
        {0: str(len(module.weight)), **parameters, size: str(len(weights))},
        weights,
        module.bias.detach().numpy().tobytes(),
    )

"""Diagnosis of failed parity proofs: recognize common mistakes from the numbers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations

import numpy as np
import onnx
from numpy.typing import NDArray
from torch import nn

from edgetl.core.preprocessing import Preprocessing

PIXEL_TOLERANCE = 2
"""Largest difference between pixels resized in the graph and by Pillow, in grey levels.

Each of the two passes may round halfway values differently. Photos that are a few percent larger
than the resize show the sum of both in up to one image of 14.
"""
_INPUT_TOLERANCE = 1e-3
"""Largest difference of network inputs computed from equal pixels."""


def diagnose_training_mode(network: nn.Module) -> str | None:
    """Return a sentence on the first BatchNorm or Dropout module in training mode, or None."""
    kinds = (nn.modules.batchnorm._BatchNorm, nn.Dropout)
    for path, module in network.named_modules():
        if isinstance(module, kinds) and module.training:
            return f"{path} ({type(module).__name__}) is in training mode: call network.eval() before exporting."
    return None


def diagnose_pixels(
    cropped: NDArray[np.uint8], expected: NDArray[np.uint8], model: onnx.ModelProto
) -> str:
    """Explain why crops [batch, S, S, 3] differ from the expected ones; empty if unknown."""
    for order in permutations(range(3)):
        if order == (0, 1, 2):
            continue
        if _max_pixel_difference(cropped, expected[..., list(order)]) <= PIXEL_TOLERANCE:
            return f"The channels are in the order {_letters(order)} instead of RGB. "
    for node in _all_nodes(model.graph):
        if node.op_type != "Resize":
            continue
        attributes = {attribute.name: attribute.i for attribute in node.attribute}
        missing = [
            f"{name}=1" for name in ("antialias", "exclude_outside") if not attributes.get(name)
        ]
        if missing:
            return f"Its Resize lacks {' and '.join(missing)}, which Pillow's resize needs. "
    return ""


def diagnose_input(
    inputs: NDArray[np.float32],
    expected: NDArray[np.float32],
    crops: NDArray[np.uint8],
    preprocessing: Preprocessing,
) -> str:
    """Explain why network inputs [batch, 3, S, S] differ from the expected ones.

    Args:
        inputs: computed in the graph from `crops`.
        expected: normalized `crops`.
        crops: the graph's crops, [batch, S, S, 3].
        preprocessing: its mean and std are the expected ones.

    Returns:
        One sentence, or an empty string if the inputs agree.
    """
    if float(np.abs(inputs - expected).max()) <= _INPUT_TOLERANCE:
        return ""
    expected_mean = np.array(preprocessing.mean, np.float32).reshape(3, 1, 1)
    expected_std = np.array(preprocessing.std, np.float32).reshape(3, 1, 1)
    pixels = (inputs * expected_std + expected_mean).transpose(0, 2, 3, 1) * 255
    for order in permutations(range(3)):
        if order == (0, 1, 2):
            continue
        if np.abs(pixels - crops[..., list(order)]).max() <= PIXEL_TOLERANCE:
            return (
                f"After the resize the channels are in the order {_letters(order)} instead of RGB. "
            )
    for channel in range(3):
        # pixel / 255 = std * input + mean, so a linear fit recovers the file's mean and std.
        channel_inputs = inputs[:, channel].ravel()
        if np.ptp(channel_inputs) == 0:
            return f"The network's input is one constant for channel {'RGB'[channel]}. "
        std, mean = np.polyfit(channel_inputs, crops[..., channel].ravel() / 255.0, 1)
        mean_difference = abs(mean - preprocessing.mean[channel])
        std_difference = abs(std - preprocessing.std[channel])
        if mean_difference > 1e-3 or std_difference > 1e-3:
            return (
                f"The file normalizes channel {'RGB'[channel]} with mean {mean:.3f} and std {std:.3f}; "
                f"training used {preprocessing.mean[channel]:.3f} and {preprocessing.std[channel]:.3f}. "
            )
    return "The pixels are right but the network's input is not; check the steps between them. "


def diagnose_logits(
    reference: NDArray[np.float32], logits: NDArray[np.float32], tolerance: float
) -> str:
    """Return a sentence if `logits` [images, classes] are permuted; otherwise an empty string."""
    if reference.shape != logits.shape or reference.shape[1] > 2000:
        return ""
    if not np.isfinite(logits).all():
        return ""
    # Sorting the columns by their values on all images brings equal columns to equal positions.
    left, right = np.lexsort(reference[::-1]), np.lexsort(logits[::-1])
    if np.array_equal(left, right):
        return ""
    if float(np.abs(reference[:, left] - logits[:, right]).max()) > tolerance:
        return ""
    pairs = sorted(zip(right.tolist(), left.tolist(), strict=True))
    output, label = next(pair for pair in pairs if pair[0] != pair[1])
    return (
        f"The logits are PyTorch's in another order of labels: output {output} is class {label}. "
    )


def _letters(order: Sequence[int]) -> str:
    return "".join("RGB"[channel] for channel in order)


def _max_pixel_difference(left: NDArray[np.uint8], right: NDArray[np.uint8]) -> int:
    return int(np.abs(left.astype(np.int16) - right.astype(np.int16)).max())


def _all_nodes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    nodes = list(graph.node)
    for node in graph.node:
        for attribute in node.attribute:
            nodes += _all_nodes(attribute.g)
    return nodes

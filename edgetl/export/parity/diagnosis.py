"""What usual mistakes look like in the figures of a failed proof, so that the message can name them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations

import numpy as np
import onnx
from numpy.typing import NDArray
from torch import nn

from edgetl.core.preprocessing import Preprocessing

_PIXEL_TOLERANCE = 1
"""Grey levels by which equal pixels may differ."""
_INPUT_TOLERANCE = 1e-3
"""Largest difference of equal network inputs that came from equal pixels."""


def diagnose_training_mode(network: nn.Module) -> str | None:
    """One sentence naming the first module whose answer depends on the rest of the batch or on chance; None where all is well."""
    kinds = (nn.modules.batchnorm._BatchNorm, nn.Dropout)
    for path, module in network.named_modules():
        if isinstance(module, kinds) and module.training:
            return f"{path} ({type(module).__name__}) is in training mode: call network.eval() before exporting."
    return None


def diagnose_pixels(
    found: NDArray[np.uint8], expected: NDArray[np.uint8], model: onnx.ModelProto
) -> str:
    """A sentence on crops [batch, S, S, 3] that differ; empty where nothing is recognised."""
    for order in permutations(range(3)):
        if (
            order != (0, 1, 2)
            and _max_pixel_difference(found, expected[..., list(order)]) <= _PIXEL_TOLERANCE
        ):
            return f"The channels are in the order {_letters(order)} instead of RGB. "
    for node in _all_nodes(model.graph):
        if node.op_type == "Resize":
            given = {attribute.name: attribute.i for attribute in node.attribute}
            missing = [name for name in ("antialias", "exclude_outside") if not given.get(name)]
            if missing:
                return f"Its Resize lacks {' and '.join(f'{name}=1' for name in missing)}, as Pillow resizes. "
    return ""


def diagnose_input(
    found: NDArray[np.float32],
    expected: NDArray[np.float32],
    crops: NDArray[np.uint8],
    contract: Preprocessing,
) -> str:
    """A sentence on the network's input [batch, 3, S, S], computed in the graph from its own crops; empty where it agrees."""
    if float(np.abs(found - expected).max()) <= _INPUT_TOLERANCE:
        return ""
    for order in permutations(range(3)):
        scaled = found * np.array(contract.std, np.float32).reshape(3, 1, 1) + np.array(
            contract.mean, np.float32
        ).reshape(3, 1, 1)
        pixels = scaled.transpose(0, 2, 3, 1) * 255
        if (
            order != (0, 1, 2)
            and np.abs(pixels - crops[..., list(order)]).max() <= _PIXEL_TOLERANCE
        ):
            letters = "".join("RGB"[channel] for channel in order)
            return f"After the resize the file puts the channels in the order {letters} instead of RGB. "
    for channel in range(3):
        # pixel / 255 = std * input + mean, whatever mean and std the file has.
        values, given = crops[..., channel].ravel() / 255.0, found[:, channel].ravel()
        if np.ptp(given) == 0:
            return f"The file gives the network one constant for channel {'RGB'[channel]}. "
        std, mean = np.polyfit(given, values, 1)
        if abs(mean - contract.mean[channel]) > 1e-3 or abs(std - contract.std[channel]) > 1e-3:
            return (
                f"The file normalises channel {'RGB'[channel]} with mean {mean:.3f} and std {std:.3f}; "
                f"training did with {contract.mean[channel]:.3f} and {contract.std[channel]:.3f}. "
            )
    return "The pixels are right and the network's input is not: the steps between them differ. "


def diagnose_logits(
    reference: NDArray[np.float32], answer: NDArray[np.float32], tolerance: float
) -> str:
    """A sentence where logits [images, classes] are the right ones in another order; empty otherwise."""
    if (
        reference.shape != answer.shape
        or not np.isfinite(answer).all()
        or reference.shape[1] > 2000
    ):
        return ""
    # Sorted by their values on all images, equal columns come to equal places.
    left, right = np.lexsort(reference[::-1]), np.lexsort(answer[::-1])
    if (
        np.array_equal(left, right)
        or float(np.abs(reference[:, left] - answer[:, right]).max()) > tolerance
    ):
        return ""
    output, label = next(
        pair
        for pair in sorted(zip(right.tolist(), left.tolist(), strict=True))
        if pair[0] != pair[1]
    )
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

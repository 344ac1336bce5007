"""Repairs for a quantized network that lost too much: biases corrected, and layers ranked by what quantizing them destroys."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import TensorsData

from edgetl.device.runtime.session import create_session
from edgetl.export.graph.assemble import with_outputs
from edgetl.export.graph.preprocessing import PIXELS
from edgetl.export.quantize.calibration import Calibration
from edgetl.export.quantize.images import CroppedImages
from edgetl.export.quantize.layers import Layer, fake_quantize_weight, find_layers, with_constants
from edgetl.export.quantize.qdq import Scheme

_IMAGES = 16


def correct_biases(
    network: onnx.ModelProto,
    calibration: Calibration,
    scheme: Scheme,
    excluded: Collection[str] = (),
) -> onnx.ModelProto:
    """A copy whose biases make up for the mean error that rounded weights cause (Nagel et al., 2019, section 4.2).

    The error of an output channel is the rounding error of its weights times the mean of its inputs, which calibration has seen.

    Args:
        excluded: names of layers that stay in float and round nothing.
    """
    changed: dict[str, NDArray[np.float32]] = {}
    for layer in find_layers(network):
        seen = calibration.activation_stats.get(layer.node.input[0])
        if layer.bias is None or seen is None or layer.name in excluded:
            continue
        error = (
            fake_quantize_weight(layer.weight, scheme.per_channel, 7 if scheme.reduce_range else 8)
            - layer.weight
        )
        changed[layer.node.input[2]] = layer.bias - _expected_output_error(
            error, seen.channel_means, layer.groups
        )
    return with_constants(network, changed)


def _expected_output_error(
    error: NDArray[np.float32], means: NDArray[np.float64], groups: int
) -> NDArray[np.float32]:
    # [out, in / groups, ...] times [in] -> [out]; borders are left out of account.
    rows = error.reshape(*error.shape[:2], -1).sum(2, dtype=np.float64)
    inputs = means.reshape(groups, -1)
    return np.concatenate(
        [part @ inputs[group] for group, part in enumerate(np.split(rows, groups))]
    ).astype(np.float32)


def layers_by_error(
    network: onnx.ModelProto, ranges: TensorsData, scheme: Scheme, images: CroppedImages
) -> list[str]:
    """Names of the layers, the one whose signal to quantization noise ratio is lowest first.

    Noise is what rounding does to its weights and to its inputs on a few images, each relative to its own signal.
    """
    found = list(find_layers(network))
    sources = sorted({layer.node.input[0] for layer in found if layer.node.input[0] in ranges})
    session = create_session(
        with_outputs(network, [name for name in sources if name != PIXELS]).SerializeToString()
    )
    names = [output.name for output in session.get_outputs()]
    noise, signal = dict.fromkeys(sources, 0.0), dict.fromkeys(sources, 1e-30)
    for batch in images.take(_IMAGES).batches(4):
        values = {
            PIXELS: batch,
            **dict(zip(names, session.run(names, {PIXELS: batch}), strict=True)),
        }
        for name in sources:
            low, high = (float(bound) for bound in ranges[name].range_value)
            noise[name] += float(
                np.square(
                    values[name] - _fake_quantize(values[name], low, high), dtype=np.float64
                ).sum()
            )
            signal[name] += float(np.square(values[name], dtype=np.float64).sum())

    def lost(layer: Layer) -> float:
        error = (
            fake_quantize_weight(layer.weight, scheme.per_channel, 7 if scheme.reduce_range else 8)
            - layer.weight
        )
        weights = float(np.square(error, dtype=np.float64).sum()) / max(
            1e-30, float(np.square(layer.weight, dtype=np.float64).sum())
        )
        source = layer.node.input[0]
        return weights + (noise[source] / signal[source] if source in noise else 0.0)

    return [layer.name for layer in sorted(found, key=lambda layer: (-lost(layer), layer.name))]


def _fake_quantize(values: NDArray[np.float32], low: float, high: float) -> NDArray[np.float32]:
    # As asymmetric 8 bits, with zero among the steps.
    low, high = min(low, 0.0), max(high, 0.0)
    scale = max(high - low, 1e-12) / 255
    zero = round(-low / scale)
    return np.asarray((np.clip(np.round(values / scale) + zero, 0, 255) - zero) * scale, np.float32)

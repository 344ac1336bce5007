"""Repairs for quantized networks: bias correction, and ranking of layers by quantization error."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import TensorsData

from edgetl.core.artifacts.bundle import QuantizationScheme
from edgetl.device.runtime.session import create_session
from edgetl.export.graph.assemble import with_outputs
from edgetl.export.graph.preprocessing import PIXELS
from edgetl.export.quantize.calibration import Calibration
from edgetl.export.quantize.images import CroppedImages
from edgetl.export.quantize.layers import Layer, fake_quantize_weight, find_layers, with_constants

_RANKING_IMAGES = 16


def correct_biases(
    network: onnx.ModelProto,
    calibration: Calibration,
    scheme: QuantizationScheme,
    excluded: Collection[str] = (),
) -> onnx.ModelProto:
    """Return a copy whose biases compensate the mean error of rounded weights.

    The mean error of an output channel is the rounding error of its weights times the mean of its
    inputs on the calibration images (Nagel et al., 2019, arXiv:1906.04721, section 4.2).

    Args:
        network: float network, `pixels` -> `logits`.
        calibration: activation statistics of the network.
        scheme: determines the rounding of the weights.
        excluded: names of layers that stay in float.
    """
    biases: dict[str, NDArray[np.float32]] = {}
    for layer in find_layers(network):
        stats = calibration.activation_stats.get(layer.node.input[0])
        if layer.bias is None or stats is None or layer.name in excluded:
            continue
        output_error = _expected_output_error(
            _weight_error(layer, scheme), stats.channel_means, layer.groups
        )
        biases[layer.node.input[2]] = layer.bias - output_error
    return with_constants(network, biases)


def _weight_error(layer: Layer, scheme: QuantizationScheme) -> NDArray[np.float32]:
    rounded = fake_quantize_weight(layer.weight, scheme.per_channel, scheme.weight_bits)
    return rounded - layer.weight


def _expected_output_error(
    error: NDArray[np.float32], means: NDArray[np.float64], groups: int
) -> NDArray[np.float32]:
    # [out, in / groups, ...] times [in] -> [out]; padding at the borders is ignored.
    rows = error.reshape(*error.shape[:2], -1).sum(2, dtype=np.float64)
    inputs = means.reshape(groups, -1)
    return np.concatenate(
        [group_rows @ inputs[group] for group, group_rows in enumerate(np.split(rows, groups))]
    ).astype(np.float32)


def layers_by_error(
    network: onnx.ModelProto, ranges: TensorsData, scheme: QuantizationScheme, images: CroppedImages
) -> list[str]:
    """Return the names of the layers, those with the largest quantization error first.

    The error is the relative noise of rounding the weights plus that of rounding the inputs,
    measured on a few images.
    """
    layers = list(find_layers(network))
    sources = sorted({layer.node.input[0] for layer in layers if layer.node.input[0] in ranges})
    input_noise = _relative_input_noise(network, sources, ranges, images)

    def error(layer: Layer) -> float:
        noise = _energy(_weight_error(layer, scheme)) / max(1e-30, _energy(layer.weight))
        return noise + input_noise.get(layer.node.input[0], 0.0)

    return [layer.name for layer in sorted(layers, key=lambda layer: (-error(layer), layer.name))]


def _relative_input_noise(
    network: onnx.ModelProto, sources: list[str], ranges: TensorsData, images: CroppedImages
) -> dict[str, float]:
    """Return the noise-to-signal ratio of each value in `sources` when rounded to 8 bits."""
    model = with_outputs(network, [name for name in sources if name != PIXELS])
    session = create_session(model.SerializeToString())
    names = [output.name for output in session.get_outputs()]
    noise = dict.fromkeys(sources, 0.0)
    signal = dict.fromkeys(sources, 1e-30)
    for batch in images.take(_RANKING_IMAGES).batches(4):
        outputs = zip(names, session.run(names, {PIXELS: batch}), strict=True)
        values = {PIXELS: batch, **dict(outputs)}
        for name in sources:
            low, high = (float(bound) for bound in ranges[name].range_value)
            noise[name] += _energy(values[name] - _fake_quantize(values[name], low, high))
            signal[name] += _energy(values[name])
    return {name: noise[name] / signal[name] for name in sources}


def _energy(values: NDArray[np.float32]) -> float:
    return float(np.square(values, dtype=np.float64).sum())


def _fake_quantize(values: NDArray[np.float32], low: float, high: float) -> NDArray[np.float32]:
    # Asymmetric 8 bits; zero must be one of the steps.
    low, high = min(low, 0.0), max(high, 0.0)
    scale = max(high - low, 1e-12) / 255
    zero_point = round(-low / scale)
    steps = np.clip(np.round(values / scale) + zero_point, 0, 255)
    return np.asarray((steps - zero_point) * scale, np.float32)

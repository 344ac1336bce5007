"""Rounding of weights in which each rounding error is compensated by the weights that remain.

Rounding every weight to the nearest step minimizes the error of the weights. What matters is the
error of a layer's output, in which the errors of weights with correlated inputs add up or cancel.
The weights of an output channel are therefore rounded one after another, and the error of each is
distributed over those that are not rounded yet, according to the covariance of their inputs. The
mean error that is left goes into the bias.

Source: GPTQ, Frantar et al., 2023, arXiv:2210.17323, with a centered second moment, because the bias
takes the mean.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from edgetl.core.artifacts.bundle import QuantizationScheme
from edgetl.device.runtime.session import create_session
from edgetl.export.graph.assemble import with_outputs
from edgetl.export.graph.preprocessing import PIXELS
from edgetl.export.quantize.images import CroppedImages
from edgetl.export.quantize.layers import (
    Layer,
    find_layers,
    weight_limit,
    weight_scales,
    with_constants,
)

_MAX_INPUTS = 2048
"""Largest number of weights of an output channel; wider layers are rounded to the nearest step."""
_IMAGES, _MAX_POSITIONS = 128, 64
"""Largest number of images, and of positions in each, that the covariances are computed from."""
_SAMPLES_PER_INPUT, _MIN_SAMPLES = 6, 1024
"""Samples that a covariance is computed from."""
_BATCH = 4
_DAMPING = 0.01
"""Added to the variances, relative to their mean, so that the covariance can be inverted."""
_BLOCK = 64
"""Columns that are rounded before the columns after them are updated."""


@dataclass
class _Moments:
    """Sums over the inputs of a layer, by group."""

    products: NDArray[np.float64]
    """Sums of x x^T, [groups, inputs, inputs]."""
    sums: NDArray[np.float64]
    """Sums of x, [groups, inputs]."""
    count: int = 0

    @property
    def means(self) -> NDArray[np.float64]:
        """Mean inputs, [groups, inputs]."""
        return self.sums / self.count

    @property
    def covariances(self) -> NDArray[np.float64]:
        """Covariances of the inputs, [groups, inputs, inputs]."""
        means = self.means
        return self.products / self.count - means[:, :, None] * means[:, None, :]


class WeightRounder:
    """Rounds the weights of a network, from the covariances of each layer's inputs."""

    def __init__(self, network: onnx.ModelProto, images: CroppedImages) -> None:
        """Run the network on the images.

        Args:
            network: float network, `pixels` -> `logits`.
            images: calibration images.
        """
        self._network = network
        uses = Counter(name for node in network.graph.node for name in node.input)
        self._layers = [
            layer
            for layer in find_layers(network)
            if layer.bias is not None
            and layer.weight.ndim in (2, 4)
            and layer.weight[0].size <= _MAX_INPUTS
            and all(uses[name] == 1 for name in layer.node.input[1:])
        ]
        self._moments = {
            layer.name: _Moments(
                np.zeros((layer.groups, layer.weight[0].size, layer.weight[0].size)),
                np.zeros((layer.groups, layer.weight[0].size)),
            )
            for layer in self._layers
        }
        generator = np.random.default_rng(0)
        images = images.take(_IMAGES)
        for values in self._layer_inputs(images):
            for layer in self._layers:
                samples = max(_MIN_SAMPLES, _SAMPLES_PER_INPUT * layer.weight[0].size)
                count = min(_MAX_POSITIONS, math.ceil(samples / len(images)))
                inputs = _sample_inputs(values[layer.node.input[0]], layer, count, generator)
                moments = self._moments[layer.name]
                moments.products += inputs.transpose(0, 2, 1) @ inputs
                moments.sums += inputs.sum(1)
                moments.count += inputs.shape[1]

    def _layer_inputs(self, images: CroppedImages) -> Iterator[dict[str, NDArray[np.float32]]]:
        sources = sorted({layer.node.input[0] for layer in self._layers} - {PIXELS})
        session = create_session(with_outputs(self._network, sources).SerializeToString())
        for batch in images.batches(_BATCH):
            outputs = session.run(sources, {PIXELS: batch})
            yield {PIXELS: batch, **dict(zip(sources, outputs, strict=True))}

    def round(self, scheme: QuantizationScheme, excluded: Collection[str] = ()) -> onnx.ModelProto:
        """Return a copy whose weights are on the steps of the scheme, with corrected biases.

        Layers without a bias, with more than 2048 weights per output channel, with shared weights or
        with inputs whose covariance cannot be inverted are unchanged.

        Args:
            scheme: determines the steps.
            excluded: names of layers that stay in float.
        """
        constants: dict[str, NDArray[np.float32]] = {}
        for layer in self._layers:
            if layer.name in excluded:
                continue
            assert layer.bias is not None
            moments = self._moments[layer.name]
            shape = (layer.groups, -1, layer.weight[0].size)
            scales = weight_scales(layer.weight, scheme.per_channel, scheme.weight_bits)
            try:
                rounded = _round_with_compensation(
                    layer.weight.reshape(shape).astype(np.float64),
                    np.broadcast_to(scales, layer.weight.shape).reshape(shape)[:, :, 0],
                    moments.covariances,
                    weight_limit(scheme.weight_bits),
                )
            except np.linalg.LinAlgError:
                # Inputs with a mean far above their deviation can make the covariance indefinite.
                continue
            weight = rounded.reshape(layer.weight.shape).astype(np.float32)
            error = (weight - layer.weight).reshape(shape)
            mean_error = np.einsum("goi,gi->go", error, moments.means).reshape(-1)
            constants[layer.node.input[1]] = weight
            constants[layer.node.input[2]] = (layer.bias - mean_error).astype(np.float32)
        return with_constants(self._network, constants)


def _sample_inputs(
    values: NDArray[np.float32], layer: Layer, count: int, generator: np.random.Generator
) -> NDArray[np.float32]:
    """Return the inputs of a layer at random positions, [groups, samples, inputs].

    Args:
        values: input of the layer, [batch, channels, height, width] or [batch, channels].
        layer: convolution or fully connected layer.
        count: largest number of positions in an image.
        generator: chooses the positions, the same ones for each image of the batch.
    """
    if values.ndim == 2:
        return values[None]
    attributes = {attribute.name: list(attribute.ints) for attribute in layer.node.attribute}
    top, left, bottom, right = attributes.get("pads", [0, 0, 0, 0])
    row_stride, column_stride = attributes.get("strides", [1, 1])
    row_dilation, column_dilation = attributes.get("dilations", [1, 1])
    height, width = layer.weight.shape[2:]
    padded = np.pad(values, ((0, 0), (0, 0), (top, bottom), (left, right)))
    extent = (row_dilation * (height - 1) + 1, column_dilation * (width - 1) + 1)
    windows = sliding_window_view(padded, extent, axis=(2, 3))
    windows = windows[:, :, ::row_stride, ::column_stride, ::row_dilation, ::column_dilation]
    batch, channels, rows, columns = windows.shape[:4]
    positions = generator.permutation(rows * columns)[:count]
    samples = windows[:, :, positions // columns, positions % columns]
    grouped = samples.reshape(batch, layer.groups, channels // layer.groups, len(positions), -1)
    return grouped.transpose(1, 0, 3, 2, 4).reshape(
        layer.groups, batch * len(positions), layer.weight[0].size
    )


def _round_with_compensation(
    weights: NDArray[np.float64],
    scales: NDArray[np.float64],
    covariances: NDArray[np.float64],
    limit: int,
) -> NDArray[np.float64]:
    """Round weights to multiples of `scales`.

    The weight with the largest magnitude of a channel is kept, because the quantizer derives the
    scale from it.

    Args:
        weights: [groups, channels, inputs].
        scales: step of each channel, [groups, channels].
        covariances: of the inputs, [groups, inputs, inputs].
        limit: largest integer.

    Raises:
        LinAlgError: the covariances are not positive definite.
    """
    inputs = weights.shape[2]
    variances = np.einsum("gii->gi", covariances)
    damping = _DAMPING * variances.mean(1, keepdims=True) + 1e-12
    # Inputs with a large variance come first: many weights can still compensate their errors.
    order = np.argsort(-variances, axis=1, kind="stable")
    damped = covariances + damping[:, :, None] * np.eye(inputs)
    damped = np.take_along_axis(damped, order[:, :, None], 1)
    damped = np.take_along_axis(damped, order[:, None, :], 2)
    factors = np.linalg.cholesky(np.linalg.inv(damped)).transpose(0, 2, 1)
    if not np.isfinite(factors).all():  # NumPy raises no error for NaN
        raise np.linalg.LinAlgError("the covariances are not finite")
    remaining = np.take_along_axis(weights, order[:, None, :], 2)
    is_peak = np.abs(remaining) >= limit * scales[:, :, None] * (1 - 1e-6)
    rounded = np.empty_like(remaining)
    original = remaining.copy()
    for start in range(0, inputs, _BLOCK):
        stop = min(start + _BLOCK, inputs)
        errors = np.empty((*remaining.shape[:2], stop - start))
        for column in range(start, stop):
            steps = np.clip(np.round(remaining[:, :, column] / scales), -limit, limit)
            nearest = np.round(original[:, :, column] / scales)
            steps = np.where(is_peak[:, :, column], nearest, steps)
            rounded[:, :, column] = steps * scales
            error = remaining[:, :, column] - rounded[:, :, column]
            error /= factors[:, column, column][:, None]
            remaining[:, :, column:stop] -= (
                error[:, :, None] * factors[:, None, column, column:stop]
            )
            errors[:, :, column - start] = error
        remaining[:, :, stop:] -= errors @ factors[:, start:stop, stop:]
    inverse = np.argsort(order, axis=1)
    return np.take_along_axis(rounded, inverse[:, None, :], 2)

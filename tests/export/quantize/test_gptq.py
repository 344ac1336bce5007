"""Rounding of weights with compensation of the errors."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from edgetl.core.artifacts.bundle import QuantizationScheme
from edgetl.core.preprocessing import Preprocessing
from edgetl.export.graph.torch_export import export_network_graph
from edgetl.export.quantize import gptq
from edgetl.export.quantize.gptq import WeightRounder
from edgetl.export.quantize.images import CroppedImages
from edgetl.export.quantize.layers import (
    Layer,
    fake_quantize_weight,
    find_layers,
    weight_limit,
    weight_scales,
    with_constants,
)
from edgetl.export.quantize.scoring import compute_logits, sqnr_db

SIDE, CLASSES = 32, 4
SCHEMES = [
    QuantizationScheme("minmax", per_channel, "uint8", reduce_range)
    for per_channel in (True, False)
    for reduce_range in (True, False)
]


class Network(nn.Module):
    """Convolutions with stride, padding, dilation and groups, and a fully connected layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 16, 3, 2, 1),
            nn.ReLU(),
            nn.Conv2d(16, 16, 3, 1, 2, dilation=2, groups=16),
            nn.ReLU(),
            nn.Conv2d(16, 24, (1, 3), 1, (0, 1), groups=4),
            nn.ReLU(),
            nn.Conv2d(24, 80, 1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(80, CLASSES),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.layers(images)
        return logits


@pytest.fixture(scope="module")
def network() -> onnx.ModelProto:
    torch.manual_seed(0)
    graph = export_network_graph(Network().eval(), SIDE, CLASSES, 18)
    return onnx.shape_inference.infer_shapes(graph.model)


@pytest.fixture(scope="module")
def images() -> CroppedImages:
    # Smooth images: neighboring pixels are correlated, as in photos.
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 256, (48, 8, 8, 3))
    pixels = coarse.repeat(4, axis=1).repeat(4, axis=2).astype(np.uint8)
    return CroppedImages(pixels, None, Preprocessing.for_image_size(SIDE))


def _layers(network: onnx.ModelProto) -> dict[str, Layer]:
    return {layer.name: layer for layer in find_layers(network)}


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.name)
def test_weights_are_on_steps_that_quantizer_derives(
    network: onnx.ModelProto, images: CroppedImages, scheme: QuantizationScheme
) -> None:
    rounded = _layers(WeightRounder(network, images).round(scheme))
    for name, layer in _layers(network).items():
        weight = rounded[name].weight
        scales = weight_scales(layer.weight, scheme.per_channel, scheme.weight_bits)
        steps = weight / scales
        assert np.abs(steps - np.round(steps)).max() < 1e-3
        assert np.abs(steps).max() <= weight_limit(scheme.weight_bits) + 1e-3
        again = fake_quantize_weight(weight, scheme.per_channel, scheme.weight_bits)
        np.testing.assert_allclose(again, weight, atol=1e-6)


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.name)
def test_logits_are_closer_than_with_nearest_steps(
    network: onnx.ModelProto, images: CroppedImages, scheme: QuantizationScheme
) -> None:
    calibration = images.take(32)
    held_out = replace(images, pixels=images.pixels[32:])
    nearest = with_constants(
        network,
        {
            layer.node.input[1]: fake_quantize_weight(
                layer.weight, scheme.per_channel, scheme.weight_bits
            )
            for layer in find_layers(network)
        },
    )
    reference = compute_logits(network, held_out)
    rounded = WeightRounder(network, calibration).round(scheme)
    gain_db = sqnr_db(reference, compute_logits(rounded, held_out)) - sqnr_db(
        reference, compute_logits(nearest, held_out)
    )
    assert gain_db > 6


def test_covariances_equal_those_of_unfolded_inputs(
    network: onnx.ModelProto, images: CroppedImages
) -> None:
    module = nn.Unfold((3, 3), dilation=2, padding=2)
    layer = list(find_layers(network))[1]
    batch = np.random.default_rng(0).standard_normal((4, 16, 16, 16)).astype(np.float32)
    samples = gptq._sample_inputs(batch, layer, 10_000, np.random.default_rng(0))
    unfolded = module(torch.from_numpy(batch)).reshape(4, 16, 9, -1)
    expected = unfolded.permute(1, 0, 3, 2).reshape(16, -1, 9).numpy()
    assert samples.shape == expected.shape
    np.testing.assert_allclose(_second_moments(samples), _second_moments(expected), rtol=1e-3)


def _second_moments(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(samples.transpose(0, 2, 1) @ samples)


def test_mean_output_equals_that_of_float_layer(
    network: onnx.ModelProto, images: CroppedImages
) -> None:
    rounding = WeightRounder(network, images)
    rounded = _layers(rounding.round(SCHEMES[0]))
    for name, layer in _layers(network).items():
        means = rounding._moments[name].means
        error = (rounded[name].weight - layer.weight).reshape(layer.groups, -1, means.shape[1])
        bias, new_bias = layer.bias, rounded[name].bias
        assert bias is not None
        assert new_bias is not None
        mean_error = np.einsum("goi,gi->go", error, means).reshape(-1) + new_bias - bias
        np.testing.assert_allclose(mean_error, 0, atol=1e-5)


def test_excluded_and_wide_layers_are_unchanged(
    network: onnx.ModelProto, images: CroppedImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gptq, "_MAX_INPUTS", 60)
    first, *_, wide = find_layers(network)
    rounded = _layers(WeightRounder(network, images).round(SCHEMES[0], (first.name,)))
    for name, layer in _layers(network).items():
        is_unchanged = np.array_equal(rounded[name].weight, layer.weight)
        assert is_unchanged is (name in (first.name, wide.name)), name


def test_constant_inputs_do_not_fail() -> None:
    weights = np.random.default_rng(0).standard_normal((1, 5, 9))
    scales = np.abs(weights).max(2) / 127
    rounded = gptq._round_with_compensation(weights, scales, np.zeros((1, 9, 9)), 127)
    assert np.abs(rounded - weights).max() <= scales.max() / 2 + 1e-9


@pytest.mark.parametrize("entry", [-1e6, np.nan])
def test_layer_with_invalid_covariance_is_unchanged(
    network: onnx.ModelProto, images: CroppedImages, entry: float
) -> None:
    rounder = WeightRounder(network, images)
    damaged = next(find_layers(network))
    rounder._moments[damaged.name].products[0, 0, 0] = entry
    rounded = _layers(rounder.round(SCHEMES[0]))
    for name, layer in _layers(network).items():
        is_unchanged = np.array_equal(rounded[name].weight, layer.weight)
        assert is_unchanged is (name == damaged.name), name

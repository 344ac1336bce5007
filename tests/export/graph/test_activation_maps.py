"""The output `activation_maps`: equal to PyTorch's modules, for every head and precision."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from edgetl.core.errors import ExportError, ParityError
from edgetl.core.preprocessing import Preprocessing
from edgetl.core.registry import QUANTIZERS, load_from_registry
from edgetl.device.runtime.session import create_session
from edgetl.export.graph.activation_maps import add_activation_maps
from edgetl.export.graph.torch_export import export_network_graph
from edgetl.export.parity.activation_maps import ActivationMapProof, compute_activation_maps
from edgetl.export.quantize.images import CroppedImages, QuantizationImages
from edgetl.export.quantize.scoring import sqnr_db
from edgetl.export.quantize.task import QuantizationTask, QuantizedModel

SIDE, CLASSES = 32, 3
Maps = NDArray[np.float32]


class Network(nn.Module):
    """Two convolutions, a pooling and a head."""

    def __init__(self, pooling: Callable[[torch.Tensor], torch.Tensor], head: nn.Module) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU6()
        )
        self.pooling, self.head = pooling, head

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.pooling(self.features(images)))
        return logits


def pool_with_mean(features: torch.Tensor) -> torch.Tensor:
    return features.mean((2, 3))


def pool_channels_last(features: torch.Tensor) -> torch.Tensor:
    return features.permute(0, 2, 3, 1).mean((1, 2))


def pool_in_channels_last_memory(features: torch.Tensor) -> torch.Tensor:
    in_memory = features.contiguous(memory_format=torch.channels_last)
    return nn.functional.adaptive_avg_pool2d(in_memory, 1)


LINEAR = nn.Linear(8, CLASSES)
HEADS = {
    "linear": (pool_with_mean, LINEAR),
    "flattened": (nn.AdaptiveAvgPool2d(1), nn.Sequential(nn.Flatten(), LINEAR)),
    "full kernel": (nn.AvgPool2d(SIDE // 4), nn.Sequential(nn.Flatten(), LINEAR)),
    "channels last": (pool_channels_last, LINEAR),
    # The exporter writes a Gather with indices from the shape of the network's input.
    "channels last in memory": (pool_in_channels_last_memory, nn.Sequential(nn.Flatten(), LINEAR)),
    "hidden relu": (pool_with_mean, nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))),
    "hidden hardswish": (
        pool_with_mean,
        nn.Sequential(nn.Linear(8, 16), nn.Hardswish(), nn.Linear(16, 3)),
    ),
    "convolution": (
        nn.AdaptiveAvgPool2d(1),
        nn.Sequential(
            nn.Conv2d(8, 16, 1), nn.ReLU6(), nn.Conv2d(16, 16, 1), nn.Hardswish(), nn.Flatten(),
            nn.Linear(16, 3),
        ),
    ),
    "normalized": (pool_with_mean, nn.Sequential(nn.LayerNorm(8), LINEAR)),
}  # fmt: skip


def make_network(name: str) -> Network:
    torch.manual_seed(0)
    pooling, head = HEADS[name]
    network = Network(pooling, head)
    for parameter in network.head.parameters():
        nn.init.normal_(parameter)
    return network.eval()


@cache
def export_graph(name: str) -> onnx.ModelProto:
    return export_network_graph(make_network(name), SIDE, CLASSES, 18).model


def classify_locations(network: Network, pixels: Maps) -> Maps:
    """Compute the maps location by location, each with a pooling that returns its features."""
    with torch.inference_mode():
        features = network.features(torch.from_numpy(pixels))
        pooled = network.pooling(features)
        batch, _, height, width = features.shape
        maps = np.empty((batch, CLASSES, height, width), np.float32)
        for row, column in itertools.product(range(height), range(width)):
            location = features[:, :, row, column].reshape(pooled.shape)
            maps[:, :, row, column] = network.head(location).numpy()
    return maps


def run_maps(network: onnx.ModelProto, pixels: Maps) -> Maps:
    onnx.checker.check_model(network, full_check=True)
    session = create_session(network.SerializeToString())
    maps: Maps = session.run(["activation_maps"], {"pixels": pixels})[0]
    return maps


def make_images(count: int, seed: int = 0) -> CroppedImages:
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (count, 4, 4, 3)).astype(np.uint8)
    pixels = coarse.repeat(SIDE // 4, 1).repeat(SIDE // 4, 2)
    labels = generator.integers(0, CLASSES, count)
    return CroppedImages(pixels, labels, Preprocessing.for_image_size(SIDE))


def make_pixels(batch: int) -> Maps:
    return next(make_images(batch, seed=5).batches())


@pytest.mark.parametrize("name", HEADS)
def test_maps_equal_head_applied_to_each_location(name: str) -> None:
    network = make_network(name)
    graph = export_graph(name)
    with_maps = add_activation_maps(graph, graph)
    for batch in (1, 3):
        pixels = make_pixels(batch)
        expected = classify_locations(network, pixels)
        assert np.abs(expected).max() > 1
        np.testing.assert_allclose(run_maps(with_maps, pixels), expected, atol=1e-4)
        np.testing.assert_allclose(compute_activation_maps(network, pixels), expected, atol=1e-4)
    assert with_maps.ByteSize() < graph.ByteSize() + 3000


def test_mean_of_linear_maps_is_the_logit() -> None:
    graph = export_graph("linear")
    session = create_session(add_activation_maps(graph, graph).SerializeToString())
    logits, maps = session.run(["logits", "activation_maps"], {"pixels": make_pixels(4)})
    np.testing.assert_allclose(maps.mean((2, 3)), logits, atol=1e-4)


@pytest.mark.parametrize("variant", QUANTIZERS)
@pytest.mark.parametrize("name", ["hidden relu", "convolution"])
def test_smaller_variants_have_nearly_equal_maps(name: str, variant: str) -> None:
    network = make_network(name)
    graph = onnx.shape_inference.infer_shapes(export_graph(name))
    task = QuantizationTask(
        graph,
        {},
        lambda: QuantizationImages(make_images(40), make_images(30, 1)),
        1.0,
        lambda step, done, total: None,
        search="quick",
    )
    quantized: QuantizedModel = load_from_registry(QUANTIZERS, variant, "variant")(task)
    pixels = make_pixels(8)
    with_maps = add_activation_maps(quantized.network, graph)
    ratio_db = sqnr_db(classify_locations(network, pixels), run_maps(with_maps, pixels))
    assert ratio_db > {"fp16": 40}.get(variant, 20)
    assert with_maps.ByteSize() < quantized.network.ByteSize() + 6000


def parse_network(nodes: str) -> onnx.ModelProto:
    """Return a network with the given nodes between the features [batch, 4, 4, 4] and `values`."""
    return onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 18]>
        network (float[batch, 4, 4, 4] pixels) => (float[batch, classes] logits)
        <int64[2] axes = {{2, 3}}> {{
            features = Relu (pixels)
            {nodes}
            logits = Flatten (values)
        }}"""
    )


@pytest.mark.parametrize(
    "nodes",
    [
        "values = Identity (features)",
        "values = AveragePool <kernel_shape = [2, 2], strides = [2, 2]> (features)",
        "values = GlobalMaxPool (features)",
        """mean = GlobalAveragePool (features)
        peak = GlobalMaxPool (features)
        values = Concat <axis = 1> (mean, peak)""",
        # Squeeze and excitation: the mean is a factor of the features, not their substitute.
        """mean = ReduceMean (features, axes)
        gate = Sigmoid (mean)
        values = Mul (features, gate)""",
    ],
)
def test_network_without_global_pooling_is_refused(nodes: str) -> None:
    network = parse_network(nodes)
    with pytest.raises(ExportError, match=r"no global average pooling .* Remove explain=True"):
        add_activation_maps(network, network)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    crops = make_images(3).pixels
    paths = [tmp_path / f"{index}.png" for index in range(len(crops))]
    for crop, path in zip(crops, paths, strict=True):
        Image.fromarray(crop).save(path)
    return paths


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("is_wrong", [False, True])
def test_proof_fails_if_locations_are_exchanged(
    files: list[Path], tmp_path: Path, precision: str, is_wrong: bool
) -> None:
    graph = export_graph("linear")
    model = add_activation_maps(graph, graph)
    if is_wrong:
        (permutation,) = model.graph.node[-1].attribute
        assert permutation.ints == [0, 3, 1, 2]
        permutation.ints[:] = [0, 3, 2, 1]
    onnx.save(model, tmp_path / "model.onnx")
    preprocessing = Preprocessing.for_image_size(SIDE)
    proof = ActivationMapProof(make_network("linear"), preprocessing, files, "given", 1e-3)
    if is_wrong:
        message = (
            r"The activation maps of model.onnx do not match PyTorch's: .* Remove explain=True"
        )
        with pytest.raises(ParityError, match=message):
            proof.check(tmp_path / "model.onnx", precision)
        return
    record = proof.check(tmp_path / "model.onnx", precision)
    assert (record.images, record.kind) == (3, "given")
    assert record.max_abs_diff < 1e-4
    assert record.sqnr_db > 80
    assert (record.tolerance is None) == (precision == "int8")


def test_network_that_cannot_be_proven_is_refused() -> None:
    class BatchDependent(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.mean((2, 3)).reshape(len(images), 3)

    for network in (BatchDependent(), nn.Flatten()):
        with pytest.raises(ParityError, match=r"cannot be proven: .* Remove explain=True"):
            compute_activation_maps(network, make_pixels(2))

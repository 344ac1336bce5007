"""Every torchvision classifier on the meta device; the smallest of each family with weights."""

from __future__ import annotations

from itertools import groupby

import pytest
import torch
import torchvision
from torch import nn

from edgetl.core.architectures import load_architectures
from edgetl.core.errors import ArchitectureError
from edgetl.core.preprocessing import Interpolation
from edgetl.train.model.blocks import find_blocks
from edgetl.train.model.factory import build_adapted_model, build_uninitialized_model
from edgetl.train.model.freezing import set_trainable
from edgetl.train.model.head import Head, find_classifier_layer, replace_head
from edgetl.train.model.sources.base import source_for
from edgetl.train.model.stock_models import (
    build_meta_model,
    describe_architecture,
    get_architecture,
    preprocessing_for,
)
from edgetl.train.model.weights import load_weights
from edgetl.train.model.weights_file import PretrainedWeights
from tests.helpers.architectures import mark_slow

NAMES: list[str] = torchvision.models.list_models(module=torchvision.models)
BY_FAMILY = groupby(
    sorted(load_architectures().values(), key=lambda row: (row.family, row.parameters)),
    key=lambda row: row.family,
)
SMALLEST = [next(rows).name for _, rows in BY_FAMILY]
MIN_SIZES = {"alexnet": 63, "inception_v3": 75, "maxvit_t": 224}
"""Minimum input sizes; the other architectures support 32."""


def test_architecture_table_has_every_torchvision_classifier() -> None:
    assert set(NAMES) <= set(load_architectures()), "run tools/repo/architecture_table.py"


@pytest.mark.parametrize(
    "name",
    mark_slow(NAMES),
)
def test_architecture_table_matches_torchvision(name: str) -> None:
    assert describe_architecture(name) == load_architectures()[name]


@pytest.mark.parametrize("name", SMALLEST)
def test_blocks_are_in_forward_order_and_cover_the_backbone(name: str) -> None:
    size = MIN_SIZES.get(name, 32)
    skeleton = build_meta_model(name, size)
    layer = find_classifier_layer(skeleton, size, name)
    blocks = find_blocks(skeleton, layer.path)
    calls: list[str] = []
    for block in blocks:
        skeleton.get_submodule(block.name).register_forward_pre_hook(
            lambda _module, _input, name=block.name: calls.append(name)
        )
    skeleton(torch.empty(2, 3, size, size, device="meta"))
    assert calls == [block.name for block in blocks]

    covered = {
        id(parameter)
        for block in blocks
        for path in block.module_paths
        for parameter in skeleton.get_submodule(path).parameters()
    }
    covered |= {id(parameter) for parameter in skeleton.get_submodule(layer.path).parameters()}
    stem = [path for path, parameter in skeleton.named_parameters() if id(parameter) not in covered]
    assert stem == (["class_token", "encoder.pos_embedding"] if name.startswith("vit") else [])


@pytest.mark.parametrize(
    "name",
    mark_slow(SMALLEST),
)
def test_step_changes_head_and_no_frozen_tensor(name: str) -> None:
    size = MIN_SIZES.get(name, 32)
    torch.manual_seed(0)
    adapted = build_adapted_model(name, size, 3, head_width=8, dropout=0.2, weights=None)
    network = adapted.model
    pixels, targets = torch.randn(4, 3, size, size), torch.tensor([0, 1, 2, 0])
    frozen_state = set_trainable(adapted, 1)
    assert frozen_state.digests
    optimizer = torch.optim.Adam(frozen_state.trainable_parameters(), 1e-3)
    before = [parameter.detach().clone() for parameter in frozen_state.trainable_parameters()]
    frozen_state.train_mode()
    logits = network(pixels)
    assert logits.shape == (4, 3)
    torch.nn.functional.cross_entropy(logits, targets).backward()
    optimizer.step()
    frozen_state.verify_unchanged()
    assert any(
        not torch.equal(old, new)
        for old, new in zip(before, frozen_state.trainable_parameters(), strict=True)
    )


@pytest.mark.parametrize("name", ["mnasnet0_5", "googlenet", "squeezenet1_1"])
def test_weights_load_into_uninitialized_model(name: str) -> None:
    network = build_adapted_model(name, 32, 3, head_width=8, dropout=0.2, weights=None).model.eval()
    uninitialized = build_uninitialized_model(name, 32, 3, head_width=8, dropout=0.2).eval()
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        load_weights(uninitialized, PretrainedWeights(network.state_dict(), "memory", ""), name)
        torch.testing.assert_close(uninitialized(pixels), network(pixels))


def test_mobilenet_v2_blocks_are_its_features() -> None:
    skeleton = build_meta_model("mobilenet_v2", 224)
    assert [block.module_paths for block in find_blocks(skeleton, "classifier.1")] == [
        (f"features.{index}",) for index in range(19)
    ]


@pytest.mark.parametrize(
    ("name", "last", "first"),
    [
        ("resnet18", "layer4.1", ("conv1", "bn1")),
        ("efficientnet_b0", "features.8", ("features.0",)),
        ("vit_b_16", "encoder.layers.encoder_layer_11", ("conv_proj",)),
        ("swin_t", "features.7.1", ("features.0",)),
    ],
)
def test_blocks_match_the_papers(name: str, last: str, first: tuple[str, ...]) -> None:
    row = load_architectures()[name]
    blocks = find_blocks(build_meta_model(name, row.image_size), row.head)
    assert blocks[-1].name == last
    assert blocks[0].module_paths == first


def test_normalization_joins_the_previous_block() -> None:
    skeleton = build_meta_model("densenet121", 224)
    blocks = find_blocks(skeleton, "classifier")
    assert blocks[-1].module_paths == ("features.denseblock4.denselayer16", "features.norm5")


def test_unknown_name_suggests_similar_ones() -> None:
    with pytest.raises(ArchitectureError, match="Did you mean mobilenet_v2"):
        get_architecture("mobilenetv2")


@pytest.mark.parametrize("name", ["fcn_resnet50", "quantized_mobilenet_v2", "r3d_18"])
def test_models_other_than_classifiers_are_rejected(name: str) -> None:
    with pytest.raises(ArchitectureError, match="no classifier"):
        get_architecture(name)


def test_architecture_missing_from_table_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = load_architectures()["shufflenet_v2_x0_5"]
    monkeypatch.setattr("edgetl.train.model.stock_models.find_architecture", lambda _name: None)
    assert get_architecture("shufflenet_v2_x0_5") == expected


@pytest.mark.parametrize(
    ("name", "size"), [("alexnet", 32), ("vit_b_16", 100), ("maxvit_t", 96), ("inception_v3", 64)]
)
def test_unsupported_size_names_the_usual_one(name: str, size: int) -> None:
    with pytest.raises(
        ArchitectureError,
        match=rf"{name} does not take images of {size} pixels.*usual image_size is",
    ):
        build_meta_model(name, size)


def test_preprocessing_matches_the_weights() -> None:
    assert source_for("inception_v3").default_preprocessing("inception_v3").crop == 299
    preprocessing = source_for("efficientnet_v2_l").default_preprocessing("efficientnet_v2_l")
    assert preprocessing.mean == (0.5, 0.5, 0.5)
    preprocessing = preprocessing_for("efficientnet_v2_l", 224)
    assert (preprocessing.resize, preprocessing.crop, preprocessing.mean) == (
        256,
        224,
        (0.5, 0.5, 0.5),
    )
    assert preprocessing_for("mobilenet_v2", None).resize == 256


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [("mobilenet_v2", "bilinear"), ("efficientnet_b0", "bicubic"), ("swin_t", "bicubic")],
)
def test_auto_interpolation_is_that_of_the_weights(
    architecture: str, expected: Interpolation
) -> None:
    assert source_for(architecture).default_preprocessing(architecture).interpolation == expected
    assert preprocessing_for(architecture, 64).interpolation == expected
    assert preprocessing_for(architecture, 64, "bilinear").interpolation == "bilinear"
    assert preprocessing_for(architecture, 64, "bicubic").interpolation == "bicubic"


def test_squeezenet_has_no_activation_on_logits() -> None:
    adapted = build_adapted_model("squeezenet1_1", 32, 2, 8, 0.3, None)
    assert adapted.classifier_layer.activations == ("classifier.2",)
    assert isinstance(adapted.model.get_submodule("classifier.2"), nn.Identity)
    with torch.no_grad():
        assert float(adapted.model.eval()(torch.randn(64, 3, 32, 32)).min()) < 0


def test_head_has_exactly_one_dropout() -> None:
    with_dropout = build_adapted_model("mobilenet_v2", 32, 2, 8, 0.3, None).model
    assert [type(module) for module in with_dropout.classifier.children()] == [
        nn.Dropout,
        Head,
    ]
    assert isinstance(with_dropout.classifier[1][0], nn.Identity)
    assert with_dropout.classifier[0].p == 0.3
    without = build_adapted_model("resnet18", 32, 2, 8, 0.3, None).model
    assert isinstance(without.fc[0], nn.Dropout)
    assert without.fc[0].p == 0.3


class _UnsupportedModel(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm1d(8)
        self.linear = nn.Linear(8, 8)

    def forward(self, pixels: torch.Tensor) -> object:
        features = self.conv(pixels).mean((2, 3))
        if self.kind == "norm last":
            return self.norm(self.linear(features))
        if self.kind == "twice":
            return self.linear(self.linear(features))
        if self.kind == "not the last":
            return self.linear(features).sum(1, keepdim=True)
        if self.kind == "tuple":
            return self.linear(features), features
        return self.linear(features) + features


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("norm last", "norm .BatchNorm1d. runs after its last layer"),
        ("twice", "runs more than once"),
        ("not the last", "has 8 outputs but the model has 1 logits"),
        ("tuple", "does not return logits"),
        ("residual", "the logits do not come from its last layer"),
    ],
)
def test_find_classifier_layer_rejects_unsupported_models(kind: str, reason: str) -> None:
    with torch.device("meta"):
        network = _UnsupportedModel(kind)
    with pytest.raises(ArchitectureError, match=f"head of odd_net cannot be replaced: .*{reason}"):
        find_classifier_layer(network, 32, "odd_net")


def test_find_classifier_layer_rejects_model_without_layers() -> None:
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(ArchitectureError, match="it has no linear layer or convolution"):
        find_classifier_layer(network.to("meta"), 32, "empty_net")


def test_find_classifier_layer_restores_the_model() -> None:
    skeleton = build_meta_model("resnet18", 32)
    before = skeleton.fc
    layer = find_classifier_layer(skeleton, 32, "resnet18")
    assert skeleton.fc is before
    assert not any(module._forward_hooks for module in skeleton.modules())
    replace_head(skeleton, layer, 5)
    assert isinstance(skeleton.fc, nn.Sequential)

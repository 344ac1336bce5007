"""Every torchvision classifier on the meta device, and the smallest of each family with real numbers."""

from __future__ import annotations

from itertools import groupby

import pytest
import torch
import torchvision
from torch import nn

from edgetl.core.architectures import load_architectures
from edgetl.core.errors import ArchitectureError
from edgetl.train.model.blocks import find_blocks
from edgetl.train.model.factory import build_adapted_model
from edgetl.train.model.freezing import set_trainable
from edgetl.train.model.head import find_classifier_layer, replace_head
from edgetl.train.model.torchvision_models import (
    build_meta_model,
    default_preprocessing,
    describe_architecture,
    get_architecture,
    preprocessing_for,
)
from edgetl.train.model.weights import PretrainedWeights, load_weights

NAMES: list[str] = torchvision.models.list_models(module=torchvision.models)
BY_FAMILY = groupby(
    sorted(load_architectures().values(), key=lambda row: (row.family, row.parameters)),
    key=lambda row: row.family,
)
SMALLEST = [next(rows).name for _, rows in BY_FAMILY]
TINY = {"alexnet": 63, "inception_v3": 75, "maxvit_t": 224}
"""Smallest inputs that these take; the others take 32."""


def test_the_table_knows_every_classifier_of_this_torchvision() -> None:
    assert set(NAMES) <= set(load_architectures()), "run tools/repo/architecture_table.py"


@pytest.mark.parametrize("name", NAMES)
def test_the_table_tells_the_truth(name: str) -> None:
    assert describe_architecture(name) == load_architectures()[name]


@pytest.mark.parametrize("name", SMALLEST)
def test_blocks_are_in_forward_order_and_hold_the_backbone(name: str) -> None:
    size = TINY.get(name, 32)
    skeleton = build_meta_model(name, size)
    layer = find_classifier_layer(skeleton, size, name)
    blocks = find_blocks(skeleton, layer.path)
    ran: list[str] = []
    for block in blocks:
        skeleton.get_submodule(block.name).register_forward_pre_hook(
            lambda _module, _input, at=block.name: ran.append(at)
        )
    skeleton(torch.empty(2, 3, size, size, device="meta"))
    assert ran == [block.name for block in blocks]

    covered = {
        id(parameter)
        for block in blocks
        for path in block.module_paths
        for parameter in skeleton.get_submodule(path).parameters()
    }
    covered |= {id(parameter) for parameter in skeleton.get_submodule(layer.path).parameters()}
    stem = [path for path, parameter in skeleton.named_parameters() if id(parameter) not in covered]
    assert stem == (["class_token", "encoder.pos_embedding"] if name.startswith("vit") else [])


@pytest.mark.parametrize("name", SMALLEST)
def test_a_new_head_learns_and_nothing_else_moves(name: str) -> None:
    size = TINY.get(name, 32)
    torch.manual_seed(0)
    adapted = build_adapted_model(name, size, 3, head_width=8, dropout=0.2, weights=None)
    network = adapted.model
    pixels, targets = torch.randn(4, 3, size, size), torch.tensor([0, 1, 2, 0])
    freezing = set_trainable(adapted, 1)
    assert freezing.digests
    optimiser = torch.optim.Adam(freezing.trainable_parameters(), 1e-3)
    before = [parameter.detach().clone() for parameter in freezing.trainable_parameters()]
    freezing.train_mode()
    logits = network(pixels)
    assert logits.shape == (4, 3)
    torch.nn.functional.cross_entropy(logits, targets).backward()
    optimiser.step()
    freezing.verify_unchanged()
    assert any(
        not torch.equal(old, new)
        for old, new in zip(before, freezing.trainable_parameters(), strict=True)
    )


@pytest.mark.parametrize("name", ["mnasnet0_5", "googlenet", "squeezenet1_1"])
def test_weights_go_into_a_network_built_anew(name: str) -> None:
    network = build_adapted_model(name, 32, 3, head_width=8, dropout=0.2, weights=None).model.eval()
    again = build_adapted_model(
        name, 32, 3, head_width=8, dropout=0.2, weights=None, initialise=False
    ).model.eval()
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        load_weights(again, PretrainedWeights(network.state_dict(), "memory", ""), name)
        torch.testing.assert_close(again(pixels), network(pixels))


def test_mobilenet_v2_counts_blocks_as_its_features() -> None:
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
def test_blocks_are_the_units_that_papers_count(
    name: str, last: str, first: tuple[str, ...]
) -> None:
    row = load_architectures()[name]
    blocks = find_blocks(build_meta_model(name, row.image_size), row.head)
    assert blocks[-1].name == last
    assert blocks[0].module_paths == first


def test_a_normalisation_stays_with_its_convolution() -> None:
    skeleton = build_meta_model("densenet121", 224)
    blocks = find_blocks(skeleton, "classifier")
    assert blocks[-1].module_paths == ("features.denseblock4.denselayer16", "features.norm5")


def test_an_unknown_name_gets_the_nearest_ones() -> None:
    with pytest.raises(ArchitectureError, match="Did you mean mobilenet_v2"):
        get_architecture("mobilenetv2")


@pytest.mark.parametrize("name", ["fcn_resnet50", "quantized_mobilenet_v2", "r3d_18"])
def test_other_kinds_of_model_are_refused(name: str) -> None:
    with pytest.raises(ArchitectureError, match="no classifier"):
        get_architecture(name)


def test_a_name_that_the_table_lacks_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = load_architectures()["shufflenet_v2_x0_5"]
    monkeypatch.setattr("edgetl.train.model.torchvision_models.load_architectures", dict)
    assert get_architecture("shufflenet_v2_x0_5") == expected


@pytest.mark.parametrize(
    ("name", "size"), [("alexnet", 32), ("vit_b_16", 100), ("maxvit_t", 96), ("inception_v3", 64)]
)
def test_an_impossible_size_names_the_usual_one(name: str, size: int) -> None:
    with pytest.raises(
        ArchitectureError,
        match=rf"{name} does not take images of {size} pixels.*usual --image-size is",
    ):
        build_meta_model(name, size)


def test_preprocessing_follows_the_weights() -> None:
    assert default_preprocessing("inception_v3").crop == 299
    assert default_preprocessing("efficientnet_v2_l").mean == (0.5, 0.5, 0.5)
    chosen = preprocessing_for("efficientnet_v2_l", 224)
    assert (chosen.resize, chosen.crop, chosen.mean) == (256, 224, (0.5, 0.5, 0.5))
    assert preprocessing_for("mobilenet_v2", None).resize == 256


def test_squeezenet_loses_the_activation_on_its_logits() -> None:
    adapted = build_adapted_model("squeezenet1_1", 32, 2, 8, 0.3, None)
    assert adapted.classifier_layer.activations == ("classifier.2",)
    assert isinstance(adapted.model.get_submodule("classifier.2"), nn.Identity)
    with torch.no_grad():
        assert float(adapted.model.eval()(torch.randn(64, 3, 32, 32)).min()) < 0


def test_there_is_one_dropout_before_the_head() -> None:
    own = build_adapted_model("mobilenet_v2", 32, 2, 8, 0.3, None).model
    assert [type(module) for module in own.classifier.children()] == [nn.Dropout, nn.Sequential]
    assert isinstance(own.classifier[1][0], nn.Identity)
    assert own.classifier[0].p == 0.3
    without = build_adapted_model("resnet18", 32, 2, 8, 0.3, None).model
    assert isinstance(without.fc[0], nn.Dropout)
    assert without.fc[0].p == 0.3


class _Odd(nn.Module):
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
    ("kind", "why"),
    [
        ("norm last", "norm .BatchNorm1d. runs after its last layer"),
        ("twice", "runs more than once"),
        ("not the last", "gives 8 values where the logits have 1"),
        ("tuple", "does not give logits"),
        ("residual", "the logits do not come from its last layer"),
    ],
)
def test_a_network_that_cannot_be_adapted_is_named_with_the_reason(kind: str, why: str) -> None:
    with torch.device("meta"):
        network = _Odd(kind)
    with pytest.raises(ArchitectureError, match=f"odd_net cannot be given a new head: .*{why}"):
        find_classifier_layer(network, 32, "odd_net")


def test_a_network_without_layers_cannot_be_adapted() -> None:
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(ArchitectureError, match="no linear layer or convolution runs in it"):
        find_classifier_layer(network.to("meta"), 32, "empty_net")


def test_finding_the_layer_leaves_the_network_as_it_was() -> None:
    skeleton = build_meta_model("resnet18", 32)
    before = skeleton.fc
    layer = find_classifier_layer(skeleton, 32, "resnet18")
    assert skeleton.fc is before
    assert not any(module._forward_hooks for module in skeleton.modules())
    replace_head(skeleton, layer, 5)
    assert isinstance(skeleton.fc, nn.Sequential)

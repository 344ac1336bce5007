"""Class activation maps against references that do not use the gradient of the features."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from edgetl.train.model.activation_maps import compute_activation_maps, find_spatial_module
from edgetl.train.model.blocks import find_blocks
from edgetl.train.model.factory import AdaptedModel, build_adapted_model
from edgetl.train.model.head import ClassifierLayer
from edgetl.train.model.stock_models import build_meta_model, find_stock_classifier

CLASSES = torch.tensor([0, 3, 2])


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def build(architecture: str, head_width: int = 0) -> AdaptedModel:
    torch.manual_seed(1)
    adapted = build_adapted_model(architecture, 64, 5, head_width, 0.2, None)
    for module in adapted.model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # random networks lose the signal without statistics
    adapted.model.train()(torch.randn(8, 3, 64, 64))
    adapted.model.eval()
    return adapted


def wrap(model: nn.Module, classifier: str) -> AdaptedModel:
    layer = ClassifierLayer(classifier, "linear", 4, (), None)
    return AdaptedModel(model.eval(), layer, find_blocks(model, classifier))


def test_linear_head_equals_maps_of_zhou(images: Tensor) -> None:
    """Zhou et al., 2016: the features of each location, weighted as the class weights them."""
    adapted = build("resnet18")
    model = adapted.model
    maps = compute_activation_maps(adapted, images, CLASSES)
    assert maps is not None
    with torch.inference_mode():
        features = nn.Sequential(*[*model.children()][:-2])(images)
        weights = model.get_submodule("fc.1").weight[CLASSES]  # type: ignore[index]
        expected = torch.einsum("nchw,nc->nhw", features, weights).relu()
    assert maps.shape == (3, 2, 2)
    assert float(expected.max()) > 0.1
    torch.testing.assert_close(maps * 4, expected, rtol=1e-4, atol=1e-5)


def test_hidden_layers_match_finite_differences(images: Tensor) -> None:
    """The weight of a channel is the mean slope of the score when its features are raised."""
    adapted = build("mobilenet_v3_small", head_width=16)
    model = adapted.model.double()
    maps = compute_activation_maps(adapted, images.double(), CLASSES)
    assert maps is not None
    with torch.inference_mode():
        features = model.get_submodule("features")(images.double())
        channels = features.shape[1]
        steps = torch.eye(channels, dtype=torch.float64)[:, :, None, None] * 1e-5

        def score(values: Tensor, label: Tensor) -> Tensor:
            pooled = model.get_submodule("avgpool")(values).flatten(1)
            return model.get_submodule("classifier")(pooled)[:, label]

        for index, label in enumerate(CLASSES):
            image = features[index : index + 1]
            # Raising a whole channel moves the score by the sum of its slopes.
            slopes = (score(image + steps, label) - score(image - steps, label)) / 2e-5
            weights = slopes / image[0, 0].numel()
            expected = (weights[:, None, None] * image[0]).sum(0).relu()
            torch.testing.assert_close(maps[index].double(), expected, rtol=1e-4, atol=1e-6)
            assert float(expected.max()) > 0


class ChannelsLast(nn.Module):
    """Features with the channels as the last axis, as in Swin."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 4, 8, 8)
        self.mix = nn.Linear(4, 4)
        self.fc = nn.Linear(4, 5)

    def forward(self, images: Tensor) -> Tensor:
        mixed = self.mix(self.features(images).permute(0, 2, 3, 1))
        return self.fc(mixed.relu_().mean((1, 2)))


def test_channels_may_be_last_and_activations_in_place(images: Tensor) -> None:
    torch.manual_seed(0)
    model = ChannelsLast()
    adapted = wrap(model, "fc")
    assert find_spatial_module(adapted, images[:1]) == "mix"
    maps = compute_activation_maps(adapted, images, CLASSES)
    assert maps is not None
    with torch.inference_mode():
        mixed = model.mix(model.features(images).permute(0, 2, 3, 1))
        slopes = (mixed > 0) * model.fc.weight[CLASSES][:, None, None, :] / 64
        expected = (mixed * slopes.mean((1, 2), keepdim=True)).sum(-1).relu()
    assert float(expected.max()) > 0
    torch.testing.assert_close(maps, expected)


def test_model_does_not_change(images: Tensor) -> None:
    adapted = build("mobilenet_v3_small")
    model = adapted.model
    for number, parameter in enumerate(model.parameters()):
        parameter.requires_grad = number % 2 == 0
    state, flags = (
        copy.deepcopy(model.state_dict()),
        [parameter.requires_grad for parameter in model.parameters()],
    )
    with torch.no_grad():
        logits = model(images)
    compute_activation_maps(adapted, images, CLASSES)
    assert torch.is_grad_enabled()
    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    after = model(images)
    assert torch.equal(after, logits), "no hooks remain"


@pytest.mark.parametrize(
    ("architecture", "size"),
    [
        *((name, 64) for name in ("mobilenet_v2", "mobilenet_v3_small", "squeezenet1_1")),
        ("shufflenet_v2_x0_5", 64),
        ("vgg11", 64),
        pytest.param("maxvit_t", 224, marks=pytest.mark.slow),
        ("swin_t", 64),
        ("inception_v3", 160),
        ("googlenet", 64),
        ("densenet121", 64),
        ("convnext_tiny", 64),
    ],
)
def test_map_is_the_last_one_before_the_classifier(architecture: str, size: int) -> None:
    adapted, images = on_meta_device(architecture, size)
    path = find_spatial_module(adapted, images)
    paths = [path for block in adapted.blocks for path in block.module_paths]
    assert path is not None
    later = paths[paths.index(path) + 1 :]
    # Behind it are at most hidden layers of the classifier, and normalizations of single vectors.
    assert all(name.startswith(("classifier", "AuxLogits", "aux")) for name in later), later


@pytest.mark.parametrize("architecture", ["vit_b_16"])
def test_vision_transformer_has_no_map(architecture: str) -> None:
    assert find_spatial_module(*on_meta_device(architecture, 224)) is None


def on_meta_device(architecture: str, size: int) -> tuple[AdaptedModel, Tensor]:
    model = build_meta_model(architecture, size).eval()
    layer = find_stock_classifier(architecture, size)
    images = torch.empty(1, 3, size, size, device="meta")
    return AdaptedModel(model, layer, find_blocks(model, layer.path)), images


class Pair(nn.Module):
    """A block whose output is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(8, 4, 1)
        self.second = nn.Conv2d(8, 4, 1)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        return self.first(features), self.second(features)


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 8, 8)
        self.pair = Pair()
        self.fc = nn.Linear(4, 5)

    def forward(self, images: Tensor) -> Tensor:
        first, second = self.pair(self.stem(images))
        return self.fc((first + second).mean((2, 3)))


def test_block_without_tensor_output_has_no_map(images: Tensor) -> None:
    assert [block.name for block in wrap(Branches(), "fc").blocks] == ["stem", "pair"]
    assert compute_activation_maps(wrap(Branches(), "fc"), images, CLASSES) is None

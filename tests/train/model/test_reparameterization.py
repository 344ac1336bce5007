"""Fusion of branches, by the conventions of timm, RepVGG and MobileOne."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from edgetl.train.model.head import ClassifierLayer, replace_head
from edgetl.train.model.reparameterization import fuse_branches, has_branches

PIXELS = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))


class Branches(nn.Module):
    """A 3x3 and a 1x1 convolution that are added; the method that fuses them has any name."""

    def __init__(self) -> None:
        super().__init__()
        self.large: nn.Conv2d | None = nn.Conv2d(4, 4, 3, padding=1)
        self.small: nn.Conv2d | None = nn.Conv2d(4, 4, 1)
        self.fused: nn.Conv2d | None = None

    def forward(self, value: Tensor) -> Tensor:
        if self.fused is not None:
            return self.fused(value)
        assert self.large is not None
        assert self.small is not None
        return self.large(value) + self.small(value)

    def convert(self) -> nn.Conv2d:
        assert self.large is not None
        assert self.small is not None
        fused = copy.deepcopy(self.large)
        fused.weight += nn.functional.pad(self.small.weight, [1, 1, 1, 1])
        assert fused.bias is not None
        assert self.small.bias is not None
        fused.bias += self.small.bias
        return fused


class InPlace(Branches):
    def reparameterize(self) -> None:
        self.fused = self.convert()
        self.large = self.small = None


class Deploy(Branches):
    def switch_to_deploy(self) -> None:
        self.fused = self.convert()
        self.large = self.small = None


class Replaced(Branches):
    def fuse(self) -> nn.Conv2d:
        return self.convert()


class FeatureFusion(nn.Module):
    """A module with an unrelated method `fuse`."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(4, 4, 1)

    def fuse(self, first: Tensor, second: Tensor) -> Tensor:
        return first + second

    def forward(self, value: Tensor) -> Tensor:
        return self.fuse(value, self.layer(value))


def count_convolutions(model: nn.Module) -> int:
    return sum(isinstance(module, nn.Conv2d) for module in model.modules())


@pytest.mark.parametrize("kind", [InPlace, Deploy, Replaced])
def test_branches_become_one_convolution(kind: type[Branches]) -> None:
    model = nn.Sequential(kind(), nn.Sequential(nn.ReLU(), kind())).eval()
    before = copy.deepcopy(model.state_dict())
    fused = fuse_branches(model)
    assert has_branches(model)
    assert (count_convolutions(model), count_convolutions(fused)) == (4, 2)
    torch.testing.assert_close(fused(PIXELS), model(PIXELS))
    assert not any(module.training for module in fused.modules())
    torch.testing.assert_close(dict(model.state_dict()), dict(before), rtol=0, atol=0)


def test_root_is_fused() -> None:
    model = Replaced().eval()
    fused = fuse_branches(model)
    assert isinstance(fused, nn.Conv2d)
    torch.testing.assert_close(fused(PIXELS), model(PIXELS))


def test_method_that_takes_arguments_is_not_called() -> None:
    model = nn.Sequential(FeatureFusion(), nn.BatchNorm2d(4)).eval()
    assert not has_branches(model)
    torch.testing.assert_close(fuse_branches(model)(PIXELS), model(PIXELS), rtol=0, atol=0)


class NormLinear(nn.Sequential):
    """BatchNorm and a linear layer, as the classifiers of timm's LeViT, RepViT and SHViT."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.linear = nn.Linear(4, 10)

    def fuse(self) -> nn.Module:
        self.linear.weight *= self.norm.weight
        return self.linear


def test_module_around_the_new_head_is_not_fused() -> None:
    model = nn.Sequential(InPlace(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), NormLinear()).eval()
    assert isinstance(fuse_branches(model).get_submodule("3"), nn.Linear)
    replace_head(model, ClassifierLayer("3.linear", "linear", 4, (), None), 3)
    fused = fuse_branches(model.eval())
    assert count_convolutions(fused) == 1
    assert isinstance(fused.get_submodule("3"), NormLinear)
    torch.testing.assert_close(fused(PIXELS), model(PIXELS))

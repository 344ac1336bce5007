"""Blocks of models that are not torchvision's; those are in test_stock_models."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn

from edgetl.train.model.blocks import find_blocks


class Unit(nn.Module):
    """Two convolutions with a residual connection."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, value: Tensor) -> Tensor:
        return value + self.second(self.first(value))


class Stage(nn.Module):
    """Downsampling and units, as in timm's ConvNeXt; `kind` varies the forward method."""

    def __init__(self, kind: str = "chain") -> None:
        super().__init__()
        self.kind = kind
        self.downsample = nn.Conv2d(4, 4, 2, 2)
        self.blocks = nn.Sequential(Unit(), Unit())

    def forward(self, value: Tensor) -> Tensor:
        value = self.downsample(value)
        if self.kind == "branch":
            return value + self.blocks(value)
        if self.kind == "control flow" and value.sum() > 0:
            return value
        return self.blocks(value)


class ConvStage(nn.Module):
    """A stage of single layers, as in an inverted residual without a residual connection."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU()) for _ in range(2))
        )

    def forward(self, value: Tensor) -> Tensor:
        return self.layers(value)


def find_names(stage: nn.Module) -> list[str]:
    model = nn.Sequential(
        OrderedDict(
            stem=nn.Conv2d(3, 4, 1),
            stage=stage,
            # Larger than the stage, which would be opened if it held most of the backbone.
            last=nn.Conv2d(4, 200, 3, padding=1),
            pool=nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
            head=nn.Linear(200, 2),
        )
    )
    assert model(torch.zeros(2, 3, 8, 8)).shape == (2, 2)
    return [block.name for block in find_blocks(model, "head")]


def test_stage_of_repeated_units_is_opened() -> None:
    assert find_names(Stage()) == [
        "stem",
        "stage.downsample",
        "stage.blocks.0",
        "stage.blocks.1",
        "last",
    ]


@pytest.mark.parametrize(
    "stage",
    [Stage("branch"), Stage("control flow"), ConvStage(), Unit()],
    ids=["branch around the units", "untraceable", "single layers", "a unit"],
)
def test_module_stays_one_block_unless_it_is_a_stage(stage: nn.Module) -> None:
    assert find_names(stage) == ["stem", "stage", "last"]

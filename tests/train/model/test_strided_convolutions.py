"""Equal outputs and gradients of strided 1x1 convolutions behind the workaround."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from edgetl.train.model.strided_convolutions import take_strides_before_convolutions


@pytest.mark.parametrize("side", [7, 8])
@pytest.mark.parametrize("stride", [2, (3, 1)])
def test_outputs_and_gradients_are_the_same(side: int, stride: int | tuple[int, int]) -> None:
    # Not channels last, which crashes without the workaround on some CPUs.
    expected = nn.Conv2d(3, 5, 1, stride)
    layer = copy.deepcopy(expected)
    take_strides_before_convolutions(layer)
    pixels = torch.randn(2, 3, side, side)
    torch.testing.assert_close(layer(pixels), expected(pixels))
    expected(pixels).square().sum().backward()
    layer(pixels).square().sum().backward()
    torch.testing.assert_close(layer.weight.grad, expected.weight.grad)
    assert layer.stride == expected.stride


def test_stride_is_restored_after_an_error_and_in_copies() -> None:
    layer = nn.Conv2d(3, 5, 1, 2)
    take_strides_before_convolutions(layer)
    with pytest.raises(RuntimeError):
        layer(torch.zeros(1, 4, 8, 8))
    assert layer.stride == (2, 2)
    assert copy.deepcopy(layer)(torch.zeros(1, 3, 8, 8)).shape == (1, 5, 4, 4)


def test_training_channels_last_does_not_crash() -> None:
    layer = nn.Conv2d(3, 48, 1, 2, bias=False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    take_strides_before_convolutions(layer)
    for _ in range(8):
        pixels = torch.randn(8, 3, 32, 32).to(memory_format=torch.channels_last)
        layer(pixels).sum().backward()
    assert layer.weight.grad.isfinite().all()


def test_other_layers_keep_their_forward() -> None:
    model = nn.Sequential(nn.Conv2d(8, 4, 1, 2), nn.Conv2d(3, 4, 3, 2), nn.Conv2d(3, 4, 1))
    take_strides_before_convolutions(model)
    assert not any(module._forward_pre_hooks for module in model.modules())

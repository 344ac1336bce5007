"""Workaround for a crash of PyTorch in strided 1x1 convolutions of few channels.

PyTorch 2.15 writes beyond its memory in the backward pass of a 1x1 convolution with stride 2 and
fewer than 8 input channels, channels last, on x86 CPUs without AVX-512. RepVGG and MobileOne begin
with one.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

_FEWEST_CHANNELS = 8


def take_strides_before_convolutions(model: nn.Module) -> None:
    """Make such convolutions select their pixels first and then run with stride 1.

    Outputs and gradients are the same. Parameters and attributes of the layers do not change, so
    that graphs and exported files keep the stride.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and _can_crash(module):
            module.register_forward_pre_hook(_select_pixels)
            module.register_forward_hook(_restore_stride, always_call=True)


def _can_crash(module: nn.Conv2d) -> bool:
    return (
        module.kernel_size == (1, 1)
        and module.stride != (1, 1)
        and module.padding == (0, 0)
        and module.in_channels < _FEWEST_CHANNELS
    )


def _select_pixels(module: nn.Conv2d, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    (values,) = arguments
    rows, columns = module.stride
    module._selected_stride = module.stride  # type: ignore[assignment]
    module.stride = (1, 1)
    return (values[..., ::rows, ::columns],)


def _restore_stride(module: nn.Conv2d, arguments: Any, output: Any) -> None:
    module.stride = module._selected_stride  # type: ignore[assignment]

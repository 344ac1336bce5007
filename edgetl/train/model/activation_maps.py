"""Class activation maps of a classifier by Grad-CAM.

Selvaraju et al., 2017: "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
Localization". For a linear layer on globally averaged features they are the positive part of the
class activation maps of Zhou et al., 2016, up to a factor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from edgetl.train.model.factory import AdaptedModel

_Shape = tuple[int, ...]


def compute_activation_maps(
    adapted: AdaptedModel, inputs: Tensor, classes: Tensor
) -> Tensor | None:
    """Compute the evidence for one class of each image, by location.

    The model must be in evaluation mode. Neither its parameters nor their gradients change.

    Args:
        adapted: the model.
        inputs: normalized images, float32 [images, 3, S, S].
        classes: class of each image to explain, int64 [images].

    Returns:
        float32 [images, h, w] >= 0 on the CPU; None for a model without a spatial output before its
        classifier, see `find_spatial_module`.
    """
    model = adapted.model
    path = find_spatial_module(adapted, inputs[:1])
    if path is None:
        return None
    outputs: list[Tensor] = []

    def start_recording(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        # What precedes this module needs no gradients. The end of no_grad restores the mode.
        torch.set_grad_enabled(True)
        outputs.append(output.detach().requires_grad_())
        # A copy, because an operation in place may follow.
        return outputs[-1].clone()

    with torch.no_grad(), model.get_submodule(path).register_forward_hook(start_recording):
        scores = model(inputs).gather(1, classes[:, None])
        features = outputs[-1]
        (gradients,) = torch.autograd.grad(scores.sum(), features)
    rows, columns, channels = _order_axes(features.shape)
    weights = gradients.mean((rows, columns), keepdim=True)
    return (weights * features.detach()).sum(channels).relu().float().cpu()


def find_spatial_module(adapted: AdaptedModel, inputs: Tensor) -> str | None:
    """Return the path of the last module of the blocks whose outputs have several locations.

    Only modules with an output per image, such as hidden layers of the classifier, may follow it.
    None if there is no such module: the tokens of a vision transformer are no grid.

    Args:
        adapted: the model, in evaluation mode.
        inputs: a normalized image, float32 [1, 3, S, S].
    """
    paths = [path for block in adapted.blocks for path in block.module_paths]
    shapes = _trace_output_shapes(adapted.model, paths, inputs)
    for path in reversed(paths):
        # Modules that do not run, such as the auxiliary classifiers of Inception, have no shape.
        shape = shapes.get(path)
        if shape is not None and not _is_vector(shape):
            return path if _is_grid(shape) else None
    return None


def _is_vector(shape: _Shape) -> bool:
    return len(shape) > 1 and shape.count(1) >= len(shape) - 1


def _is_grid(shape: _Shape) -> bool:
    return len(shape) == 4 and (shape[2] == shape[3] > 1 or shape[1] == shape[2] > 1)


def _order_axes(shape: _Shape) -> tuple[int, int, int]:
    """Return the axes of rows, columns and channels: images are square, so the first two agree."""
    return (2, 3, 1) if shape[2] == shape[3] > 1 else (1, 2, 3)


@torch.no_grad()
def _trace_output_shapes(
    model: nn.Module, paths: Sequence[str], inputs: Tensor
) -> Mapping[str, _Shape]:
    """Return the shape of the output of each module; () if it is not a tensor."""
    shapes: dict[str, _Shape] = {}

    def record(path: str, output: object) -> None:
        shapes[path] = tuple(output.shape) if isinstance(output, Tensor) else ()

    hooks = [
        model.get_submodule(path).register_forward_hook(
            lambda _module, _inputs, output, path=path: record(path, output)
        )
        for path in paths
    ]
    try:
        model(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return shapes

"""The classification layer: found by what the network does, then replaced by a new head.

The network's skeleton is run once on the meta device and its modules are watched: the classification layer is the last linear layer
or convolution that ran and whose width is the logits'. Replacing it must change the logits' width, or it is not the one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgetl.core.architectures import HeadKind
from edgetl.core.errors import ArchitectureError

_ACTIVATIONS = (
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.SiLU,
    nn.GELU,
    nn.Hardswish,
    nn.ELU,
    nn.Tanh,
    nn.Sigmoid,
    nn.Softmax,
    nn.LogSoftmax,
)
_PASSTHROUGH_LAYERS = (nn.Identity, nn.Flatten, nn.Dropout, nn.AdaptiveAvgPool2d, nn.AvgPool2d)


@dataclass(frozen=True)
class ClassifierLayer:
    """Where a network decides between its classes."""

    path: str
    """As in `named_modules()`."""
    kind: HeadKind
    in_features: int
    """Width of its input."""
    activations: tuple[str, ...]
    """Activations that run on the logits (SqueezeNet's ReLU); they would cut off what is below zero."""
    dropout: str | None
    """The dropout that stands directly before it."""


def find_classifier_layer(skeleton: nn.Module, image_size: int, name: str) -> ClassifierLayer:
    """Find and verify the classification layer of a network on the meta device; the network is left as it was.

    Args:
        skeleton: takes float32 [batch, 3, image_size, image_size] and gives logits [batch, classes].
        name: the model's name for messages.

    Raises:
        ArchitectureError: the network cannot be adapted; the message names it and says why.
    """
    ran, width = _trace_modules(skeleton, image_size, name)
    candidates = [
        index for index, (_, module) in enumerate(ran) if _output_width(module) is not None
    ]
    if not candidates:
        raise _head_error(name, "no linear layer or convolution runs in it")
    index = candidates[-1]
    path, module = ran[index]
    if _output_width(module) != width:
        raise _head_error(
            name,
            f"its last layer, {path}, gives {_output_width(module)} values where the logits have {width}",
        )
    if sum(other is module for _, other in ran) > 1:
        raise _head_error(name, f"its last layer, {path}, runs more than once")
    after = ran[index + 1 :]
    strange = [
        f"{at} ({type(later).__name__})"
        for at, later in after
        if not isinstance(later, (*_ACTIVATIONS, *_PASSTHROUGH_LAYERS))
    ]
    if strange:
        raise _head_error(name, f"{', '.join(strange)} runs after its last layer, {path}")
    before = [entry for entry in ran[:index] if not isinstance(entry[1], (nn.Flatten, nn.Identity))]
    layer = ClassifierLayer(
        path=path,
        kind="linear" if isinstance(module, nn.Linear) else "conv",
        in_features=module.in_features if isinstance(module, nn.Linear) else module.in_channels,  # type: ignore[arg-type]
        activations=tuple(at for at, later in after if isinstance(later, _ACTIVATIONS)),
        dropout=before[-1][0] if before and isinstance(before[-1][1], nn.Dropout) else None,
    )
    _verify(skeleton, layer, image_size, name, width + 1)
    return layer


def build_head(layer: ClassifierLayer, classes: int, width: int, dropout: float) -> nn.Sequential:
    """Dropout, a layer of `width`, ReLU, a layer of `classes`; width 0 is dropout and one layer. 1x1 convolutions where the old one is."""
    # Identity keeps the names of the weights the same whether or not the network brings its own dropout.
    first: nn.Module = nn.Identity() if layer.dropout else nn.Dropout(dropout)

    def dense(inputs: int, outputs: int) -> nn.Module:
        return (
            nn.Linear(inputs, outputs) if layer.kind == "linear" else nn.Conv2d(inputs, outputs, 1)
        )

    if not width:
        return nn.Sequential(first, dense(layer.in_features, classes))
    return nn.Sequential(first, dense(layer.in_features, width), nn.ReLU(), dense(width, classes))


def replace_head(
    network: nn.Module,
    layer: ClassifierLayer,
    classes: int,
    width: int = 128,
    dropout: float = 0.2,
) -> None:
    """Put a new head where the classification layer is; activations on its logits go, a dropout before it takes the new rate."""
    _set_submodule(network, layer.path, build_head(layer, classes, width, dropout))
    for path in layer.activations:
        _set_submodule(network, path, nn.Identity())
    if layer.dropout:
        existing = network.get_submodule(layer.dropout)
        assert isinstance(existing, nn.Dropout)
        existing.p = dropout


def _trace_modules(
    skeleton: nn.Module, image_size: int, name: str
) -> tuple[list[tuple[str, nn.Module]], int]:
    ran: list[tuple[str, nn.Module]] = []
    hooks = [
        module.register_forward_hook(
            lambda module, _input, _output, path=path: ran.append((path, module))
        )
        for path, module in skeleton.named_modules()
        if not any(True for _ in module.children())
    ]
    try:
        output = _run(skeleton, image_size)
    finally:
        for hook in hooks:
            hook.remove()
    if not isinstance(output, Tensor) or output.dim() != 2:
        raise _head_error(name, "it does not give logits [batch, classes]")
    return ran, output.shape[1]


def _verify(
    skeleton: nn.Module, layer: ClassifierLayer, image_size: int, name: str, classes: int
) -> None:
    original = skeleton.get_submodule(layer.path)
    with torch.device("meta"):
        _set_submodule(skeleton, layer.path, build_head(layer, classes, 8, 0.0))
    try:
        output = _run(skeleton, image_size)
        fits = isinstance(output, Tensor) and tuple(output.shape) == (2, classes)
    except RuntimeError:
        fits = False
    finally:
        _set_submodule(skeleton, layer.path, original)
    if not fits:
        raise _head_error(name, f"the logits do not come from its last layer, {layer.path}")


def _run(skeleton: nn.Module, image_size: int) -> object:
    skeleton.eval()
    with torch.no_grad():
        return skeleton(torch.empty(2, 3, image_size, image_size, device="meta"))


def _set_submodule(network: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(network.get_submodule(parent), name, module)


def _output_width(module: nn.Module) -> int | None:
    if isinstance(module, nn.Linear):
        return module.out_features
    return module.out_channels if isinstance(module, nn.Conv2d) else None


def _head_error(name: str, why: str) -> ArchitectureError:
    return ArchitectureError(
        f"{name} cannot be given a new head: {why}. Choose another --model; `edgetl models` lists them."
    )

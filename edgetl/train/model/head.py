"""Classification layer: found by running the model, then replaced by a new head.

The model runs once on the meta device, and hooks record the modules that run. The classification
layer is the last linear layer or convolution; its width must be the number of logits. As a check,
replacing it must change the number of logits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgetl.core.architectures import HeadKind, source_of
from edgetl.core.config.finetune import FinetuneConfig
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
    """Classification layer of a model."""

    path: str
    """Path of the layer, as in `named_modules()`."""
    kind: HeadKind
    in_features: int
    """Number of input features."""
    activations: tuple[str, ...]
    """Paths of activations on the logits (SqueezeNet's ReLU), which would clip negative logits."""
    dropout: str | None
    """Path of the dropout directly before the layer."""


def find_classifier_layer(skeleton: nn.Module, image_size: int, name: str) -> ClassifierLayer:
    """Find and verify the classification layer of a model by running it on its device.

    The model does not change.

    Args:
        skeleton: maps float32 [batch, 3, image_size, image_size] to logits [batch, classes].
        image_size: side of the input, pixels.
        name: name of the model for messages.

    Raises:
        ArchitectureError: the model cannot be adapted; the message names the model and the reason.
    """
    calls, width = _trace_modules(skeleton, image_size, name)
    candidates = [
        index for index, (_, module) in enumerate(calls) if _output_width(module) is not None
    ]
    if not candidates:
        raise _head_error(name, "it has no linear layer or convolution")
    index = candidates[-1]
    path, module = calls[index]
    if _output_width(module) != width:
        raise _head_error(
            name,
            f"its last layer, {path}, has {_output_width(module)} outputs "
            f"but the model has {width} logits",
        )
    if sum(other is module for _, other in calls) > 1:
        raise _head_error(name, f"its last layer, {path}, runs more than once")
    later_calls = calls[index + 1 :]
    unsupported = [
        f"{later_path} ({type(later).__name__})"
        for later_path, later in later_calls
        if not isinstance(later, (*_ACTIVATIONS, *_PASSTHROUGH_LAYERS))
    ]
    if unsupported:
        raise _head_error(name, f"{', '.join(unsupported)} runs after its last layer, {path}")
    earlier_calls = [
        call for call in calls[:index] if not isinstance(call[1], (nn.Flatten, nn.Identity))
    ]
    dropout = None
    if earlier_calls and isinstance(earlier_calls[-1][1], nn.Dropout):
        dropout = earlier_calls[-1][0]
    layer = ClassifierLayer(
        path=path,
        kind="linear" if isinstance(module, nn.Linear) else "conv",
        in_features=module.in_features if isinstance(module, nn.Linear) else module.in_channels,  # type: ignore[arg-type]
        activations=tuple(
            later_path for later_path, later in later_calls if isinstance(later, _ACTIVATIONS)
        ),
        dropout=dropout,
    )
    _verify(skeleton, layer, image_size, name, width + 1)
    return layer


class Head(nn.Sequential):
    """New head that has replaced a classification layer."""


def build_head(layer: ClassifierLayer, classes: int, width: int, dropout: float) -> Head:
    """Build a head: dropout, a layer of `width` outputs, ReLU, a layer of `classes` outputs.

    Width 0 means dropout and a single layer. The layers are 1x1 convolutions if the replaced layer
    is a convolution.
    """
    # Identity gives the weights the same names in models with a dropout before the layer.
    first: nn.Module = nn.Identity() if layer.dropout else nn.Dropout(dropout)

    def make_layer(inputs: int, outputs: int) -> nn.Module:
        if layer.kind == "linear":
            return nn.Linear(inputs, outputs)
        return nn.Conv2d(inputs, outputs, 1)

    if not width:
        return Head(first, make_layer(layer.in_features, classes))
    return Head(first, make_layer(layer.in_features, width), nn.ReLU(), make_layer(width, classes))


def replace_head(
    model: nn.Module,
    layer: ClassifierLayer,
    classes: int,
    width: int = 128,
    dropout: float = 0.2,
) -> None:
    """Replace the classification layer by a new head, in place.

    Activations on the logits are removed. A dropout before the layer gets the rate `dropout`.
    """
    model.set_submodule(layer.path, build_head(layer, classes, width, dropout))
    for path in layer.activations:
        model.set_submodule(path, nn.Identity())
    if layer.dropout:
        existing = model.get_submodule(layer.dropout)
        assert isinstance(existing, nn.Dropout)
        existing.p = dropout


def _trace_modules(
    skeleton: nn.Module, image_size: int, name: str
) -> tuple[list[tuple[str, nn.Module]], int]:
    calls: list[tuple[str, nn.Module]] = []
    hooks = [
        module.register_forward_hook(
            lambda module, _input, _output, path=path: calls.append((path, module))
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
        raise _head_error(name, "it does not return logits [batch, classes]")
    return calls, output.shape[1]


def _verify(
    skeleton: nn.Module, layer: ClassifierLayer, image_size: int, name: str, classes: int
) -> None:
    original = skeleton.get_submodule(layer.path)
    # On the CPU, the random values of this head would change those of the model built next.
    with torch.random.fork_rng(devices=[]), _device_of(skeleton):
        skeleton.set_submodule(layer.path, build_head(layer, classes, 8, 0.0))
    try:
        output = _run(skeleton, image_size)
        fits = isinstance(output, Tensor) and tuple(output.shape) == (2, classes)
    except RuntimeError:
        fits = False
    finally:
        skeleton.set_submodule(layer.path, original)
    if not fits:
        raise _head_error(name, f"the logits do not come from its last layer, {layer.path}")


def _run(skeleton: nn.Module, image_size: int) -> object:
    skeleton.eval()
    with torch.no_grad():
        return skeleton(torch.zeros(2, 3, image_size, image_size, device=_device_of(skeleton)))


def _device_of(skeleton: nn.Module) -> torch.device:
    parameter = next(skeleton.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


def _output_width(module: nn.Module) -> int | None:
    if isinstance(module, nn.Linear):
        return module.out_features
    return module.out_channels if isinstance(module, nn.Conv2d) else None


def _head_error(name: str, reason: str) -> ArchitectureError:
    hint = "Choose another {model}; `edgetl models` lists them."
    if source_of(name) == "python":
        hint = "Return features [batch, F] instead of logits; a linear layer is then appended."
    return ArchitectureError(
        f"The head of {name} cannot be replaced: {reason}. {hint}",
        FinetuneConfig,
    )

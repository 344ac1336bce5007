"""Operator fusion for frozen subgraphs: BatchNorm and activations into convolutions."""

from __future__ import annotations

import contextlib
import copy
import inspect
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.optimization import fuse

_FUSABLE_ACTIVATIONS: dict[type[nn.Module], tuple[str, list[float]]] = {
    nn.ReLU: ("relu", []),
    nn.ReLU6: ("hardtanh", [0.0, 6.0]),
    nn.Hardswish: ("hardswish", []),
    nn.SiLU: ("swish", []),
}
"""Activations that oneDNN computes within a convolution, by the names of PyTorch's compiler."""


def fold_batch_norm(subgraph: fx.GraphModule) -> fx.GraphModule:
    """Return a copy in evaluation mode with BatchNorm folded into convolutions; no gradients.

    Blocks that torch.fx cannot trace keep their BatchNorm.
    """
    subgraph.eval()
    copied = copy.deepcopy(subgraph)
    _separate_activations(copied)
    try:
        folded: Any = fuse(copied, inplace=True)
    except Exception:  # forward methods raise anything when given fx proxies
        _fold_blocks(copied)
        folded = fuse(copied, inplace=True, no_trace=True)
    return folded.requires_grad_(False)  # type: ignore[no-any-return]


def _separate_activations(model: nn.Module) -> None:
    """Replace BatchNorm that contains the activation, as in timm, by two modules, in place."""
    for path, module in list(model.named_modules()):
        parts = dict(module.named_children())
        if isinstance(module, nn.BatchNorm2d) and parts.keys() == {"drop", "act"}:
            norm = nn.BatchNorm2d(module.num_features, module.eps, affine=module.affine)
            for name in ("weight", "bias", "running_mean", "running_var"):
                setattr(norm, name, getattr(module, name))
            model.set_submodule(path, nn.Sequential(norm, *parts.values()).eval())


def _fold_blocks(subgraph: fx.GraphModule) -> None:
    for node in subgraph.graph.nodes:
        if node.op != "call_module" or len(node.args) != 1 or node.kwargs:
            continue
        block = subgraph.get_submodule(str(node.target))
        takes_one_argument = len(inspect.signature(block.forward).parameters) == 1
        if not takes_one_argument or type(block).__module__.startswith("torch.nn.modules"):
            continue
        with contextlib.suppress(Exception):  # as above
            subgraph.set_submodule(str(node.target), fuse(block))


def fuse_activations(subgraph: fx.GraphModule) -> fx.GraphModule:
    """Fuse activations into the convolutions before them, in place; for CPUs.

    Saves a quarter of the time of MobileNetV2's frozen blocks, because a convolution's output is
    written once less. No effect if PyTorch lacks the kernel.
    """
    if not hasattr(torch.ops.mkldnn, "_convolution_pointwise"):
        return subgraph
    modules = dict(subgraph.named_modules())
    for node in list(subgraph.graph.nodes):
        activation = modules.get(str(node.target)) if node.op == "call_module" else None
        if activation is None or type(activation) not in _FUSABLE_ACTIVATIONS:
            continue
        producer = node.args[0]
        convolution = None
        if isinstance(producer, fx.Node) and producer.op == "call_module":
            convolution = modules.get(str(producer.target))
        if not isinstance(convolution, nn.Conv2d) or len(producer.users) != 1:
            continue
        if convolution.padding_mode != "zeros" or isinstance(convolution.padding, str):
            continue
        if sum(other.target == producer.target for other in subgraph.graph.nodes) > 1:
            continue
        subgraph.set_submodule(
            str(producer.target),
            _FusedConvActivation(convolution, *_FUSABLE_ACTIVATIONS[type(activation)]),
        )
        node.replace_all_uses_with(producer)
        subgraph.graph.erase_node(node)
    subgraph.recompile()
    return subgraph


class _FusedConvActivation(nn.Module):
    def __init__(self, convolution: nn.Conv2d, name: str, values: list[float]) -> None:
        super().__init__()
        self.weight = convolution.weight
        self.bias = convolution.bias
        self._conv_arguments = (
            convolution.padding,
            convolution.stride,
            convolution.dilation,
            convolution.groups,
        )
        self._activation = (name, values, "")

    def forward(self, value: Tensor) -> Tensor:
        output: Tensor = torch.ops.mkldnn._convolution_pointwise(
            value, self.weight, self.bias, *self._conv_arguments, *self._activation
        )
        return output

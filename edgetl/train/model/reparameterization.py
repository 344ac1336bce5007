"""Fusion of the parallel branches that some networks are trained with (RepVGG, MobileOne, RepViT).

After training, the branches of a block and their BatchNorm equal a single convolution. Modules offer
this by a method without arguments, by convention named `reparameterize` or `switch_to_deploy`, which
changes the module in place, or `fuse`, which may also return its replacement.
"""

from __future__ import annotations

import copy
import inspect

import torch
from torch import nn

from edgetl.train.model.head import Head

_METHODS = ("fuse", "reparameterize", "switch_to_deploy")


def fuse_branches(model: nn.Module) -> nn.Module:
    """Return a copy of a model in evaluation mode, with the branches of its modules fused.

    Modules that contain the new head keep their layers, since their methods expect the layer that it
    has replaced.
    """
    # The root is a child here, so that it can be replaced as well.
    parent = nn.ModuleDict({"model": copy.deepcopy(model)})
    with torch.no_grad():
        _fuse_children(parent)
    return parent["model"].eval()


def has_branches(model: nn.Module) -> bool:
    """Return whether `fuse_branches` changes a model."""
    return any(_find_method(module) for module in model.modules())


def _fuse_children(module: nn.Module) -> None:
    for name, child in list(module.named_children()):
        method = _find_method(child)
        if method is not None:
            fused = getattr(child, method)()
            if isinstance(fused, nn.Module):
                child = fused
                module.add_module(name, child)
        _fuse_children(child)


def _find_method(module: nn.Module) -> str | None:
    if any(isinstance(submodule, Head) for submodule in module.modules()):
        return None
    for name in _METHODS:
        method = getattr(module, name, None)
        if inspect.ismethod(method) and not inspect.signature(method).parameters:
            return name
    return None

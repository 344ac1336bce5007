"""A training's state in one file: tensors by safetensors, numbers as JSON in its header; whole or absent, and never a pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from edgetl.core.errors import RunError
from edgetl.core.files import atomic_path


def save_state(path: Path, parts: Mapping[str, nn.Module | torch.optim.Optimizer], facts: Mapping[str, Any]) -> None:
    """Write modules and optimisers by name, and facts beside them."""
    tensors = {f"{name}/{key}": tensor for name, part in parts.items() for key, tensor in _tensors(part).items()}
    plain = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in tensors.items()}
    with atomic_path(path) as temporary:
        save_file(plain, temporary, {"facts": json.dumps(facts)})


def load_state(path: Path, parts: Mapping[str, nn.Module | torch.optim.Optimizer]) -> dict[str, Any]:
    """Set modules and optimisers to what was saved; returns the facts.

    Raises:
        RunError: the file is damaged or belongs to other parts.
    """
    try:
        with safe_open(path, "pt") as content:
            tensors = {key: content.get_tensor(key) for key in content.keys()}  # noqa: SIM118  it is no mapping
            facts: dict[str, Any] = json.loads(content.metadata()["facts"])
        for name, part in parts.items():
            own = {key.removeprefix(f"{name}/"): tensor for key, tensor in tensors.items() if key.startswith(f"{name}/")}
            if isinstance(part, nn.Module):
                part.load_state_dict(own)
            else:
                _load_optimiser(part, own)
    except (OSError, SafetensorError, RuntimeError, ValueError, KeyError, TypeError) as cause:
        raise RunError(f"{path} cannot be gone on with ({cause}). Begin anew in another --work folder.") from cause
    return facts


def _tensors(part: nn.Module | torch.optim.Optimizer) -> dict[str, Tensor]:
    if isinstance(part, nn.Module):
        return dict(part.state_dict())
    return {f"{index}/{name}": value for index, state in part.state_dict()["state"].items() for name, value in state.items()}


def _load_optimiser(optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        index, _, name = key.partition("/")
        own = parameters[int(index)]
        # In the parameter's order of memory: fused steps walk through both as they lie.
        fitting = torch.empty_like(own, requires_grad=False).copy_(tensor) if tensor.shape == own.shape else tensor
        state.setdefault(int(index), {})[name] = fitting
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})

"""A training's state in one file: tensors by safetensors, numbers as JSON in its header; whole or absent, and never a pickle."""

from __future__ import annotations

import errno
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from edgetl.core.errors import RunError
from edgetl.core.files import atomic_path
from edgetl.train.model.freezing import tensor_digest

CheckpointPart = nn.Module | torch.optim.Optimizer | Mapping[str, Tensor]
_OS_ERROR = re.compile(r"os error (\d+)")


@dataclass(frozen=True)
class Checkpoint:
    """What lay in a file."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, Tensor]

    def part_tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors that were saved under a name."""
        return {
            key.removeprefix(f"{name}/"): tensor
            for key, tensor in self.tensors.items()
            if key.startswith(f"{name}/")
        }

    def restore(self, name: str, part: nn.Module | torch.optim.Optimizer) -> None:
        """Set a module or an optimiser to what was saved under a name.

        Raises:
            RunError: the file belongs to another one.
        """
        try:
            if isinstance(part, nn.Module):
                part.load_state_dict(self.part_tensors(name))
            else:
                _load_optimizer(part, self.part_tensors(name))
        except (RuntimeError, ValueError, KeyError, IndexError) as cause:
            raise _resume_error(self.path, cause) from cause


def write_checkpoint(
    path: Path, parts: Mapping[str, CheckpointPart], facts: Mapping[str, Any]
) -> None:
    """Write modules, optimisers and tensors by name, and facts beside them.

    Raises:
        OSError: there is no room, or the folder cannot be written; what was there before is as it was.
    """
    # On the host once: tensors are hashed and written.
    tensors = {
        f"{name}/{key}": tensor.detach().cpu()
        for name, part in parts.items()
        for key, tensor in _tensors_of_part(part).items()
    }
    content = json.dumps(facts)
    digests = {name: tensor_digest(tensor) for name, tensor in tensors.items()}
    write_tensors(path, tensors, {"facts": content, "sha256": _checkpoint_digest(content, digests)})


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write a .safetensors file atomically, row by row whatever the tensors' order of memory.

    Raises:
        OSError: as of any file; safetensors' own error hides it.
    """
    plain = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in tensors.items()}
    with atomic_path(path) as temporary:
        try:
            save_file(plain, temporary, metadata)
        except SafetensorError as cause:
            number = _OS_ERROR.search(str(cause))
            raise OSError(int(number[1]) if number else errno.EIO, str(cause), str(path)) from cause


def read_checkpoint(path: Path) -> Checkpoint:
    """The file's content.

    Raises:
        RunError: it is damaged, down to one bit, or no state.
    """
    try:
        with safe_open(path, "pt") as content:
            tensors = {key: content.get_tensor(key) for key in content.keys()}  # noqa: SIM118  it is no mapping
            metadata = content.metadata()
        digests = {name: tensor_digest(tensor) for name, tensor in tensors.items()}
        if "sha256" not in metadata:
            raise ValueError("it was written by an older edgetl, without hashes")
        if metadata["sha256"] != _checkpoint_digest(metadata["facts"], digests):
            raise ValueError("its content is not what was written: a SHA-256 differs")
        facts = json.loads(metadata["facts"])
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RecursionError) as cause:
        raise _resume_error(path, cause) from cause
    return Checkpoint(path, facts, tensors)


def _checkpoint_digest(facts: str, digests: Mapping[str, str]) -> str:
    listed = json.dumps([facts, sorted(digests.items())])
    return hashlib.sha256(listed.encode()).hexdigest()


def _resume_error(path: Path, cause: Exception) -> RunError:
    return RunError(f"{path} cannot be gone on with ({cause}). Begin anew in another folder.")


def _tensors_of_part(part: CheckpointPart) -> dict[str, Tensor]:
    if isinstance(part, nn.Module):
        return dict(part.state_dict())
    if isinstance(part, torch.optim.Optimizer):
        return {
            f"{index}/{name}": value
            for index, state in part.state_dict()["state"].items()
            for name, value in state.items()
        }
    return dict(part)


def _load_optimizer(optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        index, _, name = key.partition("/")
        own = parameters[int(index)]
        # In the parameter's order of memory: fused steps walk through both as they lie.
        fitting = (
            torch.empty_like(own, requires_grad=False).copy_(tensor)
            if tensor.shape == own.shape
            else tensor
        )
        state.setdefault(int(index), {})[name] = fitting
    optimiser.load_state_dict(
        {"state": state, "param_groups": optimiser.state_dict()["param_groups"]}
    )

"""Checkpoint files: tensors as safetensors, numbers as JSON in the header.

A file is written atomically, and it is never a pickle.
"""

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
    """Content of a checkpoint file."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, Tensor]

    def part_tensors(self, name: str) -> dict[str, Tensor]:
        """Return the tensors that were saved under a name."""
        return {
            key.removeprefix(f"{name}/"): tensor
            for key, tensor in self.tensors.items()
            if key.startswith(f"{name}/")
        }

    def restore(self, name: str, part: nn.Module | torch.optim.Optimizer) -> None:
        """Load the state that was saved under a name into a module or an optimizer.

        Raises:
            RunError: if the state does not match.
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
    """Write modules, optimizers and tensors by name, and the facts.

    Args:
        path: the file.
        parts: modules, optimizers and mappings of tensors by name.
        facts: numbers, as JSON.

    Raises:
        OSError: if the disk is full or not writable; an earlier file is unchanged.
    """
    # Copied to the host once, since tensors are both hashed and written.
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
    """Write a .safetensors file atomically, in row-major order for any memory format.

    Raises:
        OSError: if the file cannot be written; safetensors hides it in an error of its own.
    """
    plain = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in tensors.items()}
    with atomic_path(path) as temporary:
        try:
            save_file(plain, temporary, metadata)
        except SafetensorError as cause:
            match = _OS_ERROR.search(str(cause))
            code = int(match[1]) if match else errno.EIO
            raise OSError(code, str(cause), str(path)) from cause


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint file and verify its SHA-256.

    Raises:
        RunError: if a single bit is damaged, or the file is no checkpoint.
    """
    try:
        with safe_open(path, "pt") as content:
            # safe_open returns no mapping.
            tensors = {key: content.get_tensor(key) for key in content.keys()}  # noqa: SIM118
            metadata = content.metadata()
        digests = {name: tensor_digest(tensor) for name, tensor in tensors.items()}
        if "sha256" not in metadata:
            raise ValueError("it was written by an older edgetl, without SHA-256")
        if metadata["sha256"] != _checkpoint_digest(metadata["facts"], digests):
            raise ValueError("the SHA-256 of its content does not match")
        facts = json.loads(metadata["facts"])
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RecursionError) as cause:
        raise _resume_error(path, cause) from cause
    return Checkpoint(path, facts, tensors)


def _checkpoint_digest(facts: str, digests: Mapping[str, str]) -> str:
    content = json.dumps([facts, sorted(digests.items())])
    return hashlib.sha256(content.encode()).hexdigest()


def _resume_error(path: Path, cause: Exception) -> RunError:
    return RunError(f"Cannot resume from {path}: {cause}. Start a new run in another folder.")


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


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        index, _, name = key.partition("/")
        parameter = parameters[int(index)]
        if tensor.shape == parameter.shape:
            # Fused steps read both in memory order, so the state needs the parameter's format.
            tensor = torch.empty_like(parameter, requires_grad=False).copy_(tensor)
        state.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict(
        {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
    )

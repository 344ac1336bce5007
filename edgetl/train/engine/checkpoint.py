"""Checkpoint files: tensors as safetensors, numbers as JSON in the header.

A file is written atomically, and it is never a pickle.
"""

from __future__ import annotations

import errno
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from edgetl.core.errors import RunError
from edgetl.core.files import atomic_path
from edgetl.train.model.freezing import tensor_digest

_OS_ERROR = re.compile(r"os error (\d+)")


@dataclass(frozen=True)
class Checkpoint:
    """Content of a checkpoint file."""

    facts: Any
    """Numbers, as JSON."""
    tensors: Mapping[str, Tensor]
    """Tensors of all parts, by `part/name`."""

    def part(self, name: str) -> dict[str, Tensor]:
        """Return the tensors of a part by their names within it."""
        prefix = f"{name}/"
        return {
            key.removeprefix(prefix): tensor
            for key, tensor in self.tensors.items()
            if key.startswith(prefix)
        }


def write_checkpoint(
    path: Path, parts: Mapping[str, Mapping[str, Tensor]], facts: Mapping[str, Any]
) -> None:
    """Write tensors by part and name, and the facts as JSON.

    Raises:
        OSError: if the disk is full or not writable; an earlier file is unchanged.
    """
    # Copied to the host once, since tensors are both hashed and written.
    tensors = {
        f"{part}/{name}": tensor.detach().cpu()
        for part, tensors in parts.items()
        for name, tensor in tensors.items()
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
    with checkpoint_errors(path):
        with safe_open(path, "pt") as content:
            # safe_open returns no mapping.
            tensors = {key: content.get_tensor(key) for key in content.keys()}  # noqa: SIM118
            metadata = content.metadata()
        digests = {name: tensor_digest(tensor) for name, tensor in tensors.items()}
        if "sha256" not in metadata:
            raise ValueError("it was written by an older edgetl, without SHA-256")
        if metadata["sha256"] != _checkpoint_digest(metadata["facts"], digests):
            raise ValueError("the SHA-256 of its content does not match")
        return Checkpoint(json.loads(metadata["facts"]), tensors)


@contextmanager
def checkpoint_errors(path: Path) -> Iterator[None]:
    """Report errors inside the block, which uses a checkpoint's content, as damage of the file.

    Raises:
        RunError: the run cannot be resumed from this checkpoint.
    """
    try:
        yield
    except (
        OSError,
        SafetensorError,
        RuntimeError,
        ValueError,
        TypeError,
        KeyError,
        IndexError,
    ) as cause:
        raise RunError(
            f"Cannot resume from {path}: {cause}. Start a new run in another folder."
        ) from cause


def _checkpoint_digest(facts: str, digests: Mapping[str, str]) -> str:
    content = json.dumps([facts, sorted(digests.items())])
    return hashlib.sha256(content.encode()).hexdigest()


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the state of an optimizer by `parameter index/name`."""
    return {
        f"{index}/{name}": value
        for index, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
    }


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Load the output of `optimizer_tensors`; the parameter groups keep their settings.

    Raises:
        ValueError, IndexError: the tensors belong to other parameters.
    """
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

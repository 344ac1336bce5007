"""Files of pretrained weights, read and downloaded without running code from them."""

from __future__ import annotations

import contextlib
import pickle
import re
import socket
import sys
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from safetensors.torch import load_file
from torch import Tensor

from edgetl.core.architectures import find_architecture
from edgetl.core.config.finetune import FinetuneConfig
from edgetl.core.errors import WeightsError
from edgetl.core.files import sha256_file

_STATE_DICT_KEYS = ("state_dict", "model_state_dict", "model")
# torchvision's DenseNet files predate the ban on dots in module names; torchvision renames them
# the same way on loading.
_OLD_DENSENET = re.compile(
    r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\.(?:weight|bias|running_mean|running_var))$"
)
_TIMEOUT_S = 30
_MAX_BYTES = 8 * 2**30
"""Size limit for an architecture that the table lacks."""
_SLACK_BYTES = 64 * 2**20
"""Allowance beyond the parameters: buffers, names and a head of more classes."""
_MAX_LISTED = 4


@dataclass(frozen=True)
class PretrainedWeights:
    """A state dict with its source."""

    tensors: dict[str, Tensor]
    source: str
    """URL, path of the file, name and version of a package, or `builtin`."""
    sha256: str
    """SHA-256 of the file."""
    license: str | None = None
    """SPDX identifier of the license, if it is known."""


def read_weights_file(path: Path, source: str, architecture: str) -> PretrainedWeights:
    """Read a .safetensors, .pth or .pt file.

    Args:
        path: the file.
        source: what to record as the source of the weights.
        architecture: name of the model, for the size limit and messages.

    Raises:
        WeightsError: the file is damaged, too large, or contains more than tensors.
    """
    tensors = _extract_state_dict(_read_file(path, architecture), path, architecture)
    return PretrainedWeights(tensors, source, sha256_file(path))


def download_weights(url: str, architecture: str) -> PretrainedWeights:
    """Download ImageNet weights with torch.hub, which checks the hash in the name and caches the file.

    Raises:
        WeightsError: the server is unreachable, or the hash does not match.
    """
    previous_timeout = socket.getdefaulttimeout()
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name
    try:
        socket.setdefaulttimeout(_TIMEOUT_S)
        with contextlib.redirect_stdout(sys.stderr):
            content = torch.hub.load_state_dict_from_url(
                url, map_location="cpu", progress=False, check_hash=True, weights_only=True
            )
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError) as cause:
        hint = f" The cached {path} may be damaged: delete it." if path.exists() else ""
        raise download_error(url, architecture, cause, hint) from cause
    finally:
        socket.setdefaulttimeout(previous_timeout)
    return PretrainedWeights(
        _extract_state_dict(content, path, architecture), url, sha256_file(path)
    )


def download_error(url: str, architecture: str, cause: Exception, hint: str = "") -> WeightsError:
    """Return the error for ImageNet weights that cannot be downloaded."""
    lines = str(cause).strip("<>").strip().splitlines()
    reason = lines[0].rstrip(".") if lines else type(cause).__name__
    return WeightsError(
        f"Cannot download the ImageNet weights of {architecture} ({reason}).{hint} "
        f"On a machine with internet access, download {url}, copy the file here and use "
        "{weights} FILE; or train from scratch with {weights} none.",
        FinetuneConfig,
    )


def max_file_bytes(architecture: str) -> int:
    """Return the size limit of a weights file: float32 weights, two Adam moments and an EMA."""
    row = find_architecture(architecture)
    return _MAX_BYTES if row is None else 4 * 4 * row.parameters + _SLACK_BYTES


def _read_file(path: Path, architecture: str) -> Any:
    try:
        if path.suffix == ".safetensors":
            _check_bytes(path.stat().st_size, path, architecture)
            return load_file(path)
        if path.suffix in (".pth", ".pt"):
            _check_bytes(_unpacked_bytes(path), path, architecture)
            with warnings.catch_warnings():
                # Warns about the protocol of pickles that are rejected anyway.
                warnings.simplefilter("ignore", UserWarning)
                return torch.load(path, map_location="cpu", weights_only=True)
    except WeightsError:
        raise
    except pickle.UnpicklingError as cause:
        raise WeightsError(
            f"{path} is not a plain weights file: it is damaged, "
            "or a pickle that would run code when loaded, so it was not loaded. "
            "Save the model's state_dict() with safetensors, or ask the author for it."
        ) from cause
    except Exception as cause:
        # PyTorch's unpickler raises whatever the opcodes of a damaged or malicious file cause.
        reason = (str(cause).splitlines() or [type(cause).__name__])[0]
        raise WeightsError(
            f"{path} cannot be read as weights ({reason}). Download it again, or use another file."
        ) from cause
    raise WeightsError(
        f"{path} has an unknown file extension. {{weights}} takes .safetensors, .pth or .pt files.",
        FinetuneConfig,
    )


def _unpacked_bytes(path: Path) -> int:
    """Return the size in memory of a file written by `torch.save`.

    This is the size in its archive, or the file's size in the format of PyTorch before 1.6.
    """
    if not zipfile.is_zipfile(path):
        return path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        return sum(entry.file_size for entry in archive.infolist())


def _check_bytes(count: int, path: Path, architecture: str) -> None:
    limit = max_file_bytes(architecture)
    if count > limit:
        raise WeightsError(
            f"{path} unpacks to {count / 1e6:,.0f} MB, but the limit for {architecture} is "
            f"{limit / 1e6:,.0f} MB. Use a file with only the state_dict() of this architecture."
        )


def _extract_state_dict(content: Any, path: Path, architecture: str) -> dict[str, Tensor]:
    for wrapper in _STATE_DICT_KEYS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
            break
    if (
        not isinstance(content, Mapping)
        or not content
        or not all(isinstance(value, Tensor) for value in content.values())
    ):
        raise WeightsError(
            f"{path} has no state dict (names with tensors). "
            "Save the model's state_dict(), preferably with safetensors."
        )
    if not all(isinstance(name, str) for name in content):
        raise WeightsError(
            f"{path} has tensors whose names are not strings. "
            "Save the model's state_dict(), preferably with safetensors."
        )
    unsupported = [name for name, tensor in content.items() if not _is_plain(tensor)]
    if unsupported:
        kinds = "tensors without plain values: meta, sparse, nested or quantized"
        raise WeightsError(
            f"{path} has {list_names(kinds, unsupported)}. "
            "Save the state_dict() of the model on the CPU, with dense tensors."
        )
    # Checked again: a view with stride 0 is larger in memory than in the file.
    _check_bytes(
        sum(tensor.numel() * tensor.element_size() for tensor in content.values()),
        path,
        architecture,
    )
    return dict(_rename_keys(content))


def _is_plain(tensor: Tensor) -> bool:
    return (
        tensor.device.type == "cpu"
        and tensor.layout == torch.strided
        and not (tensor.is_quantized or tensor.is_nested)
    )


def _rename_keys(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    is_wrapped = all(name.startswith("module.") for name in tensors)  # by DataParallel
    for name, tensor in tensors.items():
        unwrapped = name.removeprefix("module.") if is_wrapped else name
        yield _OLD_DENSENET.sub(r"\1\2", unwrapped), tensor


def list_names(label: str, names: list[str]) -> str:
    """Return the number of names with a label and the first of them; empty for no names."""
    if not names:
        return ""
    more = f" and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
    return f"{len(names)} {label} ({', '.join(names[:_MAX_LISTED])}{more})"

"""Pretrained weights: shipped with edgetl, from torchvision's server or from a file, without ever running code that a file carries."""

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
import torchvision
from safetensors.torch import load_file
from torch import Tensor, nn

from edgetl.core.architectures import load_architectures
from edgetl.core.builtin_weights import find_builtin_weights
from edgetl.core.errors import WeightsError
from edgetl.core.files import sha256_file

_STATE_DICT_KEYS = ("state_dict", "model_state_dict", "model")
_OPTIONAL_TENSORS = re.compile(r"(^|\.)num_batches_tracked$|^(AuxLogits|aux1|aux2)\.")
# torchvision's DenseNet files predate the ban on dots in module names; torchvision renames the same way on loading.
_OLD_DENSENET = re.compile(
    r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\.(?:weight|bias|running_mean|running_var))$"
)
_TIMEOUT_S = 30
_MAX_BYTES, _SLACK_BYTES = 8 * 2**30, 64 * 2**20
"""Read for an architecture that the table does not know; and beyond the tensors, for buffers, names and a head of more classes."""
_FLOAT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_INTEGER_DTYPES = (torch.int64, torch.int32)
_MAX_LISTED = 4


@dataclass(frozen=True)
class PretrainedWeights:
    """A state dict and where it came from."""

    tensors: dict[str, Tensor]
    source: str
    """The URL, the file, or `builtin`."""
    sha256: str
    """Of the file's bytes."""


def read_weights(source: str, architecture: str) -> PretrainedWeights | None:
    """The weights that `--weights` names; None for `none`.

    Args:
        source: `imagenet`, `builtin` (edgetl's own, a backbone without a classification layer), `none`, a .safetensors file, a .pth or
            .pt file, or a folder holding <architecture>.safetensors.

    Raises:
        WeightsError: missing, unreachable, damaged, altered, or a pickle that holds more than tensors.
    """
    if source == "none":
        return None
    if source == "builtin":
        file = find_builtin_weights(architecture)
        return PretrainedWeights(
            _extract_state_dict(_read_file(file, architecture), file, architecture),
            source,
            sha256_file(file),
        )
    if source == "imagenet":
        return download_weights(
            torchvision.models.get_model_weights(architecture).DEFAULT.url, architecture
        )
    path = _find_file(Path(source).expanduser(), architecture)
    return PretrainedWeights(
        _extract_state_dict(_read_file(path, architecture), path, architecture),
        str(path),
        sha256_file(path),
    )


def download_weights(url: str, architecture: str) -> PretrainedWeights:
    """Fetch by torch.hub, which checks the hash in its name and keeps it in its cache.

    Raises:
        WeightsError: the server cannot be reached, or the file is not what its name says.
    """
    before = socket.getdefaulttimeout()
    cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name
    try:
        socket.setdefaulttimeout(_TIMEOUT_S)
        with contextlib.redirect_stdout(sys.stderr):
            content = torch.hub.load_state_dict_from_url(
                url, map_location="cpu", progress=False, check_hash=True, weights_only=True
            )
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError) as cause:
        reason = str(cause).strip("<>") or type(cause).__name__
        damaged = f" A damaged {cached} may be in the way: delete it." if cached.exists() else ""
        raise WeightsError(
            f"The ImageNet weights of {architecture} could not be downloaded ({reason}).{damaged} On a machine with internet access fetch "
            f"{url}, copy the file here and give it with --weights FILE; or train from nothing with --weights none."
        ) from cause
    finally:
        socket.setdefaulttimeout(before)
    return PretrainedWeights(
        _extract_state_dict(content, cached, architecture), url, sha256_file(cached)
    )


def load_weights(
    network: nn.Module, weights: PretrainedWeights, architecture: str, replaced: str | None = None
) -> None:
    """Copy weights into a stock network, every tensor accounted for.

    Args:
        replaced: path of the classification layer when it will be replaced anyway: its tensors may be absent or of any shape.

    Raises:
        WeightsError: tensors are missing, unexpected, of another shape, or not finite; a few of them are named.
    """
    given = _resize_pos_embed(network, weights.tensors)
    own = network.state_dict()

    def free(name: str) -> bool:
        return bool(_OPTIONAL_TENSORS.search(name)) or (
            replaced is not None and name.startswith(f"{replaced}.")
        )

    missing = [name for name in own if name not in given and not free(name)]
    unexpected = [name for name in given if name not in own and not free(name)]
    reshaped = [
        name
        for name in own
        if name in given and given[name].shape != own[name].shape and not free(name)
    ]
    retyped = [
        name
        for name in own
        if name in given and not _has_compatible_dtype(given[name], own[name]) and not free(name)
    ]
    if missing or unexpected or reshaped or retyped:
        shapes = [
            f"{name} is {_shape_text(given[name])}, not {_shape_text(own[name])}"
            for name in reshaped
        ]
        types = [
            f"{name} is {_dtype_text(given[name])}, not {_dtype_text(own[name])}"
            for name in retyped
        ]
        parts = [
            _list_names("missing", missing),
            _list_names("unexpected", unexpected),
            _list_names("of another shape", shapes),
            _list_names("of another type", types),
        ]
        raise WeightsError(
            f"{weights.source} does not fit {architecture}: {'; '.join(part for part in parts if part)}. "
            "Choose the --model that these weights belong to, or other --weights."
        )
    fitting = {
        name: tensor
        for name, tensor in given.items()
        if name in own
        and tensor.shape == own[name].shape
        and _has_compatible_dtype(tensor, own[name])
    }
    broken = [
        name
        for name, tensor in fitting.items()
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all())
    ]
    if broken:
        raise WeightsError(
            f"{weights.source} holds values that are not finite: {_list_names('tensors', broken)}. Fetch the file again."
        )
    with torch.no_grad():
        for name, tensor in fitting.items():
            own[name].copy_(tensor)


def _find_file(path: Path, architecture: str) -> Path:
    if path.is_dir():
        file = path / f"{architecture}.safetensors"
        if not file.is_file():
            present = sorted(entry.name for entry in path.glob("*.safetensors"))
            raise WeightsError(
                f"The folder {path} holds no {architecture}.safetensors; it has: {', '.join(present[:8]) or 'no .safetensors file'}. "
                "Give the file itself, or choose another --model."
            )
        return file
    if not path.is_file():
        raise WeightsError(
            f"No weights at {path}. --weights takes `imagenet`, `builtin`, `none`, a .safetensors or .pth file, or a folder of them."
        )
    return path


def max_file_bytes(architecture: str) -> int:
    """Return how much of a weights file is read for an architecture: weights, Adam's two moments and an average, all in float32."""
    known = load_architectures().get(architecture)
    return _MAX_BYTES if known is None else 4 * 4 * known.parameters + _SLACK_BYTES


def _read_file(path: Path, architecture: str) -> Any:
    try:
        if path.suffix == ".safetensors":
            _check_bytes(path.stat().st_size, path, architecture)
            return load_file(path)
        if path.suffix in (".pth", ".pt"):
            _check_bytes(_unpacked_bytes(path), path, architecture)
            with warnings.catch_warnings():
                warnings.simplefilter(
                    "ignore", UserWarning
                )  # about the protocol of pickles that are refused anyway
                return torch.load(path, map_location="cpu", weights_only=True)
    except WeightsError:
        raise
    except pickle.UnpicklingError as cause:
        raise WeightsError(
            f"{path} is not a plain file of weights: it is damaged, or a pickle that would run code when loaded, so it was not loaded. "
            "Save the model's state_dict() with safetensors, or ask the author for it."
        ) from cause
    except (
        Exception
    ) as cause:  # PyTorch's unpickler runs a stranger's opcodes, and raises whatever they run into
        reason = (str(cause).splitlines() or [type(cause).__name__])[0]
        raise WeightsError(
            f"{path} cannot be read as weights ({reason}). Fetch it again, or give another file."
        ) from cause
    raise WeightsError(
        f"{path} has no known ending. --weights takes .safetensors, .pth or .pt files."
    )


def _unpacked_bytes(path: Path) -> int:
    """Return the size in memory of a file that `torch.save` wrote: what its archive says, or its own in the format before 1.6."""
    if not zipfile.is_zipfile(path):
        return path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        return sum(entry.file_size for entry in archive.infolist())


def _check_bytes(count: int, path: Path, architecture: str) -> None:
    most = max_file_bytes(architecture)
    if count > most:
        raise WeightsError(
            f"{path} unpacks to {count / 1e6:,.0f} MB, and at most {most / 1e6:,.0f} MB are read for {architecture}. "
            "Give a file of this architecture's state_dict() alone."
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
            f"{path} holds no state dict (names with tensors). Save the model's state_dict(), best with safetensors."
        )
    if not all(isinstance(name, str) for name in content):
        raise WeightsError(
            f"{path} has tensors whose names are no text. Save the model's state_dict(), best with safetensors."
        )
    odd = [name for name, tensor in content.items() if not _is_plain(tensor)]
    if odd:
        raise WeightsError(
            f"{path} holds {_list_names('tensors without plain values: meta, sparse, nested or quantized', odd)}. "
            "Save the state_dict() of the model on the CPU, with dense tensors."
        )
    # A view with stride 0 is larger than what the file stores of it.
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
    wrapped = all(name.startswith("module.") for name in tensors)  # DataParallel
    for name, tensor in tensors.items():
        plain = name.removeprefix("module.") if wrapped else name
        yield _OLD_DENSENET.sub(r"\1\2", plain), tensor


def _resize_pos_embed(network: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    # A vision transformer's positions belong to one input size; torchvision interpolates them to another.
    name = "encoder.pos_embedding"
    own = dict(network.named_parameters()).get(name)
    if (
        own is None
        or name not in tensors
        or own.shape == tensors[name].shape
        or own.shape[2:] != tensors[name].shape[2:]
    ):
        return tensors
    from torchvision.models.vision_transformer import interpolate_embeddings

    try:
        interpolated: dict[str, Tensor] = interpolate_embeddings(
            network.image_size, network.patch_size, dict(tensors)
        )
    except ValueError:
        return tensors
    return interpolated


def _has_compatible_dtype(given: Tensor, own: Tensor) -> bool:
    # Integers and complex numbers would be converted without a word, and the network would be trained on nonsense.
    return (
        given.dtype in _FLOAT_DTYPES if own.is_floating_point() else given.dtype in _INTEGER_DTYPES
    )


def _dtype_text(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _shape_text(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a scalar"


def _list_names(what: str, names: list[str]) -> str:
    more = f" and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
    return f"{len(names)} {what} ({', '.join(names[:_MAX_LISTED])}{more})" if names else ""

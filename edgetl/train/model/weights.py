"""Pretrained weights for a model: finding them, and copying them into it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from edgetl.core.architectures import file_stem
from edgetl.core.builtin_weights import find_builtin_weights
from edgetl.core.config.finetune import FinetuneConfig
from edgetl.core.errors import WeightsError
from edgetl.train.model.sources.base import source_for
from edgetl.train.model.weights_file import PretrainedWeights, list_names, read_weights_file

_OPTIONAL_TENSORS = re.compile(r"(^|\.)num_batches_tracked$|^(AuxLogits|aux1|aux2)\.")
_FLOAT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_INTEGER_DTYPES = (torch.int64, torch.int32)


def read_weights(
    source: str, architecture: str, image_size: int | None = None
) -> PretrainedWeights | None:
    """Read the weights for `--weights`; return None for `none`.

    Args:
        source: `auto`, `imagenet`, `builtin` (edgetl's own, without a classification layer), `none`, a
            .safetensors, .pth or .pt file, or a folder with <architecture>.safetensors.
        architecture: name of the model.
        image_size: side of the input, pixels, for models that depend on it; None uses the
            architecture's default.

    Raises:
        WeightsError: the weights are missing, unreachable, damaged or altered, or a pickle contains
            more than tensors.
    """
    if source == "none":
        return None
    if source == "builtin":
        return read_weights_file(find_builtin_weights(architecture), source, architecture)
    if source == "imagenet":
        return source_for(architecture).read_imagenet_weights(architecture)
    if source == "auto":
        model_source = source_for(architecture)
        size = image_size or model_source.default_preprocessing(architecture).crop
        return model_source.read_default_weights(architecture, size)
    path = _find_file(Path(source).expanduser(), architecture)
    return read_weights_file(path, str(path), architecture)


def load_pretrained_weights(
    model: nn.Module, weights: PretrainedWeights, architecture: str, replaced: str | None = None
) -> None:
    """Copy weights into a stock model after its source has adapted their names and shapes.

    For the arguments and errors see `load_weights`.
    """
    tensors = source_for(architecture).adapt_tensors(model, weights.tensors, architecture)
    load_weights(model, replace(weights, tensors=tensors), architecture, replaced)


def load_weights(
    model: nn.Module, weights: PretrainedWeights, architecture: str, replaced: str | None = None
) -> None:
    """Copy weights into a model of the same names and shapes, with a check of every tensor.

    Args:
        model: the model.
        weights: the weights.
        architecture: name of the model for messages.
        replaced: path of a classification layer that will be replaced: its tensors may be missing
            or of any shape.

    Raises:
        WeightsError: tensors are missing, unexpected, of another shape or type, or not finite; the
            message lists a few of them.
    """
    tensors = weights.tensors
    targets = model.state_dict()
    mismatches = _describe_mismatches(tensors, targets, replaced)
    if mismatches:
        raise WeightsError(
            f"{weights.source} does not fit {architecture}: {'; '.join(mismatches)}. "
            "Use the {model} of these weights, or other {weights}.",
            FinetuneConfig,
        )
    matching = {
        name: tensor
        for name, tensor in tensors.items()
        if name in targets
        and tensor.shape == targets[name].shape
        and _has_compatible_dtype(tensor, targets[name])
    }
    not_finite = [
        name
        for name, tensor in matching.items()
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all())
    ]
    if not_finite:
        raise WeightsError(
            f"{weights.source} has values that are not finite: "
            f"{list_names('tensors', not_finite)}. Download the file again."
        )
    with torch.no_grad():
        for name, tensor in matching.items():
            targets[name].copy_(tensor)


def _describe_mismatches(
    tensors: dict[str, Tensor], targets: dict[str, Tensor], replaced: str | None
) -> list[str]:
    """Return a text per kind of mismatch between a state dict and the model's."""

    def is_optional(name: str) -> bool:
        return bool(_OPTIONAL_TENSORS.search(name)) or (
            replaced is not None and name.startswith(f"{replaced}.")
        )

    missing = [name for name in targets if name not in tensors and not is_optional(name)]
    unexpected = [name for name in tensors if name not in targets and not is_optional(name)]
    shared = [name for name in targets if name in tensors and not is_optional(name)]
    shapes = [
        f"{name} is {_shape_text(tensors[name])}, not {_shape_text(targets[name])}"
        for name in shared
        if tensors[name].shape != targets[name].shape
    ]
    dtypes = [
        f"{name} is {_dtype_text(tensors[name])}, not {_dtype_text(targets[name])}"
        for name in shared
        if not _has_compatible_dtype(tensors[name], targets[name])
    ]
    texts = [
        list_names("missing", missing),
        list_names("unexpected", unexpected),
        list_names("of another shape", shapes),
        list_names("of another type", dtypes),
    ]
    return [text for text in texts if text]


def _find_file(path: Path, architecture: str) -> Path:
    if path.is_dir():
        file = path / f"{file_stem(architecture)}.safetensors"
        if not file.is_file():
            names = sorted(entry.name for entry in path.glob("*.safetensors"))
            raise WeightsError(
                f"The folder {path} has no {file.name}; "
                f"it has: {', '.join(names[:8]) or 'no .safetensors file'}. "
                "Use a file, or choose another {model}.",
                FinetuneConfig,
            )
        return file
    if not path.is_file():
        raise WeightsError(
            f"No weights at {path}. {{weights}} takes `auto`, `imagenet`, `builtin`, "
            "`none`, a .safetensors or .pth file, or a folder with such files.",
            FinetuneConfig,
        )
    return path


def _has_compatible_dtype(tensor: Tensor, target: Tensor) -> bool:
    # copy_ would silently convert integers and complex numbers to meaningless weights.
    allowed = _FLOAT_DTYPES if target.is_floating_point() else _INTEGER_DTYPES
    return tensor.dtype in allowed


def _dtype_text(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _shape_text(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a scalar"

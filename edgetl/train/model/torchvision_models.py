"""torchvision classifiers: building for an input size, description and preprocessing."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torchvision
from torch import nn
from torch.overrides import TorchFunctionMode

from edgetl.core.architectures import Architecture, load_architectures
from edgetl.core.config.finetune import FinetuneConfig
from edgetl.core.errors import ArchitectureError
from edgetl.core.preprocessing import Preprocessing
from edgetl.train.model.blocks import count_last_blocks, find_blocks
from edgetl.train.model.head import find_classifier_layer


def check_architecture(architecture: str) -> None:
    """Check that torchvision has a classifier of this name.

    Raises:
        ArchitectureError: it has none; the message suggests similar names.
    """
    names: list[str] = torchvision.models.list_models(module=torchvision.models)
    if architecture not in names:
        matches = difflib.get_close_matches(architecture, names, n=3, cutoff=0.5)
        hint = f" Did you mean {' or '.join(matches)}?" if matches else ""
        raise ArchitectureError(
            f"torchvision has no classifier {architecture!r}.{hint} `edgetl models` lists them all."
        )


def build_model(architecture: str, image_size: int, initialize: bool = True) -> nn.Module:
    """Build a stock model [batch, 3, image_size, image_size] -> [batch, 1000] on the CPU.

    It has no auxiliary classifiers.

    Args:
        architecture: torchvision's name.
        image_size: side of the input, pixels.
        initialize: False skips slow random initialization, if the architecture allows it, because
            weights are loaded next.

    Raises:
        ArchitectureError: the name is unknown, or the architecture does not support this size.
    """
    check_architecture(architecture)
    builder = torchvision.models.get_model_builder(architecture)
    options = _builder_options(architecture_family(builder), image_size, initialize)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            model: nn.Module = builder(weights=None, **options)
    except (ValueError, AssertionError) as cause:
        raise _image_size_error(architecture, image_size, cause) from cause
    return model.eval()


def build_meta_model(architecture: str, image_size: int) -> nn.Module:
    """Build a stock model on the meta device (shapes without memory) and check the input size.

    Raises:
        ArchitectureError: the name is unknown, or the architecture does not support this size.
    """
    with _MetaParameterMode():
        model = build_model(architecture, image_size)
    model.to("meta")
    try:
        with torch.no_grad():
            model(torch.empty(2, 3, image_size, image_size, device="meta"))
    except (RuntimeError, ValueError, AssertionError) as cause:
        raise _image_size_error(architecture, image_size, cause) from cause
    return model


class _MetaParameterMode(TorchFunctionMode):
    # `with torch.device("meta")` would also move the tensors from which RegNet computes its widths.
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Any = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        options = dict(kwargs or {})
        if func is torch.empty:
            options["device"] = "meta"
        return func(*args, **options)


def _builder_options(family: str, image_size: int, initialize: bool) -> dict[str, object]:
    if family in ("googlenet", "inception"):
        # Their weights come from TensorFlow and expect its scaling of the input.
        return {"aux_logits": False, "transform_input": True, "init_weights": initialize}
    if family == "vgg":
        return {"init_weights": initialize}
    if family == "vision_transformer":
        return {"image_size": image_size}
    if family == "maxvit":
        return {"input_size": (image_size, image_size)}
    return {}


def _image_size_error(architecture: str, image_size: int, cause: Exception) -> ArchitectureError:
    row = load_architectures().get(architecture)
    hint = "Choose another {image_size}."
    if row:
        hint = f"Its usual {{image_size}} is {row.image_size}."
    lines = str(cause).strip().splitlines()
    reason = lines[0] if lines else type(cause).__name__
    return ArchitectureError(
        f"{architecture} does not take images of {image_size} pixels: {reason.rstrip('.')}. {hint}",
        FinetuneConfig,
    )


def architecture_family(builder: Callable[..., nn.Module]) -> str:
    """Return the name of the torchvision module that defines a builder."""
    return builder.__module__.rpartition(".")[2]


def default_preprocessing(architecture: str) -> Preprocessing:
    """Return the preprocessing used to evaluate torchvision's default weights."""
    transforms = torchvision.models.get_model_weights(architecture).DEFAULT.transforms()
    crop = transforms.crop_size[0]
    resize = transforms.resize_size[0]
    return Preprocessing(max(resize, crop), crop, tuple(transforms.mean), tuple(transforms.std))


def preprocessing_for(architecture: str, image_size: int | None) -> Preprocessing:
    """Return preprocessing for a size, with the usual resize : crop ratio of 256 : 224.

    Args:
        architecture: gives the normalization, that of its default weights.
        image_size: side of the crop, pixels; None uses the architecture's default.
    """
    default = default_preprocessing(architecture)
    sizes = Preprocessing.for_image_size(image_size or default.crop)
    return Preprocessing(sizes.resize, sizes.crop, default.mean, default.std)


def describe_architecture(architecture: str) -> Architecture:
    """Compute the architecture table's row from the torchvision model.

    Raises:
        ArchitectureError: the name is unknown, or the classification layer cannot be found.
    """
    check_architecture(architecture)
    image_size = default_preprocessing(architecture).crop
    skeleton = build_meta_model(architecture, image_size)
    layer = find_classifier_layer(skeleton, image_size, architecture)
    blocks = find_blocks(skeleton, layer.path)
    return Architecture(
        name=architecture,
        family=architecture_family(torchvision.models.get_model_builder(architecture)),
        parameters=sum(parameter.numel() for parameter in skeleton.parameters()),
        image_size=image_size,
        head=layer.path,
        head_kind=layer.kind,
        blocks=len(blocks),
        unfreeze=count_last_blocks(skeleton, blocks),
    )


def get_architecture(architecture: str) -> Architecture:
    """Return the table's row, or compute it if the table lacks the architecture.

    Raises:
        ArchitectureError: see `describe_architecture`.
    """
    check_architecture(architecture)
    return load_architectures().get(architecture) or describe_architecture(architecture)

"""Stock architectures of any source: building for an input size, description, preprocessing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from edgetl.core.architectures import Architecture, find_architecture
from edgetl.core.config.finetune import FinetuneConfig, InterpolationChoice
from edgetl.core.errors import ArchitectureError
from edgetl.core.preprocessing import Preprocessing
from edgetl.train.model.blocks import count_last_blocks, find_blocks
from edgetl.train.model.head import ClassifierLayer, find_classifier_layer
from edgetl.train.model.sources.base import source_for


def check_architecture(architecture: str) -> None:
    """Check that its source has an architecture.

    Raises:
        ArchitectureError: it has none of this name; the message suggests similar names.
        MissingPackageError: the source needs a package that is not installed.
    """
    source_for(architecture).check_name(architecture)


def build_model(architecture: str, image_size: int, initialize: bool = True) -> nn.Module:
    """Build a stock model [batch, 3, image_size, image_size] -> [batch, classes] on the CPU.

    It has no auxiliary classifiers.

    Args:
        architecture: name of the architecture.
        image_size: side of the input, pixels.
        initialize: False skips slow random initialization, if the architecture allows it, because
            weights are loaded next.

    Raises:
        ArchitectureError: the name is unknown, or the architecture does not support this size.
    """
    source = source_for(architecture)
    source.check_name(architecture)
    try:
        return source.build(architecture, image_size, initialize).eval()
    except (ValueError, AssertionError) as cause:
        raise _image_size_error(architecture, image_size, cause) from cause


def build_meta_model(architecture: str, image_size: int) -> nn.Module:
    """Build a stock model on the meta device (shapes without memory) and check the input size.

    A model whose source does not support that device is built on the CPU.

    Raises:
        ArchitectureError: the name is unknown, or the architecture does not support this size.
    """
    if not source_for(architecture).runs_on_meta_device:
        with torch.random.fork_rng(devices=[]):
            return build_model(architecture, image_size)
    with _MetaParameterMode():
        model = build_model(architecture, image_size)
    model.to("meta")
    try:
        with torch.no_grad():
            model(torch.empty(2, 3, image_size, image_size, device="meta"))
    except (RuntimeError, ValueError, AssertionError) as cause:
        raise _image_size_error(architecture, image_size, cause) from cause
    return model


@lru_cache(maxsize=256)
def find_stock_classifier(architecture: str, image_size: int) -> ClassifierLayer:
    """Find the classification layer of a stock model.

    Raises:
        ArchitectureError: the name is unknown, or the architecture does not support this size or a
            new head.
    """
    # Cached, because three passes on the meta device take up to a second, and an experiment builds
    # the same architecture many times.
    skeleton = build_meta_model(architecture, image_size)
    return find_classifier_layer(skeleton, image_size, architecture)


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


def _image_size_error(architecture: str, image_size: int, cause: Exception) -> ArchitectureError:
    row = find_architecture(architecture)
    hint = "Choose another {image_size}."
    if row:
        hint = f"Its usual {{image_size}} is {row.image_size}."
    lines = str(cause).strip().splitlines()
    reason = lines[0] if lines else type(cause).__name__
    return ArchitectureError(
        f"{architecture} does not take images of {image_size} pixels: {reason.rstrip('.')}. {hint}",
        FinetuneConfig,
    )


def preprocessing_for(
    architecture: str, image_size: int | None, interpolation: InterpolationChoice = "auto"
) -> Preprocessing:
    """Return preprocessing for a size, with the usual resize : crop ratio of 256 : 224.

    Args:
        architecture: gives the normalization, that of its default weights.
        image_size: side of the crop, pixels; None uses the architecture's default.
        interpolation: of the resize; `auto` uses that of the architecture's default weights.
    """
    default = source_for(architecture).default_preprocessing(architecture)
    sizes = Preprocessing.for_image_size(image_size or default.crop)
    if interpolation == "auto":
        interpolation = default.interpolation
    return replace(sizes, mean=default.mean, std=default.std, interpolation=interpolation)


def describe_architecture(architecture: str, image_size: int | None = None) -> Architecture:
    """Compute the architecture table's row from the model.

    Args:
        architecture: name of the architecture.
        image_size: side of the input, pixels; None uses the architecture's default.

    Raises:
        ArchitectureError: the name is unknown, or the classification layer cannot be found.
    """
    check_architecture(architecture)
    source = source_for(architecture)
    image_size = image_size or source.default_preprocessing(architecture).crop
    skeleton = build_meta_model(architecture, image_size)
    layer = find_classifier_layer(skeleton, image_size, architecture)
    blocks = find_blocks(skeleton, layer.path)
    return Architecture(
        name=architecture,
        family=source.family(architecture),
        parameters=sum(parameter.numel() for parameter in skeleton.parameters()),
        image_size=image_size,
        head=layer.path,
        head_kind=layer.kind,
        blocks=len(blocks),
        unfreeze=count_last_blocks(skeleton, blocks),
    )


def get_architecture(architecture: str, image_size: int | None = None) -> Architecture:
    """Return the table's row, or compute it if the table lacks the architecture.

    Args:
        architecture: name of the architecture.
        image_size: size for which a missing row is computed, see `describe_architecture`.

    Raises:
        ArchitectureError: see `describe_architecture`.
    """
    check_architecture(architecture)
    return find_architecture(architecture) or describe_architecture(architecture, image_size)

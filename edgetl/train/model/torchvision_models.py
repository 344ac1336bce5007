"""torchvision's classifiers: built for a given input size, with or without weights, and described."""

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
from edgetl.core.errors import ArchitectureError
from edgetl.core.preprocessing import Preprocessing
from edgetl.train.model.blocks import count_last_blocks, find_blocks
from edgetl.train.model.head import find_classifier_layer


def check_architecture(architecture: str) -> None:
    """Raise ArchitectureError, with the nearest names, unless torchvision has a classifier of this name."""
    known: list[str] = torchvision.models.list_models(module=torchvision.models)
    if architecture not in known:
        near = difflib.get_close_matches(architecture, known, n=3, cutoff=0.5)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise ArchitectureError(
            f"torchvision has no classifier {architecture!r}.{hint} `edgetl models` lists them all."
        )


def build_model(architecture: str, image_size: int, initialise: bool = True) -> nn.Module:
    """The stock network [batch, 3, image_size, image_size] -> [batch, 1000], on the CPU, without auxiliary classifiers.

    Args:
        initialise: False skips slow random initialisation where the architecture allows; for weights that are loaded next.

    Raises:
        ArchitectureError: the name is unknown, or the architecture cannot take this size.
    """
    check_architecture(architecture)
    builder = torchvision.models.get_model_builder(architecture)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            network: nn.Module = builder(
                weights=None,
                **_builder_options(architecture_family(builder), image_size, initialise),
            )
    except (ValueError, AssertionError) as cause:
        raise _image_size_error(architecture, image_size, cause) from cause
    return network.eval()


def build_meta_model(architecture: str, image_size: int) -> nn.Module:
    """As `build_network`, but on the meta device: every shape, no memory. The input size is tried out.

    Raises:
        ArchitectureError: the name is unknown, or the architecture cannot take this size.
    """
    with _MetaParameterMode():
        network = build_model(architecture, image_size)
    network.to("meta")
    try:
        with torch.no_grad():
            network(torch.empty(2, 3, image_size, image_size, device="meta"))
    except (RuntimeError, ValueError, AssertionError) as cause:
        raise _image_size_error(architecture, image_size, cause) from cause
    return network


class _MetaParameterMode(TorchFunctionMode):
    # `with torch.device("meta")` would also move the small tensors that RegNet computes its widths from.
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Any = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        return func(
            *args, **{**(kwargs or {}), **({"device": "meta"} if func is torch.empty else {})}
        )


def _builder_options(family: str, image_size: int, initialise: bool) -> dict[str, Any]:
    if family in ("googlenet", "inception"):
        # transform_input: torchvision's weights of both come from TensorFlow and expect its scaling of the input.
        return {"aux_logits": False, "transform_input": True, "init_weights": initialise}
    if family == "vgg":
        return {"init_weights": initialise}
    if family == "vision_transformer":
        return {"image_size": image_size}
    if family == "maxvit":
        return {"input_size": (image_size, image_size)}
    return {}


def _image_size_error(architecture: str, image_size: int, cause: Exception) -> ArchitectureError:
    known = load_architectures().get(architecture)
    usual = (
        f" Its usual --image-size is {known.image_size}."
        if known
        else " Choose another --image-size."
    )
    reason = str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__
    return ArchitectureError(
        f"{architecture} does not take images of {image_size} pixels: {reason.rstrip('.')}.{usual}"
    )


def architecture_family(builder: Callable[..., nn.Module]) -> str:
    """The torchvision module that a builder comes from."""
    return builder.__module__.rpartition(".")[2]


def default_preprocessing(architecture: str) -> Preprocessing:
    """The sizes and the normalisation that torchvision's default weights were evaluated with."""
    transforms = torchvision.models.get_model_weights(architecture).DEFAULT.transforms()
    crop, resize = transforms.crop_size[0], transforms.resize_size[0]
    return Preprocessing(max(resize, crop), crop, tuple(transforms.mean), tuple(transforms.std))


def preprocessing_for(architecture: str, image_size: int | None) -> Preprocessing:
    """The classic ratio 256 : 224 at `image_size` (None: the architecture's own), normalised as its default weights were."""
    usual = default_preprocessing(architecture)
    sizes = Preprocessing.for_image_size(image_size or usual.crop)
    return Preprocessing(sizes.resize, sizes.crop, usual.mean, usual.std)


def describe_architecture(architecture: str) -> Architecture:
    """The table's row of an architecture, computed from torchvision itself.

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
    """The table's row, or a fresh description for what the table does not know.

    Raises:
        ArchitectureError: see `describe`.
    """
    check_architecture(architecture)
    return load_architectures().get(architecture) or describe_architecture(architecture)

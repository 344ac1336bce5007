"""Models of the user's own: functions that return a module, named `module:function`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NoReturn

import torch
from torch import Tensor, nn

from edgetl.core.config.finetune import FinetuneConfig
from edgetl.core.errors import ArchitectureError, EdgetlError, WeightsError
from edgetl.core.preprocessing import Preprocessing
from edgetl.train.model.freezing import tensor_digest
from edgetl.train.model.model_code import import_module, user_error
from edgetl.train.model.sources.base import (
    ArchitectureSource,
    append_classifier,
    hint_similar_names,
)
from edgetl.train.model.weights_file import PretrainedWeights

AS_BUILT = "as built"
"""Recorded source of the weights that a function has set itself."""
_CLASSES, _OTHER_CLASSES = 1000, 7
"""Numbers of classes for which a function is called; two, to tell logits from features."""
_IMAGE_SIZE = 224


class PythonModels(ArchitectureSource):
    """Functions that take the number of classes and return a module.

    The module maps float32 images [batch, 3, S, S] to logits [batch, classes], or to features
    [batch, F], to which a linear layer is appended.
    """

    runs_on_meta_device = False

    def check_name(self, name: str) -> None:
        """Check that the module can be imported and has the function."""
        _load_function(name)

    def build(self, name: str, image_size: int, initialize: bool = True) -> nn.Module:
        """Call the function for 1000 classes and check its model on two images."""
        model = _call(name, _CLASSES)
        width = _run(name, model, image_size).shape[1]
        if _returns_logits(name, image_size):
            return model
        return append_classifier(model, width, _CLASSES)

    def family(self, name: str) -> str:
        """Return the name of the module."""
        return name.partition(":")[0]

    def default_preprocessing(self, name: str) -> Preprocessing:
        """Return ImageNet's normalization at 224 pixels."""
        return Preprocessing.for_image_size(_IMAGE_SIZE)

    def read_imagenet_weights(self, name: str) -> NoReturn:
        """Raise an error, because only the user knows where weights of the model are."""
        raise WeightsError(
            f"There are no ImageNet weights of {name}. Use {{weights}} auto for the values that it "
            "returns, none for random values, or a file.",
            FinetuneConfig,
        )

    def adapt_tensors(
        self, model: nn.Module, tensors: dict[str, Tensor], name: str
    ) -> dict[str, Tensor]:
        """Add the prefix that the user's module has beside an appended linear layer."""
        is_wrapped = [child for child, _ in model.named_children()] == ["backbone", "head"]
        if not is_wrapped or any(key.startswith("backbone.") for key in tensors):
            return tensors
        return {f"backbone.{key}": tensor for key, tensor in tensors.items()}

    def read_default_weights(self, name: str, image_size: int) -> PretrainedWeights:
        """Return the values that the function sets; random ones do not depend on the run's seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            tensors = self.build(name, image_size).state_dict()
        digests = "\n".join(f"{key} {tensor_digest(value)}" for key, value in tensors.items())
        return PretrainedWeights(tensors, AS_BUILT, hashlib.sha256(digests.encode()).hexdigest())

    def labels(self, name: str) -> Sequence[str]:
        """Raise an error, because only training gives the classes of the model."""
        raise WeightsError(
            f"The labels of {name} are not known. Train it with `edgetl finetune`, and export the run."
        )

    def imagenet_top1(self, name: str) -> None:
        """Return None."""


def _load_function(name: str) -> Callable[[int], object]:
    module_name, _, function_name = name.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), function_name)):
        raise ArchitectureError(
            f"{{model}} {name!r} is not the name of a function. Write it as "
            "my_package.my_module:my_function.",
            FinetuneConfig,
        )
    module = import_module(module_name)
    function = getattr(module, function_name, None)
    if function is None:
        hint = hint_similar_names(function_name, vars(module))
        raise ArchitectureError(f"{module.__file__} has no function {function_name}.{hint}")
    if not callable(function):
        raise ArchitectureError(
            f"{name} is a {type(function).__name__}, not a function. Use a function that takes the "
            "number of classes and returns a torch.nn.Module."
        )
    call: Callable[[int], object] = function
    return call


def _call(name: str, classes: int) -> nn.Module:
    function = _load_function(name)
    try:
        model = function(classes)
    except EdgetlError:
        raise
    except Exception as cause:
        raise user_error(f"{name}({classes})", cause) from cause
    if not isinstance(model, nn.Module):
        raise ArchitectureError(
            f"{name}({classes}) must return a torch.nn.Module, got {type(model).__name__}. "
            "Return the model, not its weights or a class."
        )
    return model.to("cpu", torch.float32).eval()


def _run(name: str, model: nn.Module, image_size: int) -> Tensor:
    """Run a model on two images and return its output [2, N]."""
    output = _compute_output(name, model, image_size)
    if not isinstance(output, Tensor) or output.dim() != 2 or len(output) != 2:
        hint = ""
        if isinstance(output, Tensor) and output.dim() == 4:
            hint = " Add a global average pooling and nn.Flatten."
        raise ArchitectureError(
            f"The model of {name} must return one tensor, logits [batch, classes] or features "
            f"[batch, F], but for 2 images it returns {_describe(output)}.{hint}"
        )
    return output


def _compute_output(name: str, model: nn.Module, image_size: int) -> object:
    images = torch.randn(2, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    try:
        with torch.no_grad():
            return model(images)
    except Exception as cause:
        error = user_error(f"The model of {name} on images of {image_size} pixels", cause)
        raise ArchitectureError(
            f"{str(error).rstrip('.')}. Correct it, or choose another {{image_size}}.",
            FinetuneConfig,
        ) from cause


def _describe(output: object) -> str:
    if isinstance(output, Tensor):
        return f"a tensor of shape {list(output.shape)}"
    if isinstance(output, tuple | list):
        return f"a {type(output).__name__} of {len(output)}"
    return f"an object of type {type(output).__name__}"


@lru_cache(maxsize=256)
def _returns_logits(name: str, image_size: int) -> bool:
    """Return whether a model returns logits, and not features, from its two output widths."""
    # The probe must not change the random values of the model that is trained.
    with torch.random.fork_rng(devices=[]):
        model, other = _call(name, _CLASSES), _call(name, _OTHER_CLASSES)
        if model is other:
            raise ArchitectureError(f"{name} must return a new model for each call.")
        other_output = _run(name, other, image_size)
        width, other_width = _run(name, model, image_size).shape[1], other_output.shape[1]
        if width == other_width:
            return False
        if (width, other_width) != (_CLASSES, _OTHER_CLASSES):
            raise ArchitectureError(
                f"The model of {name} must return as many logits as classes, or features of one "
                f"width, but for {_CLASSES} and {_OTHER_CLASSES} classes it returns {width} and "
                f"{other_width} values."
            )
        _check_not_probabilities(name, other_output)
    return True


def _check_not_probabilities(name: str, output: Tensor) -> None:
    sums_to_1 = torch.allclose(output.sum(dim=1), torch.ones(len(output)), atol=1e-4)
    if sums_to_1 and bool((output >= 0).all()):
        raise ArchitectureError(
            f"The model of {name} must return logits, but it returns probabilities. "
            "Remove the softmax; the loss and the exported file contain it."
        )

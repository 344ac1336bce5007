"""Classifiers of timm, named `timm:NAME` or `timm:NAME.TAG` (TAG selects the pretrained weights)."""

from __future__ import annotations

import difflib
import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import PretrainedCfg
from torch import Tensor, nn

from edgetl.core.config.finetune import FinetuneConfig
from edgetl.core.errors import ArchitectureError, WeightsError
from edgetl.core.preprocessing import Interpolation, Preprocessing
from edgetl.core.registry import convert_import_error
from edgetl.train.model.head import find_classifier_layer
from edgetl.train.model.sources.base import ArchitectureSource, append_classifier
from edgetl.train.model.sources.torchvision import imagenet_labels
from edgetl.train.model.weights_file import (
    PretrainedWeights,
    download_error,
    download_weights,
    read_weights_file,
)

_IMAGENET_CLASSES = 1000
_HUB_FILE = "model.safetensors"


class TimmModels(ArchitectureSource):
    """The models of `timm.list_models()`."""

    def check_name(self, name: str) -> None:
        """Check that timm has the architecture, and weights of the tag if the name has one."""
        architecture, _, tag = _timm_name(name).partition(".")
        names = timm.list_models()
        if architecture not in names:
            matches = difflib.get_close_matches(architecture, names, n=3, cutoff=0)
            raise ArchitectureError(
                f"timm {timm.__version__} has no model {architecture!r}. Did you mean "
                f"{_list_names(matches)}? `edgetl models --source timm` lists those that were tested."
            )
        tagged = timm.list_pretrained(f"{architecture}.*")
        if tag and f"{architecture}.{tag}" not in tagged:
            raise ArchitectureError(
                f"timm {timm.__version__} has no weights {tag!r} of {architecture}. Use "
                f"{_list_names(tagged or [architecture])}."
            )

    def build(self, name: str, image_size: int, initialize: bool = True) -> nn.Module:
        """Build a model with the classes of its weights.

        Its head is one layer in any case: if timm's cannot be replaced, as that of a distilled
        model, which averages two layers, the features get a linear layer.
        """
        if _has_replaceable_head(name, image_size):
            return _create_model(name, image_size)
        backbone = _create_model(name, image_size, classes=0)
        width = _count_features(name, image_size)
        classes = _get_config(name).num_classes or _IMAGENET_CLASSES
        return append_classifier(backbone, width, classes)

    def family(self, name: str) -> str:
        """Return the name of the timm module that defines the architecture."""
        return timm.model_entrypoint(_timm_name(name)).__module__.rpartition(".")[2]

    def default_preprocessing(self, name: str) -> Preprocessing:
        """Return the preprocessing of the weights' configuration."""
        config = _get_config(name)
        crop = config.input_size[-1]
        mean, std = (_as_rgb(values) for values in (config.mean, config.std))
        interpolation: Interpolation = "bicubic"
        if config.interpolation == "bilinear":
            interpolation = "bilinear"
        return Preprocessing(math.floor(crop / config.crop_pct), crop, mean, std, interpolation)

    def read_imagenet_weights(self, name: str) -> PretrainedWeights:
        """Download the weights from the Hugging Face Hub, or from their URL, and cache them."""
        config = _get_config(name)
        if config.custom_load or not (config.hf_hub_id or config.url):
            raise WeightsError(
                f"timm {timm.__version__} has no weights of {name} that edgetl can read. "
                "Use {weights} FILE, or {weights} none.",
                FinetuneConfig,
            )
        if config.hf_hub_id:
            file = config.hf_hub_filename or _HUB_FILE
            weights = _download_from_hub(name, config.hf_hub_id, file)
        else:
            weights = download_weights(str(config.url), name)
        return replace(weights, license=config.license)

    def adapt_tensors(
        self, model: nn.Module, tensors: dict[str, Tensor], name: str
    ) -> dict[str, Tensor]:
        """Convert tensors of older files or other input sizes as timm does for its own weights."""
        timm_model, prefix = model, ""
        if isinstance(model, nn.Sequential) and hasattr(model, "backbone"):
            timm_model, prefix = model.get_submodule("backbone"), "backbone."
            if any(tensor_name.startswith(prefix) for tensor_name in tensors):
                return tensors
        targets = timm_model.state_dict()
        if any(
            target not in tensors or tensors[target].shape != value.shape
            for target, value in targets.items()
        ):
            tensors = _apply_timm_filter(timm_model, tensors)
        if not prefix:
            return tensors
        replaced = _list_head_tensors(name) - targets.keys()
        return {
            f"{prefix}{tensor_name}": tensor
            for tensor_name, tensor in tensors.items()
            if tensor_name not in replaced
        }

    def labels(self, name: str) -> Sequence[str]:
        """Return the 1000 labels of ImageNet, which are in torchvision's order."""
        config = _get_config(name)
        problem = ""
        if config.num_classes != _IMAGENET_CLASSES:
            problem = f"it has {config.num_classes} classes, whose labels edgetl does not know"
        elif not _has_replaceable_head(name, config.input_size[-1]):
            problem = "its logits do not come from one classification layer"
        if problem:
            raise WeightsError(
                f"{name} cannot be exported as it is: {problem}. Fine-tune it with "
                "`edgetl finetune`, and export the run."
            )
        return imagenet_labels()

    def imagenet_top1(self, name: str) -> None:
        """Return None: timm's package contains no accuracies."""


def _list_names(timm_names: Sequence[str]) -> str:
    *others, last = (f"timm:{name}" for name in timm_names)
    return f"{', '.join(others)} or {last}" if others else last


def _timm_name(name: str) -> str:
    return name.partition(":")[2]


def _get_config(name: str) -> PretrainedCfg:
    return timm.get_pretrained_cfg(_timm_name(name)) or PretrainedCfg()


def _as_rgb(values: Sequence[float]) -> tuple[float, float, float]:
    red, green, blue = values
    return red, green, blue


def _create_model(name: str, image_size: int, classes: int | None = None) -> nn.Module:
    config = _get_config(name)
    options: dict[str, Any] = {} if classes is None else {"num_classes": classes}
    if config.fixed_input_size and image_size != config.input_size[-1]:
        options["img_size"] = image_size
    try:
        return timm.create_model(_timm_name(name), exportable=True, **options).eval()
    except TypeError as cause:
        if "img_size" not in str(cause):
            raise
        raise _fixed_size_error(name) from cause


def _fixed_size_error(name: str) -> ValueError:
    return ValueError(f"it needs images of {_get_config(name).input_size[-1]} pixels")


def _create_meta_model(name: str, image_size: int, classes: int | None = None) -> nn.Module:
    with torch.device("meta"):
        return _create_model(name, image_size, classes)


# Cached, because an experiment builds the same architecture many times.
@lru_cache(maxsize=256)
def _has_replaceable_head(name: str, image_size: int) -> bool:
    try:
        find_classifier_layer(_create_meta_model(name, image_size), image_size, name)
    except ArchitectureError:
        return False
    except RuntimeError as cause:
        config = _get_config(name)
        if config.fixed_input_size and image_size != config.input_size[-1]:
            raise _fixed_size_error(name) from cause
        raise ValueError(str(cause)) from cause
    return True


@lru_cache(maxsize=256)
def _count_features(name: str, image_size: int) -> int:
    with torch.no_grad():
        model = _create_meta_model(name, image_size, classes=0)
        features: object = model(torch.empty(2, 3, image_size, image_size, device="meta"))
    if not isinstance(features, Tensor) or features.dim() != 2:
        output = type(features).__name__
        if isinstance(features, Tensor):
            output = f"a tensor of shape {['batch', *features.shape[1:]]}"
        raise ArchitectureError(
            f"{name} cannot be fine-tuned: it returns {output}, neither logits [batch, classes] "
            "nor features [batch, F]. Choose another {model}; `edgetl models --source timm` lists "
            "those that were tested.",
            FinetuneConfig,
        )
    return features.shape[1]


def _list_head_tensors(name: str) -> set[str]:
    """Return the names of the model's tensors in timm, with its head."""
    return set(_create_meta_model(name, _get_config(name).input_size[-1]).state_dict())


def _apply_timm_filter(model: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    convert: Callable[[dict[str, Tensor], nn.Module], dict[str, Tensor]] | None = getattr(
        sys.modules[type(model).__module__], "checkpoint_filter_fn", None
    )
    if convert is None:
        return tensors
    try:
        return dict(convert(dict(tensors), model))
    except Exception:  # it expects a file of this model, and raises anything for another
        return tensors


def _download_from_hub(name: str, repository: str, file: str) -> PretrainedWeights:
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        from huggingface_hub import constants, hf_hub_download
    except ModuleNotFoundError as cause:
        raise convert_import_error(cause) from cause
    page = f"{constants.ENDPOINT}/{repository}"
    try:
        path = Path(hf_hub_download(repository, file))
    except Exception as cause:  # the hub's errors, its HTTP library's and the system's
        reason = cause.__cause__ if isinstance(cause.__cause__, Exception) else cause
        raise download_error(f"{page}/resolve/main/{file}", name, reason) from cause
    return read_weights_file(path, page, name)

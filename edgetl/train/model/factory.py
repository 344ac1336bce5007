"""Models for training and export: with a new head, from a run directory, or stock models."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from edgetl.core.artifacts.run_metrics import TrainedRun
from edgetl.core.config.finetune import FinetuneConfig
from edgetl.core.errors import RunError, WeightsError
from edgetl.core.preprocessing import Preprocessing
from edgetl.train.model.blocks import BackboneBlock, find_blocks
from edgetl.train.model.head import ClassifierLayer, replace_head
from edgetl.train.model.model_code import restore_code
from edgetl.train.model.sources.base import source_for
from edgetl.train.model.stock_models import (
    build_meta_model,
    build_model,
    find_stock_classifier,
    get_architecture,
    preprocessing_for,
)
from edgetl.train.model.weights import load_pretrained_weights, load_weights, read_weights
from edgetl.train.model.weights_file import PretrainedWeights


@dataclass(frozen=True)
class LoadedModel:
    """A classifier with its labels and preprocessing."""

    model: nn.Module
    """Model [batch, 3, S, S] -> logits [batch, classes], in float32 evaluation mode on the CPU."""
    labels: list[str]
    preprocessing: Preprocessing
    architecture: str
    run_id: str
    """First 12 hexadecimal digits of the SHA-256 of the weights file."""
    weights_source: str
    """Source of the pretrained weights: `builtin`, `none`, a package, or the name of a file."""
    weights_license: str | None
    """SPDX identifier of the pretrained weights' license, if their source states it."""


@dataclass(frozen=True)
class AdaptedModel:
    """A model with a new head, its classification layer and its blocks."""

    model: nn.Module
    classifier_layer: ClassifierLayer
    blocks: list[BackboneBlock]


def build_adapted_model(
    architecture: str,
    image_size: int,
    classes: int,
    head_width: int,
    dropout: float,
    weights: PretrainedWeights | None,
) -> AdaptedModel:
    """Build a stock model and replace its classification layer by a new head.

    Args:
        architecture: name of the architecture.
        image_size: side of the input, pixels.
        classes: number of classes.
        head_width: width of the head's hidden layer; 0 for a single layer.
        dropout: dropout rate of the head.
        weights: pretrained weights; None for random ones.

    Raises:
        ArchitectureError: the name is unknown, the size is not supported, or the head cannot be
            replaced.
        WeightsError: the weights do not fit.
    """
    layer = find_stock_classifier(architecture, image_size)
    model = build_model(architecture, image_size, initialize=weights is None)
    if weights is not None:
        load_pretrained_weights(model, weights, architecture, replaced=layer.path)
    replace_head(model, layer, classes, head_width, dropout)
    return AdaptedModel(model, layer, find_blocks(model, layer.path))


@lru_cache(maxsize=256)
def _check_image_size(architecture: str, image_size: int) -> None:
    build_meta_model(architecture, image_size)


def build_uninitialized_model(
    architecture: str, image_size: int, classes: int, head_width: int, dropout: float
) -> nn.Module:
    """Build a stock model with a new head, to load the weights of a run into it.

    It skips slow random initialization. For the arguments and errors see `build_adapted_model`.
    """
    model = build_model(architecture, image_size, initialize=False)
    layer = find_stock_classifier(architecture, image_size)
    replace_head(model, layer, classes, head_width, dropout)
    return model


def load_run_model(run: TrainedRun) -> LoadedModel:
    """Load the best epoch's model of a run; a run that was interrupted after an epoch loads too.

    Raises:
        RunError: the weights are damaged or do not match config.json, or the code of a model of
            the user's own is gone or was changed.
        ArchitectureError: the installed libraries lack the architecture.
    """
    configuration = run.configuration
    config = configuration.config
    labels = list(configuration.classes)
    preprocessing = configuration.preprocessing
    if configuration.code is not None:
        restore_code(configuration.code)
    model = build_uninitialized_model(
        config.model, preprocessing.crop, len(labels), config.head_width, config.dropout
    )
    file, digest = run.directory.weights, run.weights_sha256
    try:
        # Not load_state_dict: MNASNet's version needs metadata that safetensors does not store.
        load_weights(model, PretrainedWeights(load_file(file), str(file), digest), config.model)
    except (OSError, SafetensorError, WeightsError) as cause:
        raise RunError(
            f"The weights in {file} do not match config.json ({cause}). Run finetune again."
        ) from cause
    return LoadedModel(
        model.eval(),
        labels,
        preprocessing,
        config.model,
        digest[:12],
        Path(configuration.weights.source).name,
        configuration.weights.license,
    )


def load_stock_model(architecture: str, weights: str, image_size: int | None = None) -> LoadedModel:
    """Load a stock ImageNet classifier with its 1000 labels.

    Args:
        architecture: name of the architecture.
        weights: `imagenet` (those of its source, with the sizes used to evaluate them), or a file or
            folder as for `--weights`.
        image_size: side of the input, pixels; None uses the architecture's default.

    Raises:
        ArchitectureError: the name is unknown, or the architecture does not support this size.
        WeightsError: `none` or `builtin`, or the weights are unreachable, unsafe or do not fit 1000
            classes.
    """
    if weights == "builtin":
        raise WeightsError(
            "edgetl's builtin weights have no classification layer, so there is nothing to export. "
            "Train one first: edgetl finetune DATA --weights builtin."
        )
    size = image_size or get_architecture(architecture).image_size
    source = source_for(architecture)
    _check_image_size(architecture, size)
    labels = list(source.labels(architecture))
    pretrained = read_weights(weights, architecture)
    if pretrained is None:
        raise WeightsError(
            "Cannot export a model without weights. Use {weights} FILE or {weights} imagenet.",
            FinetuneConfig,
        )
    model = build_model(architecture, size, initialize=False)
    load_pretrained_weights(model, pretrained, architecture)
    if weights == "imagenet" and image_size is None:
        preprocessing = source.default_preprocessing(architecture)
    else:
        preprocessing = preprocessing_for(architecture, size)
    return LoadedModel(
        model.eval(),
        labels,
        preprocessing,
        architecture,
        pretrained.sha256[:12],
        Path(pretrained.source).name,
        pretrained.license,
    )

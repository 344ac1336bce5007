"""Whole models, from nothing, from a run directory or from torchvision: the networks that are trained, exported and measured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torchvision
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from edgetl.core.artifacts.run_config import read_run_configuration
from edgetl.core.errors import RunError, WeightsError
from edgetl.core.files import sha256_file
from edgetl.core.paths import RunDirectory
from edgetl.core.preprocessing import Preprocessing
from edgetl.train.model.blocks import BackboneBlock, find_blocks
from edgetl.train.model.final_model import check_model_unchanged
from edgetl.train.model.head import ClassifierLayer, find_classifier_layer, replace_head
from edgetl.train.model.torchvision_models import (
    build_meta_model,
    build_model,
    default_preprocessing,
    get_architecture,
    preprocessing_for,
)
from edgetl.train.model.weights import PretrainedWeights, load_weights, read_weights


@dataclass(frozen=True)
class LoadedModel:
    """A classifier with everything needed to feed it and read it."""

    model: nn.Module
    """Evaluation mode, CPU, float32: [batch, 3, S, S] to logits [batch, classes]."""
    labels: list[str]
    preprocessing: Preprocessing
    architecture: str
    run_id: str
    """First 12 hexadecimal digits of the weights file's SHA-256."""
    weights_source: str
    """What training began from: `builtin`, `none`, or the name of a weights file."""


@dataclass(frozen=True)
class AdaptedModel:
    """A network with a new head, and the structure that freezing needs."""

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
    initialise: bool = True,
) -> AdaptedModel:
    """A stock network with `weights` (None: random), its classification layer replaced by a new head for `classes`.

    Raises:
        ArchitectureError: unknown, cannot take images of this size, or cannot be given a new head.
        WeightsError: the weights do not fit.
    """
    skeleton = build_meta_model(architecture, image_size)
    layer = find_classifier_layer(skeleton, image_size, architecture)
    network = build_model(architecture, image_size, initialise and weights is None)
    if weights is not None:
        load_weights(network, weights, architecture, replaced=layer.path)
    replace_head(network, layer, classes, head_width, dropout)
    return AdaptedModel(network, layer, find_blocks(network, layer.path))


def load_run_model(run: RunDirectory) -> LoadedModel:
    """The model of a run, as its best epoch left it; a run that was interrupted after an epoch loads as well.

    Raises:
        RunError: config.json or weights.safetensors is missing, damaged, changed since the training, or they do not belong together.
        ArchitectureError: the installed torchvision no longer has the architecture.
    """
    configuration = read_run_configuration(run)
    config, labels, preprocessing = (
        configuration.config,
        list(configuration.classes),
        configuration.preprocessing,
    )
    architecture, weights_source = config.model, Path(configuration.weights.source).name
    network = build_adapted_model(
        architecture,
        preprocessing.crop,
        len(labels),
        config.head_width,
        config.dropout,
        None,
        initialise=False,
    ).model
    try:
        tensors, digest = load_file(run.weights), sha256_file(run.weights)
        check_model_unchanged(run, digest, labels, preprocessing)
        # Assigned by hand: MNASNet's own loading asks for metadata that safetensors does not carry.
        load_weights(network, PretrainedWeights(tensors, str(run.weights), digest), architecture)
    except (OSError, SafetensorError, WeightsError) as cause:
        raise RunError(
            f"{run.weights} does not hold the weights that config.json describes ({cause}). Run finetune again."
        ) from cause
    return LoadedModel(
        network.eval(), labels, preprocessing, architecture, digest[:12], weights_source
    )


def load_stock_model(architecture: str, weights: str, image_size: int | None = None) -> LoadedModel:
    """A stock ImageNet classifier with its 1000 labels.

    Args:
        weights: `imagenet` (torchvision's, with the sizes they were evaluated at) or a file or folder as `--weights` takes.
        image_size: side of the input, pixels; None takes the architecture's own.

    Raises:
        ArchitectureError: unknown, or it cannot take this size.
        WeightsError: `none`, `builtin`, unreachable, unsafe, or not a fit for 1000 classes.
    """
    if weights == "builtin":
        raise WeightsError(
            "edgetl's builtin weights are a backbone without a classification layer, so there is nothing to export yet. "
            "Train one first: edgetl finetune DATA --weights builtin."
        )
    size = image_size or get_architecture(architecture).image_size
    build_meta_model(architecture, size)
    pretrained = read_weights(weights, architecture)
    if pretrained is None:
        raise WeightsError(
            "A model without weights is not worth exporting. Give --weights FILE or --weights imagenet."
        )
    network = build_model(architecture, size, initialise=False)
    load_weights(network, pretrained, architecture)
    own_sizes = weights == "imagenet" and image_size is None
    preprocessing = (
        default_preprocessing(architecture) if own_sizes else preprocessing_for(architecture, size)
    )
    labels = list(torchvision.models.get_model_weights(architecture).DEFAULT.meta["categories"])
    return LoadedModel(
        network.eval(),
        labels,
        preprocessing,
        architecture,
        pretrained.sha256[:12],
        Path(pretrained.source).name,
    )

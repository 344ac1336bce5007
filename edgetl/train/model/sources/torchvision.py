"""Classifiers of torchvision."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torchvision
from torch import Tensor, nn

from edgetl.core.architectures import load_architectures
from edgetl.core.errors import ArchitectureError
from edgetl.core.preprocessing import Preprocessing
from edgetl.train.model.sources.base import ArchitectureSource, hint_similar_names
from edgetl.train.model.weights_file import PretrainedWeights, download_weights


class TorchvisionModels(ArchitectureSource):
    """The classifiers of `torchvision.models`, with their default weights."""

    def check_name(self, name: str) -> None:
        """Check that torchvision has a classifier of this name."""
        names: list[str] = torchvision.models.list_models(module=torchvision.models)
        if name not in names:
            candidates = sorted({*names, *load_architectures()})
            hint = hint_similar_names(name, candidates)
            raise ArchitectureError(
                f"torchvision has no classifier {name!r}.{hint} `edgetl models` lists them all."
            )

    def build(self, name: str, image_size: int, initialize: bool = True) -> nn.Module:
        """Build a stock model with 1000 classes."""
        builder = torchvision.models.get_model_builder(name)
        options = _builder_options(_family(builder), image_size, initialize)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            model: nn.Module = builder(weights=None, **options)
        return model

    def family(self, name: str) -> str:
        """Return the name of the torchvision module that defines the architecture."""
        return _family(torchvision.models.get_model_builder(name))

    def default_preprocessing(self, name: str) -> Preprocessing:
        """Return the preprocessing used to evaluate torchvision's default weights."""
        transforms = torchvision.models.get_model_weights(name).DEFAULT.transforms()
        crop = transforms.crop_size[0]
        resize = transforms.resize_size[0]
        return Preprocessing(
            max(resize, crop),
            crop,
            tuple(transforms.mean),
            tuple(transforms.std),
            transforms.interpolation.value,
        )

    def read_imagenet_weights(self, name: str) -> PretrainedWeights:
        """Download torchvision's default weights."""
        return download_weights(torchvision.models.get_model_weights(name).DEFAULT.url, name)

    def adapt_tensors(
        self, model: nn.Module, tensors: dict[str, Tensor], name: str
    ) -> dict[str, Tensor]:
        """Interpolate the position embeddings of a vision transformer to another input size."""
        return _resize_pos_embed(model, tensors)

    def labels(self, name: str) -> Sequence[str]:
        """Return the 1000 labels of ImageNet."""
        return imagenet_labels()

    def imagenet_top1(self, name: str) -> float | None:
        """Return torchvision's top-1 for its default weights."""
        meta = torchvision.models.get_model_weights(name).DEFAULT.meta
        top1 = meta.get("_metrics", {}).get("ImageNet-1K", {}).get("acc@1")
        return None if top1 is None else float(top1)


def imagenet_labels() -> list[str]:
    """Return the 1000 labels of ImageNet in the order of the logits of all usual classifiers."""
    labels: list[str] = torchvision.models.MobileNet_V2_Weights.DEFAULT.meta["categories"]
    return labels


def _family(builder: Callable[..., nn.Module]) -> str:
    return builder.__module__.rpartition(".")[2]


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


def _resize_pos_embed(model: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    # A vision transformer's position embeddings belong to one input size; torchvision interpolates
    # them to another.
    name = "encoder.pos_embedding"
    target = dict(model.named_parameters()).get(name)
    if (
        target is None
        or name not in tensors
        or target.shape == tensors[name].shape
        or target.shape[2:] != tensors[name].shape[2:]
    ):
        return tensors
    from torchvision.models.vision_transformer import interpolate_embeddings

    try:
        interpolated: dict[str, Tensor] = interpolate_embeddings(
            model.image_size, model.patch_size, dict(tensors)
        )
    except ValueError:
        return tensors
    return interpolated

"""Interface of the sources of architectures."""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from functools import cache

from torch import Tensor, nn

from edgetl.core.architectures import source_of
from edgetl.core.preprocessing import Preprocessing
from edgetl.core.registry import ARCHITECTURE_SOURCES, load_from_registry
from edgetl.train.model.weights_file import PretrainedWeights


class ArchitectureSource(ABC):
    """A library of ImageNet classifiers, or another place where models come from.

    `name` is always the full name of an architecture, as in `--model`.
    """

    runs_on_meta_device = True
    """Whether models can be built and run on the meta device, to find their layers."""

    @abstractmethod
    def check_name(self, name: str) -> None:
        """Check that the source has a classifier of this name.

        Raises:
            ArchitectureError: it has none; the message suggests similar names.
        """

    @abstractmethod
    def build(self, name: str, image_size: int, initialize: bool = True) -> nn.Module:
        """Build a model [batch, 3, image_size, image_size] -> [batch, classes] on the CPU.

        It has no auxiliary classifiers and is in evaluation mode. Its last layer is linear or a
        convolution, which is replaced by the head of the new classes.

        Args:
            name: name of the architecture, checked by `check_name`.
            image_size: side of the input, pixels.
            initialize: False skips slow random initialization, if the architecture allows it,
                because weights are loaded next.

        Raises:
            ValueError, AssertionError: the architecture does not support this size.
            ArchitectureError: the model cannot be built.
        """

    @abstractmethod
    def family(self, name: str) -> str:
        """Return the group of similar architectures to which `name` belongs."""

    @abstractmethod
    def default_preprocessing(self, name: str) -> Preprocessing:
        """Return the preprocessing used to evaluate the source's pretrained weights."""

    @abstractmethod
    def read_imagenet_weights(self, name: str) -> PretrainedWeights:
        """Read or download the source's pretrained weights.

        Raises:
            WeightsError: there are none, or they are unreachable or damaged.
        """

    def adapt_tensors(
        self, model: nn.Module, tensors: dict[str, Tensor], name: str
    ) -> dict[str, Tensor]:
        """Return the tensors of a file by the names and in the shapes of `model`, where possible."""
        return tensors

    def read_default_weights(self, name: str, image_size: int) -> PretrainedWeights:
        """Read the weights of `--weights auto`.

        Raises:
            WeightsError: see `read_imagenet_weights`.
        """
        return self.read_imagenet_weights(name)

    @abstractmethod
    def labels(self, name: str) -> Sequence[str]:
        """Return the labels of the pretrained weights in the order of the logits.

        Raises:
            WeightsError: they are not known.
        """

    @abstractmethod
    def imagenet_top1(self, name: str) -> float | None:
        """Return the published ImageNet top-1 accuracy in percent, or None if there is none."""


def hint_similar_names(name: str, names: Iterable[str]) -> str:
    """Return the sentence ` Did you mean ...?`, or an empty text if no name is similar."""
    matches = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    return f" Did you mean {' or '.join(matches)}?" if matches else ""


def append_classifier(backbone: nn.Module, width: int, classes: int) -> nn.Sequential:
    """Append a linear layer to a model [batch, 3, S, S] -> features [batch, width]."""
    return nn.Sequential(OrderedDict(backbone=backbone, head=nn.Linear(width, classes)))


@cache
def _load_source(source: str) -> ArchitectureSource:
    model_source: ArchitectureSource = load_from_registry(
        ARCHITECTURE_SOURCES, source, "model source"
    )()
    return model_source


def source_for(architecture: str) -> ArchitectureSource:
    """Return the source of an architecture.

    Raises:
        MissingPackageError: the source needs a package that is not installed.
    """
    return _load_source(source_of(architecture))

"""Feature cache: compute the frozen blocks' outputs for all views and validation images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from edgetl.core.cache import get_cache_folder
from edgetl.core.config.finetune import FinetuneConfig
from edgetl.core.preprocessing import Preprocessing
from edgetl.core.progress import TrainingProgress
from edgetl.train.common.distributed import SINGLE_PROCESS, DistributedGroup, Processes
from edgetl.train.common.precision import ComputeConfig, TensorFunction, Tensors
from edgetl.train.common.run_choices import RunChoices
from edgetl.train.data.loader import ImageLoader
from edgetl.train.features.extractor import ExtractorChoice, FeatureExtractor
from edgetl.train.features.partition import Cut
from edgetl.train.features.store import (
    Features,
    FeatureStore,
    TensorSpec,
    empty_features,
    hash_feature_key,
    tensor_specs,
)
from edgetl.train.model.factory import AdaptedModel

_IMAGE_BATCH_SIZE = 32
_FEATURE_BATCH_SIZE = 128


@dataclass(frozen=True)
class RunContext:
    """Everything that the phases of a run are built from."""

    config: FinetuneConfig
    batch_size: int
    """Images per step."""
    adapted_model: AdaptedModel
    loader: ImageLoader
    train_indices: Sequence[int]
    """Indices of the training images among the loader's."""
    val_indices: Sequence[int]
    preprocessing: Preprocessing
    compute_config: ComputeConfig
    feature_key: dict[str, Any]
    """Facts that features depend on besides the views: weights, images, transform."""
    cache_budget_bytes: int
    """Size limit of the feature cache."""
    deadline: float | None
    """End of the time budget, on the clock of time.perf_counter."""
    progress: TrainingProgress
    processes: Processes = SINGLE_PROCESS
    choices: RunChoices = field(default_factory=RunChoices)


@dataclass(frozen=True)
class FrozenBackbone:
    """The blocks before the earliest cut, with their extractors."""

    cut: Cut
    train_extractor: FeatureExtractor
    """Fastest extractor, for training images."""
    val_extractor: FeatureExtractor
    """float32 extractor, for validation images."""
    specs: tuple[TensorSpec, ...]
    """One spec per value that crosses the cut."""
    later_specs: tuple[TensorSpec, ...] = ()
    """Specs of the values at later cuts, which are cached as well."""

    def total_bytes(self, views: int, train: int, val: int) -> int:
        """Return the size of the cache for `views` views of `train` images and `val` images.

        Training values have the extractor's dtype, validation values are float32.
        """
        specs = (*self.specs, *self.later_specs)
        train_bytes = sum(spec.bytes_per_image for spec in specs)
        val_bytes = sum(4 * spec.bytes_per_image // spec.dtype.itemsize for spec in specs)
        return views * train * train_bytes + val * val_bytes


def view_numbers(views: int) -> list[int | None]:
    """Return the view keys.

    The first is the evaluation view, also used for training accuracy.
    """
    return [None, *range(1, views)]


class FeatureCache:
    """The feature store as used by one run."""

    def __init__(
        self, context: RunContext, first_cut: Cut, extractor_choice: ExtractorChoice
    ) -> None:
        """Open the store.

        The earliest cut and the runtimes of the extractors are part of every key.
        """
        self._context = context
        self._feature_key = {
            **context.feature_key,
            "base": first_cut.name,
            "runtimes": [extractor_choice.fast, extractor_choice.exact],
        }
        self._store = FeatureStore(
            get_cache_folder() / "activations",
            context.cache_budget_bytes,
            context.processes.local_group,
        )

    def find(self, cut: Cut, views: int) -> Features | None:
        """Return the features at `cut` that an earlier run has stored, or None."""
        return self._store.open(self._entry_key(cut, views))

    def fill(self, backbone: FrozenBackbone, views: int) -> Features:
        """Compute the features of every view and every validation image."""

        def compute(features: Features, group: DistributedGroup) -> None:
            _extract_from_images(features, backbone, self._context, group)

        return self._create_entry(backbone.cut, views, backbone.specs, compute)

    def fill_later_cut(
        self,
        cut: Cut,
        first_features: Features,
        train_function: TensorFunction,
        val_function: TensorFunction,
    ) -> Features:
        """Compute the features at a later cut from those at the first cut, batch by batch.

        Args:
            cut: the later cut.
            first_features: features at the first cut.
            train_function: maps training features from the first cut to `cut`.
            val_function: the same for validation features.
        """
        device = self._context.compute_config.device
        sample = (value[0, :2].to(device).float() for value in first_features.train)
        specs = tensor_specs(train_function(*sample))

        def compute(features: Features, group: DistributedGroup) -> None:
            for view in range(first_features.views):
                self._extract_in_batches(
                    train_function,
                    tuple(value[view] for value in first_features.train),
                    tuple(value[view] for value in features.train),
                    group,
                )
            self._extract_in_batches(val_function, first_features.val, features.val, group)

        return self._create_entry(cut, first_features.views, specs, compute)

    def _extract_in_batches(
        self, function: TensorFunction, values: Tensors, targets: Tensors, group: DistributedGroup
    ) -> None:
        device = self._context.compute_config.device
        starts = range(0, len(values[0]), _FEATURE_BATCH_SIZE)
        for index in group.shard(len(starts)):
            start = starts[index]
            batch = (
                value[start : start + _FEATURE_BATCH_SIZE].to(device).float() for value in values
            )
            _write_batch(function(*batch), targets, start)

    def _create_entry(
        self,
        cut: Cut,
        views: int,
        specs: Sequence[TensorSpec],
        compute: Callable[[Features, DistributedGroup], None],
    ) -> Features:
        train_shapes = [(views, len(self._context.train_indices))] * len(specs)
        val_shapes = [(len(self._context.val_indices),)] * len(specs)
        key = self._entry_key(cut, views)
        with ExitStack() as stack:
            try:
                entry = self._store.create(key, train_shapes, val_shapes, specs)
                features = stack.enter_context(entry)
                group: DistributedGroup = self._context.processes.local_group
            except OSError:
                # The folder is not writable or its disk is full. Keep the features in memory for
                # this run; every process computes all of them for itself.
                features = empty_features(train_shapes, val_shapes, specs)
                group = SINGLE_PROCESS
            compute(features, group)
        return self._store.open(key) or features

    def _entry_key(self, cut: Cut, views: int) -> str:
        return hash_feature_key({**self._feature_key, "cut": cut.name, "views": views})


def _extract_from_images(
    features: Features, backbone: FrozenBackbone, context: RunContext, group: DistributedGroup
) -> None:
    splits: list[tuple[FeatureExtractor, Tensors, Sequence[int], int | None]] = [
        (
            backbone.train_extractor,
            tuple(value[index] for value in features.train),
            context.train_indices,
            view,
        )
        for index, view in enumerate(view_numbers(features.views))
    ]
    splits.append((backbone.val_extractor, features.val, context.val_indices, None))
    batches = [
        (
            extractor,
            targets,
            [(view, index) for index in indices[start : start + _IMAGE_BATCH_SIZE]],
            start,
        )
        for extractor, targets, indices, view in splits
        for start in range(0, len(indices), _IMAGE_BATCH_SIZE)
    ]
    local_batches = [batches[index] for index in group.shard(len(batches))]
    local_keys = [keys for _, _, keys, _ in local_batches]
    total = sum(len(keys) for keys in local_keys)
    done = 0
    for (extractor, targets, _, start), (pixels, _) in zip(
        local_batches, context.loader(local_keys), strict=True
    ):
        inputs = context.compute_config.to_model_input(pixels, context.preprocessing)
        _write_batch(extractor(inputs), targets, start)
        done += len(pixels)
        context.progress.on_progress("running frozen blocks", done, total)


def _write_batch(values: Tensors, targets: Tensors, start: int) -> None:
    for value, target in zip(values, targets, strict=True):
        target[start : start + len(value)] = value.to(target.dtype)

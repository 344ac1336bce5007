"""The cache filled: every view of every training image, and the validation images, through the frozen blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from edgetl.core.cache import get_cache_folder
from edgetl.core.config.finetune import FinetuneConfig
from edgetl.core.preprocessing import Preprocessing
from edgetl.train.common.distributed import SINGLE_PROCESS, DistributedGroup, Processes
from edgetl.train.common.precision import ComputeConfig, TensorFunction, Tensors
from edgetl.train.common.progress import Progress
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

_IMAGE_BATCH_SIZE, _FEATURE_BATCH_SIZE = 32, 128


@dataclass(frozen=True)
class RunContext:
    """What the stages of a run are made from."""

    config: FinetuneConfig
    batch_size: int
    """Images a step."""
    adapted_model: AdaptedModel
    loader: ImageLoader
    train_indices: Sequence[int]
    """Indices of the training images among the loader's."""
    val_indices: Sequence[int]
    preprocessing: Preprocessing
    compute_config: ComputeConfig
    feature_key: dict[str, Any]
    """What activations depend on besides the views: weights, images, transform."""
    cache_budget_bytes: int
    """Bytes."""
    deadline: float | None
    """On the clock of time.perf_counter."""
    progress: Progress
    processes: Processes = SINGLE_PROCESS
    choices: RunChoices = field(default_factory=RunChoices)


@dataclass(frozen=True)
class FrozenBackbone:
    """The earliest cut with something frozen before it."""

    cut: Cut
    train_extractor: FeatureExtractor
    """The fastest way to its values: for training images."""
    val_extractor: FeatureExtractor
    """In float32: for validation images."""
    specs: tuple[TensorSpec, ...]
    """One for each value that crosses the cut."""
    later_specs: tuple[TensorSpec, ...] = ()
    """Those of later cuts, which are cached as well."""

    def total_bytes(self, views: int, train: int, val: int) -> int:
        """Of the cache: training values as the prefix gives them, validation values in float32."""
        rows = (*self.specs, *self.later_specs)
        exact = sum(4 * row.bytes_per_image // row.dtype.itemsize for row in rows)
        return views * train * sum(row.bytes_per_image for row in rows) + val * exact


def view_numbers(views: int) -> list[int | None]:
    """Keys of so many views; the first is evaluation's own, which also tells the accuracy on training images."""
    return [None, *range(1, views)]


class FeatureCache:
    """The store, as one run uses it."""

    def __init__(self, has: RunContext, base: Cut, runtimes: ExtractorChoice) -> None:
        """Take the earliest cut and the runtimes that lead to it: all are part of every key."""
        self._context = has
        self._feature_key = {
            **has.feature_key,
            "base": base.name,
            "runtimes": [runtimes.fast, runtimes.exact],
        }
        self._store = FeatureStore(
            get_cache_folder() / "activations", has.cache_budget_bytes, has.processes.local_group
        )

    def find(self, cut: Cut, views: int) -> Features | None:
        """What an earlier run has left."""
        return self._store.open(self._entry_key(cut, views))

    def fill(self, base: FrozenBackbone, views: int) -> Features:
        """Put every view and every validation image through the frozen blocks."""
        return self._create_entry(
            base.cut,
            views,
            base.specs,
            lambda made, sharers: _extract_from_images(made, base, self._context, sharers),
        )

    def fill_later_cut(
        self, cut: Cut, base: Features, train: TensorFunction, val: TensorFunction
    ) -> Features:
        """The values at a later cut, by functions from the base's values to those, one for each part; written batch by batch."""
        rows = tensor_specs(
            train(
                *(
                    value[0, :2].to(self._context.compute_config.device).float()
                    for value in base.train
                )
            )
        )

        def compute(made: Features, sharers: DistributedGroup) -> None:
            for view in range(base.views):
                self._extract_in_batches(
                    train,
                    tuple(value[view] for value in base.train),
                    tuple(value[view] for value in made.train),
                    sharers,
                )
            self._extract_in_batches(val, base.val, made.val, sharers)

        return self._create_entry(cut, base.views, rows, compute)

    def _extract_in_batches(
        self, function: TensorFunction, values: Tensors, into: Tensors, sharers: DistributedGroup
    ) -> None:
        starts = range(0, len(values[0]), _FEATURE_BATCH_SIZE)
        for at in (starts[mine] for mine in sharers.shard(len(starts))):
            batch = (
                value[at : at + _FEATURE_BATCH_SIZE].to(self._context.compute_config.device).float()
                for value in values
            )
            _write_batch(function(*batch), into, at)

    def _create_entry(
        self,
        cut: Cut,
        views: int,
        rows: Sequence[TensorSpec],
        compute: Callable[[Features, DistributedGroup], None],
    ) -> Features:
        train, val = (
            [(views, len(self._context.train_indices))] * len(rows),
            [(len(self._context.val_indices),)] * len(rows),
        )
        key = self._entry_key(cut, views)
        with ExitStack() as stack:
            try:
                made, sharers = (
                    stack.enter_context(self._store.create(key, train, val, rows)),
                    self._context.processes.local_group,
                )
            except OSError:
                # No folder that can be written, or no room on its disk: memory does as well, for this run; each process has its own.
                made, sharers = empty_features(train, val, rows), SINGLE_PROCESS
            compute(made, sharers)
        return self._store.open(key) or made

    def _entry_key(self, cut: Cut, views: int) -> str:
        return hash_feature_key({**self._feature_key, "cut": cut.name, "views": views})


def _extract_from_images(
    made: Features, base: FrozenBackbone, has: RunContext, sharers: DistributedGroup
) -> None:
    training = [
        (base.train_extractor, tuple(value[at] for value in made.train), has.train_indices, view)
        for at, view in enumerate(view_numbers(made.views))
    ]
    parts: list[tuple[FeatureExtractor, Tensors, Sequence[int], int | None]] = [
        *training,
        (base.val_extractor, made.val, has.val_indices, None),
    ]
    batches = [
        (function, into, [(view, index) for index in indices[at : at + _IMAGE_BATCH_SIZE]], at)
        for function, into, indices, view in parts
        for at in range(0, len(indices), _IMAGE_BATCH_SIZE)
    ]
    mine = [batches[at] for at in sharers.shard(len(batches))]
    total, done = sum(len(keys) for _, _, keys, _ in mine), 0
    for (function, into, _, at), (pixels, _) in zip(
        mine, has.loader([keys for _, _, keys, _ in mine]), strict=True
    ):
        _write_batch(
            function(has.compute_config.to_model_input(pixels, has.preprocessing)), into, at
        )
        done += len(pixels)
        has.progress.on_features_computed(done, total)


def _write_batch(values: Tensors, into: Tensors, at: int) -> None:
    for value, target in zip(values, into, strict=True):
        target[at : at + len(value)] = value.to(target.dtype)

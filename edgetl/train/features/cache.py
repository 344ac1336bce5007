"""The cache filled: every view of every training image, and the validation images, through the frozen blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from edgetl.core.cache import cache_folder
from edgetl.core.config.finetune import FinetuneConfig
from edgetl.core.preprocessing import Preprocessing
from edgetl.train.common.distributed import ALONE, Group, Ranks
from edgetl.train.common.precision import Computing, Function, Values
from edgetl.train.common.progress import Progress
from edgetl.train.common.run_choices import RunChoices
from edgetl.train.data.loader import Loader
from edgetl.train.features.extractor import Choice, Prefix
from edgetl.train.features.partition import Cut
from edgetl.train.features.store import (
    Activations,
    ActivationStore,
    Rows,
    activations_key,
    empty_activations,
    rows_of,
)
from edgetl.train.model.factory import AdaptedNetwork

_BATCH, _BATCH_OF_VALUES = 32, 128


@dataclass(frozen=True)
class Materials:
    """What the stages of a run are made from."""

    config: FinetuneConfig
    batch_size: int
    """Images a step."""
    adapted: AdaptedNetwork
    loader: Loader
    train: Sequence[int]
    """Indices of the training images among the loader's."""
    val: Sequence[int]
    preprocessing: Preprocessing
    computing: Computing
    facts: dict[str, Any]
    """What activations depend on besides the views: weights, images, transform."""
    cache_budget: int
    """Bytes."""
    deadline: float | None
    """On the clock of time.perf_counter."""
    progress: Progress
    ranks: Ranks = ALONE
    choices: RunChoices = field(default_factory=RunChoices)


@dataclass(frozen=True)
class Base:
    """The earliest cut with something frozen before it."""

    cut: Cut
    prefix: Prefix
    """The fastest way to its values: for training images."""
    exact: Prefix
    """In float32: for validation images."""
    rows: tuple[Rows, ...]
    """One for each value that crosses the cut."""
    later: tuple[Rows, ...] = ()
    """Those of later cuts, which are cached as well."""

    def total_bytes(self, views: int, train: int, val: int) -> int:
        """Of the cache: training values as the prefix gives them, validation values in float32."""
        rows = (*self.rows, *self.later)
        exact = sum(4 * row.row_bytes // row.dtype.itemsize for row in rows)
        return views * train * sum(row.row_bytes for row in rows) + val * exact


def view_keys(views: int) -> list[int | None]:
    """Keys of so many views; the first is evaluation's own, which also tells the accuracy on training images."""
    return [None, *range(1, views)]


class Cache:
    """The store, as one run uses it."""

    def __init__(self, has: Materials, base: Cut, runtimes: Choice) -> None:
        """Take the earliest cut and the runtimes that lead to it: all are part of every key."""
        self._has = has
        self._facts = {**has.facts, "base": base.name, "runtimes": [runtimes.fast, runtimes.exact]}
        self._store = ActivationStore(
            cache_folder() / "activations", has.cache_budget, has.ranks.local
        )

    def find(self, cut: Cut, views: int) -> Activations | None:
        """What an earlier run has left."""
        return self._store.open(self._key(cut, views))

    def fill(self, base: Base, views: int) -> Activations:
        """Put every view and every validation image through the frozen blocks."""
        return self._made(
            base.cut,
            views,
            base.rows,
            lambda made, sharers: _compute(made, base, self._has, sharers),
        )

    def add(self, cut: Cut, base: Activations, train: Function, val: Function) -> Activations:
        """The values at a later cut, by functions from the base's values to those, one for each part; written batch by batch."""
        rows = rows_of(
            train(*(value[0, :2].to(self._has.computing.device).float() for value in base.train))
        )

        def compute(made: Activations, sharers: Group) -> None:
            for view in range(base.views):
                self._through(
                    train,
                    tuple(value[view] for value in base.train),
                    tuple(value[view] for value in made.train),
                    sharers,
                )
            self._through(val, base.val, made.val, sharers)

        return self._made(cut, base.views, rows, compute)

    def _through(self, function: Function, values: Values, into: Values, sharers: Group) -> None:
        starts = range(0, len(values[0]), _BATCH_OF_VALUES)
        for at in (starts[mine] for mine in sharers.own(len(starts))):
            batch = (
                value[at : at + _BATCH_OF_VALUES].to(self._has.computing.device).float()
                for value in values
            )
            _put(function(*batch), into, at)

    def _made(
        self,
        cut: Cut,
        views: int,
        rows: Sequence[Rows],
        compute: Callable[[Activations, Group], None],
    ) -> Activations:
        train, val = (
            [(views, len(self._has.train))] * len(rows),
            [(len(self._has.val),)] * len(rows),
        )
        key = self._key(cut, views)
        with ExitStack() as stack:
            try:
                made, sharers = (
                    stack.enter_context(self._store.create(key, train, val, rows)),
                    self._has.ranks.local,
                )
            except OSError:
                # No folder that can be written, or no room on its disk: memory does as well, for this run; each process has its own.
                made, sharers = empty_activations(train, val, rows), ALONE
            compute(made, sharers)
        return self._store.open(key) or made

    def _key(self, cut: Cut, views: int) -> str:
        return activations_key({**self._facts, "cut": cut.name, "views": views})


def _compute(made: Activations, base: Base, has: Materials, sharers: Group) -> None:
    training = [
        (base.prefix, tuple(value[at] for value in made.train), has.train, view)
        for at, view in enumerate(view_keys(made.views))
    ]
    parts: list[tuple[Prefix, Values, Sequence[int], int | None]] = [
        *training,
        (base.exact, made.val, has.val, None),
    ]
    batches = [
        (function, into, [(view, index) for index in indices[at : at + _BATCH]], at)
        for function, into, indices, view in parts
        for at in range(0, len(indices), _BATCH)
    ]
    mine = [batches[at] for at in sharers.own(len(batches))]
    total, done = sum(len(keys) for _, _, keys, _ in mine), 0
    for (function, into, _, at), (pixels, _) in zip(
        mine, has.loader([keys for _, _, keys, _ in mine]), strict=True
    ):
        _put(function(has.computing.network_input(pixels, has.preprocessing)), into, at)
        done += len(pixels)
        has.progress.prepared(done, total)


def _put(values: Values, into: Values, at: int) -> None:
    for value, target in zip(values, into, strict=True):
        target[at : at + len(value)] = value.to(target.dtype)

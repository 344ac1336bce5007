"""Each phase with what it is fed: the network cut where the phase's training begins, and what comes before it computed once."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from edgetl.core.cache import cache_folder
from edgetl.core.finetuning import FinetuneConfig
from edgetl.core.preprocessing import Preprocessing
from edgetl.device.memory import free_memory_bytes
from edgetl.train.activations import Activations, ActivationStore, Rows, activations_key, empty_activations
from edgetl.train.arithmetic import step_milliseconds
from edgetl.train.computing import Computing
from edgetl.train.cutting import Cut, TracedNetwork, check_pieces
from edgetl.train.feeding import CachedFeed, Feed, Order, StreamedFeed
from edgetl.train.freezing import set_trainable
from edgetl.train.loading import Key, Loader, cut_batches
from edgetl.train.measured import remembered
from edgetl.train.models import AdaptedNetwork
from edgetl.train.phases import Phase
from edgetl.train.prefix import Prefix, Values, exact_prefix, fastest_prefix, make_prefix
from edgetl.train.progress import Progress

USUAL_VIEWS = 4
"""Views where neither the user nor the budget says otherwise; see docs/decisions."""
_BATCH = 32


@dataclass(frozen=True)
class Stage:
    """A phase, ready to be trained."""

    phase: Phase
    feed: Feed
    forward: Callable[..., Tensor]
    """(float32 values, ...) to logits, by the network's own modules."""
    computing: Computing


@dataclass(frozen=True)
class Materials:
    """What staging works with."""

    config: FinetuneConfig
    adapted: AdaptedNetwork
    loader: Loader
    train: Sequence[int]
    """Indices of the training images among the loader's."""
    val: Sequence[int]
    preprocessing: Preprocessing
    computing: Computing
    facts: dict[str, Any]
    """What activations depend on besides the views: weights, images, transform."""
    progress: Progress


class Staging:
    """Plans and prepares the stages of a run."""

    def __init__(self, materials: Materials, phases: Sequence[Phase]) -> None:
        self._has = materials
        self._phases = phases
        self._train_labels = materials.loader.images.labels(materials.train)
        self._val_labels = materials.loader.images.labels(materials.val)
        self._order = Order(self._train_labels, materials.config.sampling, materials.config.batch_size, materials.config.seed)
        self.activations: Activations | None = None
        """At the earliest cut, where they are cached."""
        self.report: dict[str, Any] = {"cache": "none"}
        """What was chosen, for config.json and metrics.json."""

    def stages(self) -> list[Stage]:
        """Compute what is computed once, and give every phase its feed."""
        cuts = self._cuts()
        cached = self._cached(cuts)
        stages = []
        for phase, cut in zip(self._phases, cuts, strict=True):
            feed = self._feed(cut, cached)
            forward = self._forward(cut)
            stages.append(Stage(phase, feed, forward, self._training_arithmetic(phase, cut, feed, forward)))
        return stages

    @cached_property
    def _traced(self) -> TracedNetwork | None:
        try:
            return TracedNetwork(self._has.adapted)
        except ValueError as cause:
            self._has.progress.note(f"The network is trained as a whole, without a cache: {cause}.")
            return None

    @cached_property
    def budget_bytes(self) -> int:
        """For activations."""
        given = self._has.config.cache_budget
        return free_memory_bytes() // 4 if given is None else given

    @property
    def view_keys(self) -> list[int | None]:
        """Keys of the views that are cached; the first is evaluation's own, which also tells the accuracy on training images."""
        views = self.activations.views if self.activations else self._has.config.views or 1
        return [None, *range(1, views)]

    def _cuts(self) -> list[Cut | None]:
        if self._traced is None:
            return [None] * len(self._phases)
        found: list[Cut | None] = []
        for phase in self._phases:
            set_trainable(self._has.adapted, phase.unfreeze, phase.freeze_statistics).train_mode()
            cut = self._traced.cut()
            found.append(cut if self._traced.blocks_before(cut) else None)
        real = [cut for cut in reversed(found) if cut is not None]
        try:
            check_pieces(self._traced, self._has.adapted.network, list(dict.fromkeys(real)), self._has.preprocessing.crop)
        except ValueError as cause:
            self._has.progress.note(f"The network is trained as a whole, without a cache: {cause}.")
            return [None] * len(self._phases)
        if not real:
            self._has.progress.note("Nothing before the first trained block is frozen: every epoch streams the images.")
        return found

    def _cached(self, cuts: Sequence[Cut | None]) -> dict[Cut, Activations]:
        base = next((cut for cut in reversed(cuts) if cut is not None), None)
        if base is None or self._traced is None or not self._has.train:
            return {}
        example = self._example()
        prefix = self._prefix(self._traced.input, base, example)
        exact = exact_prefix(self._traced.piece(self._traced.input, base), self._has.computing)
        rows = [Rows(tuple(value.shape[1:]), value.dtype) for value in prefix(*(value[:2] for value in example))]
        views = self._affordable_views(rows)
        if views is None:
            return {}
        self.activations = self._fill(base, prefix, exact, rows, views)
        cached = {base: self._near(self.activations)}
        for cut in dict.fromkeys(cut for cut in cuts if cut is not None and cut != base):
            piece = self._traced.piece(base, cut)
            middle = make_prefix("pytorch-bf16" if prefix.name.endswith("bf16") else "pytorch-fp32", piece, (), self._has.computing)
            last = exact_prefix(self._traced.piece(base, cut), self._has.computing)
            cached[cut] = self._near(self.activations.map(middle, last))
        return cached

    def _near(self, activations: Activations) -> Activations:
        device = self._has.computing.device
        if device.type != "cuda":
            return activations
        free, _ = torch.cuda.mem_get_info(device)
        return activations.to(device) if activations.total_bytes < free // 3 else activations

    def _prefix(self, start: Cut, end: Cut, example: Values) -> Prefix:
        assert self._traced is not None
        piece = self._traced.piece(start, end)
        images = len(self._has.train) * (self._has.config.views or USUAL_VIEWS)
        made: list[Prefix] = []

        def measure() -> dict[str, Any]:
            prefix, speeds = fastest_prefix(piece, example, self._has.computing, images)
            made.append(prefix)
            return {"prefix": prefix.name, "milliseconds": speeds}

        facts = {**self._measured_facts(end), "many": images >= 5000, "may_use_bf16": self._has.computing.may_use_bf16}
        found = remembered(facts, measure)
        self.report["prefix"] = found
        return made[0] if made else make_prefix(found["prefix"], piece, example, self._has.computing)

    def _measured_facts(self, cut: Cut | None) -> dict[str, Any]:
        return {
            "model": self._has.config.model,
            "size": self._has.preprocessing.crop,
            "cut": cut.name if cut else None,
            "device": self._has.computing.name,
        }

    def _example(self) -> Values:
        keys: list[Key] = [(None, index) for index in (list(self._has.train) * 16)[:16]]
        pixels, _ = next(iter(self._has.loader([keys])))
        return (self._has.computing.network_input(pixels, self._has.preprocessing),)

    def _affordable_views(self, rows: Sequence[Rows]) -> int | None:
        config = self._has.config
        row = sum(one.row_bytes for one in rows)
        fixed = len(self._has.val) * sum(4 * row_.row_bytes // row_.dtype.itemsize for row_ in rows)
        affordable = (self.budget_bytes - fixed) // max(1, row * len(self._has.train))
        usual = 1 if config.augment == "none" and config.augment_file is None else USUAL_VIEWS
        wanted = config.views or max(1, min(usual, config.epochs + config.finetune_epochs))
        least = config.views or min(wanted, 2)
        if affordable >= least:
            return min(wanted, affordable)
        needed = fixed + least * row * len(self._has.train)
        self._has.progress.note(
            f"Activations of the frozen blocks need {needed / 1e9:.1f} GB for {least} view{'s' * (least > 1)} and the cache may take "
            f"{self.budget_bytes / 1e9:.1f}: every epoch streams the images through them (--cache-budget)."
        )
        return None

    def _fill(self, cut: Cut, prefix: Prefix, exact: Prefix, rows: Sequence[Rows], views: int) -> Activations:
        has = self._has
        key = activations_key({**has.facts, "cut": cut.name, "prefix": prefix.name, "views": views})
        store = ActivationStore(cache_folder() / "activations", self.budget_bytes)
        found = store.open(key)
        if found is not None:
            self.report["cache"] = "reused"
            has.progress.note("The frozen blocks' activations are in the cache from an earlier run.")
            return found
        train, val = [(views, len(has.train))] * len(rows), [(len(has.val),)] * len(rows)
        started = time.perf_counter()
        try:
            with store.create(key, train, val, rows) as made:
                self._compute(made, prefix, exact)
        except OSError:
            # No folder that can be written, or no room on its disk: memory does as well, for this run.
            made = empty_activations(train, val, rows)
            self._compute(made, prefix, exact)
        self.report["cache"] = "filled"
        self.report["fill_seconds"] = time.perf_counter() - started
        return store.open(key) or made

    def _compute(self, made: Activations, prefix: Prefix, exact: Prefix) -> None:
        has = self._has
        views: list[int | None] = [None, *range(1, made.views)]
        total = len(has.train) * len(views) + len(has.val)
        done = 0
        parts: list[tuple[Prefix, Values, Sequence[int], int | None]] = [
            (prefix, tuple(value[at] for value in made.train), has.train, view) for at, view in enumerate(views)
        ]
        for function, into, indices, view in [*parts, (exact, made.val, has.val, None)]:
            at = 0
            for pixels, _ in has.loader(cut_batches([(view, index) for index in indices], _BATCH)):
                for target, value in zip(into, function(has.computing.network_input(pixels, has.preprocessing)), strict=True):
                    target[at : at + len(pixels)] = value.to(target.dtype)
                at += len(pixels)
                done += len(pixels)
                has.progress.prepared(done, total)

    def _feed(self, cut: Cut | None, cached: dict[Cut, Activations]) -> Feed:
        has = self._has
        if cut is not None and cut in cached:
            return CachedFeed(cached[cut], self._train_labels, self._val_labels, self._order, has.computing.device)
        prefixes = None
        if cut is not None and self._traced is not None:
            piece = self._traced.piece(self._traced.input, cut)
            prefixes = (self._prefix(self._traced.input, cut, self._example()), exact_prefix(piece, has.computing))
        views = self.view_keys if has.config.views else None
        return StreamedFeed(has.loader, has.train, has.val, self._order, views, prefixes, has.preprocessing, has.computing)

    def _forward(self, cut: Cut | None) -> Callable[..., Tensor]:
        module: nn.Module = self._has.adapted.network
        if cut is not None and self._traced is not None:
            module = self._traced.piece(cut)
        if self._has.config.compile:
            module = torch.compile(module)  # type: ignore[assignment]

        def forward(*values: Tensor) -> Tensor:
            logits: Tensor = module(*(_channels_last(value) for value in values))
            return logits

        return forward

    def _training_arithmetic(self, phase: Phase, cut: Cut | None, feed: Feed, forward: Callable[..., Tensor]) -> Computing:
        computing = self._has.computing
        if computing.device.type != "cpu" or computing.precision == "bf16" or not computing.may_use_bf16:
            return computing
        facts = {**self._measured_facts(cut), "training": str(phase.unfreeze), "batch_size": self._has.config.batch_size}

        def measure() -> dict[str, Any]:
            values, labels = next(iter(feed.training(1)))
            set_trainable(self._has.adapted, phase.unfreeze, phase.freeze_statistics).train_mode()
            taken = step_milliseconds(self._has.adapted.network, forward, values, labels, computing)
            return {"precision": min(taken, key=lambda name: taken[name]), "milliseconds": taken}

        return replace(computing, precision=remembered(facts, measure)["precision"])


def _channels_last(value: Tensor) -> Tensor:
    return value.contiguous(memory_format=torch.channels_last) if value.dim() == 4 else value

"""Each phase with what it is fed: the network cut where the phase's training begins, and what comes before it computed once."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn

from edgetl.core.artifacts.measured_choices import FrozenBlocks
from edgetl.core.errors import EdgetlError
from edgetl.train.common.autotune import remembered
from edgetl.train.common.precision import (
    Arithmetic,
    Computing,
    Values,
    keep_slow_kernels_in_float32,
    step_milliseconds,
)
from edgetl.train.common.run_choices import not_available
from edgetl.train.data.loader import Key
from edgetl.train.data.view_cache import ResidentViews
from edgetl.train.engine.budget import Costs, PhaseParts, Plan, measure_costs, plan
from edgetl.train.engine.input_device import choose_loader
from edgetl.train.engine.phases import Phase
from edgetl.train.features.batches import BatchLoader, CachedFeed, Feed, Order, StreamedFeed
from edgetl.train.features.cache import Base, Cache, Materials, view_keys
from edgetl.train.features.extractor import (
    Choice,
    Prefix,
    candidates,
    exact_prefix,
    fastest_prefix,
    make_prefix,
    prefix_by_precision,
)
from edgetl.train.features.partition import Cut, TracedNetwork, channels_last, check_pieces
from edgetl.train.features.store import Activations, near, rows_of
from edgetl.train.model.freezing import set_trainable

USUAL_VIEWS = 3
"""Views where neither the user nor the budget says otherwise; see docs/decisions/005-default-recipe.md."""


@dataclass(frozen=True)
class Stage:
    """A phase, ready to be trained."""

    phase: Phase
    feed: Feed
    module: nn.Module
    """(float32 values, ...) to logits: the network's own modules."""
    computing: Computing
    epoch_seconds: float = 0.0
    """Expected of an epoch, where it was measured."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What the fastest way to compute a step depends on."""

    @property
    def forward(self) -> Callable[..., Tensor]:
        """The module, given its values in the order of memory that it is fastest with."""
        return channels_last(self.module)


class Staging:
    """Plans and prepares the stages of a run."""

    def __init__(self, materials: Materials, phases: Sequence[Phase]) -> None:
        """Take phases with the epochs that are recorded, where they are."""
        self._has = materials
        self._choices = materials.choices
        self._phases = list(phases)
        images, config = materials.loader.images, materials.config
        self._train_labels, self._val_labels = (
            images.labels(materials.train),
            images.labels(materials.val),
        )
        self._order = Order(
            self._train_labels, config.sampling, materials.batch_size, config.seed, materials.ranks
        )
        self.report: dict[str, Any] = {"cache": "none"}
        """What was chosen, for metrics.json."""
        self._epoch_seconds: tuple[float, ...] = ()
        if materials.computing.may_use_bf16:
            keep_slow_kernels_in_float32(materials.adapted.network)

    def stages(self) -> list[Stage]:
        """Compute what is computed once, and give every phase its feed."""
        cuts = self._cuts()
        cached = self._activations(cuts)
        stages = []
        for phase, cut in zip(self._phases, cuts, strict=True):
            facts = {**self._measured_facts(cut), "batch_size": self._has.batch_size}
            stage = Stage(
                phase, self._feed(cut, cached), self._module(cut), self._has.computing, facts=facts
            )
            stages.append(replace(stage, computing=self._training_arithmetic(stage, cut)))
        if self._epoch_seconds:
            stages = [
                replace(stage, epoch_seconds=seconds)
                for stage, seconds in zip(stages, self._epoch_seconds, strict=True)
            ]
        return stages

    @cached_property
    def _traced(self) -> TracedNetwork | None:
        try:
            return TracedNetwork(self._has.adapted)
        except ValueError as cause:
            self._has.progress.note(f"The network is trained as a whole, without a cache: {cause}.")
            return None

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
            check_pieces(
                self._traced,
                self._has.adapted.network,
                list(dict.fromkeys(real)),
                self._has.preprocessing.crop,
            )
        except ValueError as cause:
            self._has.progress.note(f"The network is trained as a whole, without a cache: {cause}.")
            return [None] * len(self._phases)
        for phase, place in zip(self._phases, found, strict=True):
            if place is None:
                self._has.progress.note(
                    f"Nothing is frozen before what phase {phase.number} trains: its epochs stream the images."
                )
        return found

    def _activations(self, cuts: Sequence[Cut | None]) -> dict[Cut, Activations]:
        has = self._has
        real = list(dict.fromkeys(cut for cut in reversed(cuts) if cut is not None))
        if not real:
            if has.deadline is not None:
                self._plan(has.deadline, cuts, None, None)
            self._choices.record(cached=False)
            return {}
        if self._choices.recorded.cached is False:
            has.progress.note(
                "Every epoch streams the images through the frozen blocks, as recorded."
            )
            return {}
        choice = self._fastest(real[0])
        self._cache = Cache(has, real[0], choice)
        if has.deadline is None and (found := self._found(real, self._wanted_views)):
            self._choices.record(cached=True, views=self._wanted_views)
            return found
        base = self._base(real, choice)
        views = self._affordable_views(base)
        if has.deadline is not None:
            views = self._plan(has.deadline, cuts, base, views)
        self._choices.record(cached=views is not None, views=views)
        if views is None:
            return {}
        return self._found(real, views) or self._filled(real, base, views)

    def _found(self, cuts: Sequence[Cut], views: int) -> dict[Cut, Activations]:
        found = {cut: self._cache.find(cut, views) for cut in cuts}
        absent = self._has.cache_budget == 0 or None in found.values()
        if any(self._has.ranks.any(absent)):
            return {}
        self._has.progress.note(
            "The frozen blocks' activations are in the cache from an earlier run."
        )
        self.report |= {"cache": "reused", "views": views}
        return {
            cut: near(activations, self._has.computing.device)
            for cut, activations in found.items()
            if activations
        }

    def _filled(self, cuts: Sequence[Cut], base: Base, views: int) -> dict[Cut, Activations]:
        assert self._traced is not None
        started = time.perf_counter()
        device = self._has.computing.device
        made = {base.cut: near(self._cache.fill(base, views), device)}
        for cut in cuts[1:]:
            fast = self._between(base, base.prefix.name, cut)
            exact = fast if base.exact is base.prefix else self._between(base, base.exact.name, cut)
            made[cut] = near(self._cache.add(cut, made[base.cut], fast, exact), device)
        stored = sum(activations.total_bytes for activations in made.values())
        self.report |= {
            "cache": "filled",
            "views": views,
            "bytes": stored,
            "fill_seconds": time.perf_counter() - started,
        }
        return made

    def _base(self, cuts: Sequence[Cut], choice: Choice) -> Base:
        assert self._traced is not None
        piece, example = self._traced.piece(self._traced.input, cuts[0]), self._example()
        prefix, exact = self._prefixes(choice, piece, example)
        values = prefix(*(value[:2] for value in example))
        base = Base(cuts[0], prefix, exact, rows_of(values))
        later = (
            self._between(base, prefix.name, cut)(*(value.float() for value in values))
            for cut in cuts[1:]
        )
        return replace(base, later=tuple(row for found in later for row in rows_of(found)))

    def _prefixes(
        self, choice: Choice, piece: fx.GraphModule, example: Values
    ) -> tuple[Prefix, Prefix]:
        # The fast and the exact one, which are one where float32 is fastest.
        try:
            fast = make_prefix(choice.fast, piece, example, self._has.computing)
            return fast, fast if choice.exact == choice.fast else make_prefix(
                choice.exact, piece, example, self._has.computing
            )
        except EdgetlError as cause:
            if not self._choices.recorded.frozen_blocks:
                raise
            raise not_available(f"{choice.fast} for its frozen blocks", str(cause)) from cause

    def _example(self) -> Values:
        keys: list[Key] = [(None, index) for index in (list(self._has.train) * 16)[:16]]
        pixels, _ = next(iter(self._has.loader([keys])))
        return (self._has.computing.network_input(pixels, self._has.preprocessing),)

    def _fastest(self, cut: Cut) -> Choice:
        recorded = self._choices.recorded.frozen_blocks.get(cut.name)
        choice = self._measured_prefix(cut) if recorded is None else self._recorded_prefix(recorded)
        self._choices.record_entry(
            "frozen_blocks", cut.name, FrozenBlocks(choice.fast, choice.exact)
        )
        self.report |= {
            "prefix": choice.fast,
            "exact_prefix": choice.exact,
            "milliseconds": choice.milliseconds,
        }
        return choice

    def _recorded_prefix(self, recorded: FrozenBlocks) -> Choice:
        known = candidates(self._has.computing)
        for name in (recorded.fast, recorded.exact):
            if name not in known:
                raise not_available(
                    f"{name} for its frozen blocks",
                    f"this device and precision take {', '.join(known)}",
                )
        return Choice(recorded.fast, recorded.exact, {})

    def _measured_prefix(self, cut: Cut) -> Choice:
        assert self._traced is not None
        piece = self._traced.piece(self._traced.input, cut)
        if self._choices.fixed:
            return self._has.ranks.agree(
                prefix_by_precision(piece, self._example(), self._has.computing)
            )

        def measure() -> dict[str, Any]:
            return asdict(fastest_prefix(piece, self._example(), self._has.computing))

        facts = {
            **self._measured_facts(cut),
            "choice of": candidates(self._has.computing),
            "versions": self._has.facts["versions"],
        }
        if self._has.computing.device.type == "cuda":
            facts["chosen by"] = "precision"
        return self._has.ranks.agree(Choice(**remembered(facts, measure)))

    def _measured_facts(self, cut: Cut | None) -> dict[str, Any]:
        has = self._has
        return {
            "model": has.config.model,
            "weights": has.facts["weights"],
            "size": has.preprocessing.crop,
            "cut": cut.name if cut else None,
            "device": has.computing.name,
            "precision": has.computing.precision,
        }

    @property
    def _wanted_views(self) -> int:
        config = self._has.config
        if self._choices.recorded.views is not None:
            return self._choices.recorded.views
        usual = USUAL_VIEWS if config.augments else 1
        return max(1, min(config.views or usual, sum(phase.epochs for phase in self._phases)))

    def _affordable_views(self, base: Base) -> int | None:
        train, val, wanted = len(self._has.train), len(self._has.val), self._wanted_views
        affordable = (self._has.cache_budget - base.total_bytes(0, train, val)) // max(
            1, base.total_bytes(1, train, 0)
        )
        if self._choices.recorded.views is not None and affordable < wanted:
            needed, room = base.total_bytes(wanted, train, val) / 1e9, self._has.cache_budget / 1e9
            reason = f"they need {needed:.1f} GB and the cache may take {room:.1f} (--cache-budget)"
            raise not_available(f"{wanted} cached views of each image", reason)
        least = min(wanted, 2)
        if affordable >= least:
            if affordable < wanted:
                self._has.progress.note(
                    f"The cache holds {affordable} of {wanted} views of each image (--cache-budget)."
                )
            return min(wanted, affordable)
        self._has.progress.note(
            f"Activations of the frozen blocks need {base.total_bytes(least, train, val) / 1e9:.1f} GB for {least} "
            f"view{'s' * (least > 1)} and the cache may take {self._has.cache_budget / 1e9:.1f}: "
            "every epoch streams the images through them (--cache-budget)."
        )
        return None

    def expected_seconds(self) -> float:
        """Of all epochs with what comes before and after them, from steps timed now; nothing is trained, and no values are cached."""
        cuts = self._cuts()
        real = list(dict.fromkeys(cut for cut in reversed(cuts) if cut is not None))
        base = self._base(real, self._fastest(real[0])) if real else None
        views = None if base is None else self._affordable_views(base)
        return Plan(views or 1, tuple(phase.epochs for phase in self._phases), True).seconds(
            self._costs(cuts, base, views)
        )

    def _costs(self, cuts: Sequence[Cut | None], base: Base | None, views: int | None) -> Costs:
        parts = [
            PhaseParts(
                phase,
                cut is not None,
                channels_last(self._module(cut)),
                self._between(base, base.prefix.name if base else "", cut),
            )
            for phase, cut in zip(self._phases, cuts, strict=True)
        ]
        return self._has.ranks.agree(measure_costs(self._has, parts, base, cached=bool(views)))

    def _plan(
        self, deadline: float, cuts: Sequence[Cut | None], base: Base | None, views: int | None
    ) -> int | None:
        has, costs = self._has, self._costs(cuts, base, views)
        self._epoch_seconds = costs.epochs
        found = plan(
            has.ranks.agree(deadline - time.perf_counter()),
            costs,
            [phase.epochs for phase in self._phases],
            views or 1,
        )
        self._phases = [
            replace(phase, epochs=count)
            for phase, count in zip(self._phases, found.epochs, strict=True)
        ]
        self._choices.record(epochs=found.epochs)
        epochs = " + ".join(map(str, found.epochs))
        seen = f", {found.views} view{'s' * (found.views > 1)}" if views else ""
        has.progress.note(
            f"--budget: {epochs} epochs{seen}, expected to take {found.seconds(costs):.0f} s from here."
        )
        if not found.fits:
            has.progress.warn(
                "--budget is too short even for one epoch of each phase. Fewer images or a smaller --image-size would fit."
            )
        return found.views if views else None

    def _between(self, base: Base | None, runtime: str, cut: Cut | None) -> Callable[..., Values]:
        # From the values at the base cut to those of a phase; the identity where they are the same or nothing is frozen.
        if base is None or cut is None or cut == base.cut or self._traced is None:
            return lambda *values: values
        example = tuple(
            torch.zeros(2, *row.shape, device=self._has.computing.device) for row in base.rows
        )
        piece = self._traced.piece(base.cut, cut)
        try:
            return make_prefix(runtime, piece, example, self._has.computing)
        except EdgetlError:
            # The runtime was chosen for what comes before; this piece may have an operator that it does not know.
            return exact_prefix(piece, self._has.computing)

    def _feed(self, cut: Cut | None, cached: dict[Cut, Activations]) -> Feed:
        has = self._has
        if cut is not None and cut in cached:
            return CachedFeed(
                cached[cut], self._train_labels, self._val_labels, self._order, has.computing.device
            )
        prefixes = None
        if cut is not None and self._traced is not None:
            piece = self._traced.piece(self._traced.input, cut)
            prefixes = self._prefixes(self._fastest(cut), piece, self._example())
        return StreamedFeed(
            self._loader,
            has.train,
            has.val,
            self._order,
            self._streamed_views,
            prefixes,
            has.preprocessing,
            has.computing,
        )

    @property
    def _streamed_views(self) -> Sequence[int | None] | None:
        config = self._has.config
        return (
            view_keys(1)
            if not config.augments
            else view_keys(config.views)
            if config.views
            else None
        )

    @cached_property
    def _loader(self) -> BatchLoader:
        has = self._has
        loader, choice = choose_loader(has, self._choices.recorded.input_device)
        if choice:
            self.report["input"] = choice
            self._choices.record(input_device=choice["device"])
        if has.computing.device.type != "cuda":
            return loader
        free, _ = torch.cuda.mem_get_info(has.computing.device)
        validation: list[Key] = [(None, index) for index in has.val]
        training: list[Key] = [
            (view, index) for view in self._streamed_views or () for index in has.train
        ]
        return ResidentViews(
            loader, [validation, training], has.preprocessing.crop, has.computing.device, free // 3
        )

    def _module(self, cut: Cut | None) -> nn.Module:
        module: nn.Module = self._has.adapted.network
        if cut is not None and self._traced is not None:
            module = self._traced.piece(cut)
        return torch.compile(module) if self._has.config.compile else module  # type: ignore[return-value]

    def _training_arithmetic(self, stage: Stage, cut: Cut | None) -> Computing:
        number, computing = str(stage.phase.number), self._has.computing
        recorded = self._choices.recorded.precision.get(number)
        if recorded is not None:
            if recorded != computing.precision and not (
                recorded == "bf16" and computing.may_use_bf16
            ):
                raise not_available(
                    f"{recorded} in phase {number}",
                    f"this {computing.device.type} trains in {computing.precision}",
                )
            precision: Arithmetic = recorded
        elif (
            computing.device.type != "cpu"
            or computing.precision == "bf16"
            or not computing.may_use_bf16
            or self._choices.fixed
        ):
            precision = computing.precision
        else:
            precision = self._fastest_precision(stage, cut)
        self._choices.record_entry("precision", number, precision)
        return replace(computing, precision=precision)

    def _fastest_precision(self, stage: Stage, cut: Cut | None) -> Arithmetic:
        phase, computing = stage.phase, self._has.computing
        facts = {
            **self._measured_facts(cut),
            "training": str(phase.unfreeze),
            "batch_size": self._has.batch_size,
        }

        def measure() -> dict[str, Any]:
            values, labels = next(iter(stage.feed.training(1)))
            set_trainable(self._has.adapted, phase.unfreeze, phase.freeze_statistics).train_mode()
            taken = step_milliseconds(
                self._has.adapted.network, stage.forward, values, labels, computing
            )
            return {"precision": min(taken, key=lambda name: taken[name]), "milliseconds": taken}

        precision: Arithmetic = self._has.ranks.agree(remembered(facts, measure)["precision"])
        return precision

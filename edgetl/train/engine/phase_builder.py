"""Each phase with what it is fed: the network cut where the phase's training begins, and what comes before it computed once."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn

from edgetl.core.artifacts.measured_choices import FrozenBlockRuntimes
from edgetl.core.errors import EdgetlError
from edgetl.train.common.autotune import cached_measurement
from edgetl.train.common.precision import (
    ComputeConfig,
    PrecisionName,
    Tensors,
    keep_slow_kernels_in_float32,
    measure_step_ms,
)
from edgetl.train.common.run_choices import choice_unavailable_error
from edgetl.train.data.loader import ViewKey
from edgetl.train.data.view_cache import GpuViewCache
from edgetl.train.engine.budget import (
    BudgetPlan,
    PhaseFunctions,
    StepCosts,
    measure_step_costs,
    plan_budget,
)
from edgetl.train.engine.input_device import choose_loader
from edgetl.train.engine.phases import Phase
from edgetl.train.features.batches import (
    BatchLoader,
    BatchSource,
    CachedBatches,
    EpochSampler,
    StreamingBatches,
)
from edgetl.train.features.cache import FeatureCache, FrozenBackbone, RunContext, view_numbers
from edgetl.train.features.extractor import (
    ExtractorChoice,
    FeatureExtractor,
    candidate_runtimes,
    choose_extractor_by_precision,
    choose_fastest_extractor,
    make_extractor,
    make_float32_extractor,
)
from edgetl.train.features.partition import Cut, TracedModel, check_subgraphs, wrap_channels_last
from edgetl.train.features.store import Features, move_if_fits, tensor_specs
from edgetl.train.model.freezing import set_trainable

DEFAULT_VIEWS = 3
"""Views where neither the user nor the budget says otherwise; see docs/decisions/005-default-recipe.md."""


@dataclass(frozen=True)
class TrainablePhase:
    """A phase, ready to be trained."""

    phase: Phase
    batch_source: BatchSource
    module: nn.Module
    """(float32 values, ...) to logits: the network's own modules."""
    compute_config: ComputeConfig
    expected_epoch_s: float = 0.0
    """Expected of an epoch, where it was measured."""
    measurement_key: dict[str, Any] = field(default_factory=dict)
    """What the fastest way to compute a step depends on."""

    @property
    def forward(self) -> Callable[..., Tensor]:
        """The module, given its values in the order of memory that it is fastest with."""
        return wrap_channels_last(self.module)


class PhaseBuilder:
    """Plans and prepares the stages of a run."""

    def __init__(self, materials: RunContext, phases: Sequence[Phase]) -> None:
        """Take phases with the epochs that are recorded, where they are."""
        self._context = materials
        self._choices = materials.choices
        self._phases = list(phases)
        images, config = materials.loader.images, materials.config
        self._train_labels, self._val_labels = (
            images.labels(materials.train_indices),
            images.labels(materials.val_indices),
        )
        self._sampler = EpochSampler(
            self._train_labels,
            config.sampling,
            materials.batch_size,
            config.seed,
            materials.processes,
        )
        self.report: dict[str, Any] = {"cache": "none"}
        """What was chosen, for metrics.json."""
        self._expected_epoch_s: tuple[float, ...] = ()
        if materials.compute_config.may_use_bf16:
            keep_slow_kernels_in_float32(materials.adapted_model.model)

    def build_phases(self) -> list[TrainablePhase]:
        """Compute what is computed once, and give every phase its feed."""
        cuts = self._find_cuts()
        cached = self._load_or_compute_features(cuts)
        stages = []
        for phase, cut in zip(self._phases, cuts, strict=True):
            facts = {**self._measurement_key(cut), "batch_size": self._context.batch_size}
            stage = TrainablePhase(
                phase,
                self._make_batch_source(cut, cached),
                self._make_trainable_module(cut),
                self._context.compute_config,
                measurement_key=facts,
            )
            stages.append(replace(stage, compute_config=self._choose_compute_config(stage, cut)))
        if self._expected_epoch_s:
            stages = [
                replace(stage, expected_epoch_s=seconds)
                for stage, seconds in zip(stages, self._expected_epoch_s, strict=True)
            ]
        return stages

    @cached_property
    def _traced_model(self) -> TracedModel | None:
        try:
            return TracedModel(self._context.adapted_model)
        except ValueError as cause:
            self._context.progress.note(
                f"The network is trained as a whole, without a cache: {cause}."
            )
            return None

    def _find_cuts(self) -> list[Cut | None]:
        if self._traced_model is None:
            return [None] * len(self._phases)
        found: list[Cut | None] = []
        for phase in self._phases:
            set_trainable(
                self._context.adapted_model, phase.unfreeze, phase.freeze_statistics
            ).train_mode()
            cut = self._traced_model.find_cut()
            found.append(cut if self._traced_model.has_blocks_before(cut) else None)
        real = [cut for cut in reversed(found) if cut is not None]
        try:
            check_subgraphs(
                self._traced_model,
                self._context.adapted_model.model,
                list(dict.fromkeys(real)),
                self._context.preprocessing.crop,
            )
        except ValueError as cause:
            self._context.progress.note(
                f"The network is trained as a whole, without a cache: {cause}."
            )
            return [None] * len(self._phases)
        for phase, place in zip(self._phases, found, strict=True):
            if place is None:
                self._context.progress.note(
                    f"Nothing is frozen before what phase {phase.number} trains: its epochs stream the images."
                )
        return found

    def _load_or_compute_features(self, cuts: Sequence[Cut | None]) -> dict[Cut, Features]:
        has = self._context
        real = list(dict.fromkeys(cut for cut in reversed(cuts) if cut is not None))
        if not real:
            if has.deadline is not None:
                self._fit_budget(has.deadline, cuts, None, None)
            self._choices.record(cached=False)
            return {}
        if self._choices.recorded.cached is False:
            has.progress.note(
                "Every epoch streams the images through the frozen blocks, as recorded."
            )
            return {}
        choice = self._choose_extractor(real[0])
        self._feature_cache = FeatureCache(has, real[0], choice)
        if has.deadline is None and (found := self._load_features(real, self._requested_views)):
            self._choices.record(cached=True, views=self._requested_views)
            return found
        base = self._build_frozen_backbone(real, choice)
        views = self._affordable_views(base)
        if has.deadline is not None:
            views = self._fit_budget(has.deadline, cuts, base, views)
        self._choices.record(cached=views is not None, views=views)
        if views is None:
            return {}
        return self._load_features(real, views) or self._compute_features(real, base, views)

    def _load_features(self, cuts: Sequence[Cut], views: int) -> dict[Cut, Features]:
        found = {cut: self._feature_cache.find(cut, views) for cut in cuts}
        absent = self._context.cache_budget_bytes == 0 or None in found.values()
        if any(self._context.processes.all_reduce_any(absent)):
            return {}
        self._context.progress.note(
            "The frozen blocks' activations are in the cache from an earlier run."
        )
        self.report |= {"cache": "reused", "views": views}
        return {
            cut: move_if_fits(activations, self._context.compute_config.device)
            for cut, activations in found.items()
            if activations
        }

    def _compute_features(
        self, cuts: Sequence[Cut], base: FrozenBackbone, views: int
    ) -> dict[Cut, Features]:
        assert self._traced_model is not None
        started = time.perf_counter()
        device = self._context.compute_config.device
        made = {base.cut: move_if_fits(self._feature_cache.fill(base, views), device)}
        for cut in cuts[1:]:
            fast = self._make_intermediate_extractor(base, base.train_extractor.name, cut)
            exact = (
                fast
                if base.val_extractor is base.train_extractor
                else self._make_intermediate_extractor(base, base.val_extractor.name, cut)
            )
            made[cut] = move_if_fits(
                self._feature_cache.fill_later_cut(cut, made[base.cut], fast, exact), device
            )
        stored = sum(activations.total_bytes for activations in made.values())
        self.report |= {
            "cache": "filled",
            "views": views,
            "bytes": stored,
            "fill_seconds": time.perf_counter() - started,
        }
        return made

    def _build_frozen_backbone(
        self, cuts: Sequence[Cut], choice: ExtractorChoice
    ) -> FrozenBackbone:
        assert self._traced_model is not None
        piece, example = (
            self._traced_model.extract_subgraph(self._traced_model.input_cut, cuts[0]),
            self._load_example_inputs(),
        )
        prefix, exact = self._make_extractors(choice, piece, example)
        values = prefix(*(value[:2] for value in example))
        base = FrozenBackbone(cuts[0], prefix, exact, tensor_specs(values))
        later = (
            self._make_intermediate_extractor(base, prefix.name, cut)(
                *(value.float() for value in values)
            )
            for cut in cuts[1:]
        )
        return replace(
            base, later_specs=tuple(row for found in later for row in tensor_specs(found))
        )

    def _make_extractors(
        self, choice: ExtractorChoice, piece: fx.GraphModule, example: Tensors
    ) -> tuple[FeatureExtractor, FeatureExtractor]:
        # The fast and the exact one, which are one where float32 is fastest.
        try:
            fast = make_extractor(choice.fast, piece, example, self._context.compute_config)
            return fast, fast if choice.exact == choice.fast else make_extractor(
                choice.exact, piece, example, self._context.compute_config
            )
        except EdgetlError as cause:
            if not self._choices.recorded.frozen_blocks:
                raise
            raise choice_unavailable_error(
                f"{choice.fast} for its frozen blocks", str(cause)
            ) from cause

    def _load_example_inputs(self) -> Tensors:
        keys: list[ViewKey] = [
            (None, index) for index in (list(self._context.train_indices) * 16)[:16]
        ]
        pixels, _ = next(iter(self._context.loader([keys])))
        return (self._context.compute_config.to_model_input(pixels, self._context.preprocessing),)

    def _choose_extractor(self, cut: Cut) -> ExtractorChoice:
        recorded = self._choices.recorded.frozen_blocks.get(cut.name)
        choice = (
            self._measure_extractor_choice(cut)
            if recorded is None
            else self._validate_recorded_choice(recorded)
        )
        self._choices.record_entry(
            "frozen_blocks", cut.name, FrozenBlockRuntimes(choice.fast, choice.exact)
        )
        self.report |= {
            "prefix": choice.fast,
            "exact_prefix": choice.exact,
            "milliseconds": choice.milliseconds,
        }
        return choice

    def _validate_recorded_choice(self, recorded: FrozenBlockRuntimes) -> ExtractorChoice:
        known = candidate_runtimes(self._context.compute_config)
        for name in (recorded.fast, recorded.exact):
            if name not in known:
                raise choice_unavailable_error(
                    f"{name} for its frozen blocks",
                    f"this device and precision take {', '.join(known)}",
                )
        return ExtractorChoice(recorded.fast, recorded.exact, {})

    def _measure_extractor_choice(self, cut: Cut) -> ExtractorChoice:
        assert self._traced_model is not None
        piece = self._traced_model.extract_subgraph(self._traced_model.input_cut, cut)
        if self._choices.uses_fixed_rules:
            return self._context.processes.broadcast(
                choose_extractor_by_precision(
                    piece, self._load_example_inputs(), self._context.compute_config
                )
            )

        def measure() -> dict[str, Any]:
            return asdict(
                choose_fastest_extractor(
                    piece, self._load_example_inputs(), self._context.compute_config
                )
            )

        facts = {
            **self._measurement_key(cut),
            "choice of": candidate_runtimes(self._context.compute_config),
            "versions": self._context.feature_key["versions"],
        }
        if self._context.compute_config.device.type == "cuda":
            facts["chosen by"] = "precision"
        return self._context.processes.broadcast(
            ExtractorChoice(**cached_measurement(facts, measure))
        )

    def _measurement_key(self, cut: Cut | None) -> dict[str, Any]:
        has = self._context
        return {
            "model": has.config.model,
            "weights": has.feature_key["weights"],
            "size": has.preprocessing.crop,
            "cut": cut.name if cut else None,
            "device": has.compute_config.device_name,
            "precision": has.compute_config.precision,
        }

    @property
    def _requested_views(self) -> int:
        config = self._context.config
        if self._choices.recorded.views is not None:
            return self._choices.recorded.views
        usual = DEFAULT_VIEWS if config.uses_augmentation else 1
        return max(1, min(config.views or usual, sum(phase.epochs for phase in self._phases)))

    def _affordable_views(self, base: FrozenBackbone) -> int | None:
        train, val, wanted = (
            len(self._context.train_indices),
            len(self._context.val_indices),
            self._requested_views,
        )
        affordable = (self._context.cache_budget_bytes - base.total_bytes(0, train, val)) // max(
            1, base.total_bytes(1, train, 0)
        )
        if self._choices.recorded.views is not None and affordable < wanted:
            needed, room = (
                base.total_bytes(wanted, train, val) / 1e9,
                self._context.cache_budget_bytes / 1e9,
            )
            reason = f"they need {needed:.1f} GB and the cache may take {room:.1f} (--cache-budget)"
            raise choice_unavailable_error(f"{wanted} cached views of each image", reason)
        least = min(wanted, 2)
        if affordable >= least:
            if affordable < wanted:
                self._context.progress.note(
                    f"The cache holds {affordable} of {wanted} views of each image (--cache-budget)."
                )
            return min(wanted, affordable)
        self._context.progress.note(
            f"Activations of the frozen blocks need {base.total_bytes(least, train, val) / 1e9:.1f} GB for {least} "
            f"view{'s' * (least > 1)} and the cache may take {self._context.cache_budget_bytes / 1e9:.1f}: "
            "every epoch streams the images through them (--cache-budget)."
        )
        return None

    def estimate_seconds(self) -> float:
        """Of all epochs with what comes before and after them, from steps timed now; nothing is trained, and no values are cached."""
        cuts = self._find_cuts()
        real = list(dict.fromkeys(cut for cut in reversed(cuts) if cut is not None))
        base = self._build_frozen_backbone(real, self._choose_extractor(real[0])) if real else None
        views = None if base is None else self._affordable_views(base)
        return BudgetPlan(
            views or 1, tuple(phase.epochs for phase in self._phases), True
        ).estimate_seconds(self._measure_costs(cuts, base, views))

    def _measure_costs(
        self, cuts: Sequence[Cut | None], base: FrozenBackbone | None, views: int | None
    ) -> StepCosts:
        parts = [
            PhaseFunctions(
                phase,
                cut is not None,
                wrap_channels_last(self._make_trainable_module(cut)),
                self._make_intermediate_extractor(
                    base, base.train_extractor.name if base else "", cut
                ),
            )
            for phase, cut in zip(self._phases, cuts, strict=True)
        ]
        return self._context.processes.broadcast(
            measure_step_costs(self._context, parts, base, cached=bool(views))
        )

    def _fit_budget(
        self,
        deadline: float,
        cuts: Sequence[Cut | None],
        base: FrozenBackbone | None,
        views: int | None,
    ) -> int | None:
        has, costs = self._context, self._measure_costs(cuts, base, views)
        self._expected_epoch_s = costs.epoch_s
        found = plan_budget(
            has.processes.broadcast(deadline - time.perf_counter()),
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
            f"--budget: {epochs} epochs{seen}, expected to take {found.estimate_seconds(costs):.0f} s from here."
        )
        if not found.is_feasible:
            has.progress.warn(
                "--budget is too short even for one epoch of each phase. Fewer images or a smaller --image-size would fit."
            )
        return found.views if views else None

    def _make_intermediate_extractor(
        self, base: FrozenBackbone | None, runtime: str, cut: Cut | None
    ) -> Callable[..., Tensors]:
        # From the values at the base cut to those of a phase; the identity where they are the same or nothing is frozen.
        if base is None or cut is None or cut == base.cut or self._traced_model is None:
            return lambda *values: values
        example = tuple(
            torch.zeros(2, *row.shape, device=self._context.compute_config.device)
            for row in base.specs
        )
        piece = self._traced_model.extract_subgraph(base.cut, cut)
        try:
            return make_extractor(runtime, piece, example, self._context.compute_config)
        except EdgetlError:
            # The runtime was chosen for what comes before; this piece may have an operator that it does not know.
            return make_float32_extractor(piece, self._context.compute_config)

    def _make_batch_source(self, cut: Cut | None, cached: dict[Cut, Features]) -> BatchSource:
        has = self._context
        if cut is not None and cut in cached:
            return CachedBatches(
                cached[cut],
                self._train_labels,
                self._val_labels,
                self._sampler,
                has.compute_config.device,
            )
        prefixes = None
        if cut is not None and self._traced_model is not None:
            piece = self._traced_model.extract_subgraph(self._traced_model.input_cut, cut)
            prefixes = self._make_extractors(
                self._choose_extractor(cut), piece, self._load_example_inputs()
            )
        return StreamingBatches(
            self._loader,
            has.train_indices,
            has.val_indices,
            self._sampler,
            self._streamed_view_numbers,
            prefixes,
            has.preprocessing,
            has.compute_config,
        )

    @property
    def _streamed_view_numbers(self) -> Sequence[int | None] | None:
        config = self._context.config
        return (
            view_numbers(1)
            if not config.uses_augmentation
            else view_numbers(config.views)
            if config.views
            else None
        )

    @cached_property
    def _loader(self) -> BatchLoader:
        has = self._context
        loader, choice = choose_loader(has, self._choices.recorded.input_device)
        if choice:
            self.report["input"] = choice
            self._choices.record(input_device=choice["device"])
        if has.compute_config.device.type != "cuda":
            return loader
        free, _ = torch.cuda.mem_get_info(has.compute_config.device)
        validation: list[ViewKey] = [(None, index) for index in has.val_indices]
        training: list[ViewKey] = [
            (view, index)
            for view in self._streamed_view_numbers or ()
            for index in has.train_indices
        ]
        return GpuViewCache(
            loader,
            [validation, training],
            has.preprocessing.crop,
            has.compute_config.device,
            free // 3,
        )

    def _make_trainable_module(self, cut: Cut | None) -> nn.Module:
        module: nn.Module = self._context.adapted_model.model
        if cut is not None and self._traced_model is not None:
            module = self._traced_model.extract_subgraph(cut)
        return torch.compile(module) if self._context.config.compile else module  # type: ignore[return-value]

    def _choose_compute_config(self, stage: TrainablePhase, cut: Cut | None) -> ComputeConfig:
        number, computing = str(stage.phase.number), self._context.compute_config
        recorded = self._choices.recorded.precision.get(number)
        if recorded is not None:
            if recorded != computing.precision and not (
                recorded == "bf16" and computing.may_use_bf16
            ):
                raise choice_unavailable_error(
                    f"{recorded} in phase {number}",
                    f"this {computing.device.type} trains in {computing.precision}",
                )
            precision: PrecisionName = recorded
        elif (
            computing.device.type != "cpu"
            or computing.precision == "bf16"
            or not computing.may_use_bf16
            or self._choices.uses_fixed_rules
        ):
            precision = computing.precision
        else:
            precision = self._measure_fastest_precision(stage, cut)
        self._choices.record_entry("precision", number, precision)
        return replace(computing, precision=precision)

    def _measure_fastest_precision(self, stage: TrainablePhase, cut: Cut | None) -> PrecisionName:
        phase, computing = stage.phase, self._context.compute_config
        facts = {
            **self._measurement_key(cut),
            "training": str(phase.unfreeze),
            "batch_size": self._context.batch_size,
        }

        def measure() -> dict[str, Any]:
            values, labels = next(iter(stage.batch_source.iter_train_batches(1)))
            set_trainable(
                self._context.adapted_model, phase.unfreeze, phase.freeze_statistics
            ).train_mode()
            taken = measure_step_ms(
                self._context.adapted_model.model, stage.forward, values, labels, computing
            )
            return {"precision": min(taken, key=lambda name: taken[name]), "milliseconds": taken}

        precision: PrecisionName = self._context.processes.broadcast(
            cached_measurement(facts, measure)["precision"]
        )
        return precision

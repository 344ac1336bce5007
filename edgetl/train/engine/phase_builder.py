"""Build trainable phases.

The model is split at the first trainable block, and the features before it are cached.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn

from edgetl.core.artifacts.measured_choices import FrozenBlockRuntimes
from edgetl.core.artifacts.run_metrics import FeatureReport
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
"""Default number of views, unless the user or the budget sets one.

See docs/decisions/005-default-recipe.md.
"""


@dataclass(frozen=True)
class TrainablePhase:
    """A phase with its batches and the module to train."""

    phase: Phase
    batch_source: BatchSource
    module: nn.Module
    """(float32 values, ...) to logits; made of the model's own modules."""
    compute_config: ComputeConfig
    expected_epoch_s: float = 0.0
    """Expected seconds per epoch; 0 if not measured."""
    measurement_key: dict[str, Any] = field(default_factory=dict)
    """Everything that the fastest way to compute a step depends on."""

    @property
    def forward(self) -> Callable[..., Tensor]:
        """The module, called with its inputs in channels-last memory format."""
        return wrap_channels_last(self.module)


class PhaseBuilder:
    """Builder of the trainable phases of a run, and planner of their time budget."""

    def __init__(self, context: RunContext, phases: Sequence[Phase]) -> None:
        """Take phases with the recorded numbers of epochs, if there are any."""
        self._context = context
        self._choices = context.choices
        self._phases = list(phases)
        images, config = context.loader.images, context.config
        self._train_labels = images.labels(context.train_indices)
        self._val_labels = images.labels(context.val_indices)
        self._sampler = EpochSampler(
            self._train_labels,
            config.sampling,
            context.batch_size,
            config.seed,
            context.processes,
        )
        self.report = FeatureReport()
        """The choices that were made, for metrics.json."""
        self._expected_epoch_s: tuple[float, ...] = ()
        if context.compute_config.may_use_bf16:
            keep_slow_kernels_in_float32(context.adapted_model.model)

    def build_phases(self) -> list[TrainablePhase]:
        """Compute the cached features and return the phases, ready to be trained."""
        cuts = self._find_cuts()
        features = self._load_or_compute_features(cuts)
        phases = []
        for phase, cut in zip(self._phases, cuts, strict=True):
            key = {**self._measurement_key(cut), "batch_size": self._context.batch_size}
            trainable = TrainablePhase(
                phase,
                self._make_batch_source(cut, features),
                self._make_trainable_module(cut),
                self._context.compute_config,
                measurement_key=key,
            )
            compute_config = self._choose_compute_config(trainable, cut)
            phases.append(replace(trainable, compute_config=compute_config))
        if self._expected_epoch_s:
            phases = [
                replace(trainable, expected_epoch_s=seconds)
                for trainable, seconds in zip(phases, self._expected_epoch_s, strict=True)
            ]
        return phases

    @cached_property
    def _traced_model(self) -> TracedModel | None:
        try:
            return TracedModel(self._context.adapted_model)
        except ValueError as cause:
            self._context.progress.note(
                f"Training without a feature cache, the model cannot be split: {cause}."
            )
            return None

    def _find_cuts(self) -> list[Cut | None]:
        """Return the cut before the first trainable block of each phase; None to stream images."""
        if self._traced_model is None:
            return [None] * len(self._phases)
        cuts: list[Cut | None] = []
        for phase in self._phases:
            set_trainable(
                self._context.adapted_model, phase.unfreeze, phase.freeze_statistics
            ).train_mode()
            cut = self._traced_model.find_cut()
            cuts.append(cut if self._traced_model.has_blocks_before(cut) else None)
        try:
            check_subgraphs(
                self._traced_model,
                self._context.adapted_model.model,
                _feature_cuts(cuts),
                self._context.preprocessing.crop,
            )
        except ValueError as cause:
            self._context.progress.note(
                f"Training without a feature cache, the model cannot be split: {cause}."
            )
            return [None] * len(self._phases)
        for phase, phase_cut in zip(self._phases, cuts, strict=True):
            if phase_cut is None:
                self._context.progress.note(
                    f"Phase {phase.number} has no frozen blocks before its first trainable one: "
                    "every epoch streams the images."
                )
        return cuts

    def _load_or_compute_features(self, cuts: Sequence[Cut | None]) -> dict[Cut, Features]:
        """Return the features at each cut, cached or computed now; empty if images are streamed."""
        context = self._context
        feature_cuts = _feature_cuts(cuts)
        if not feature_cuts:
            if context.deadline is not None:
                self._fit_budget(context.deadline, cuts, None, None)
            self._choices.record(cached=False)
            return {}
        if self._choices.recorded.cached is False:
            context.progress.note(
                "Every epoch streams the images through the frozen blocks, as recorded."
            )
            return {}

        choice = self._choose_extractor(feature_cuts[0])
        self._feature_cache = FeatureCache(context, feature_cuts[0], choice)
        if context.deadline is None:
            features = self._load_features(feature_cuts, self._requested_views)
            if features:
                self._choices.record(cached=True, views=self._requested_views)
                return features

        backbone = self._build_frozen_backbone(feature_cuts, choice)
        views = self._affordable_views(backbone)
        if context.deadline is not None:
            views = self._fit_budget(context.deadline, cuts, backbone, views)
        self._choices.record(cached=views is not None, views=views)
        if views is None:
            return {}
        features = self._load_features(feature_cuts, views)
        return features or self._compute_features(feature_cuts, backbone, views)

    def _load_features(self, cuts: Sequence[Cut], views: int) -> dict[Cut, Features]:
        entries = {cut: self._feature_cache.find(cut, views) for cut in cuts}
        is_missing = self._context.cache_budget_bytes == 0 or None in entries.values()
        if any(self._context.processes.all_reduce_any(is_missing)):
            return {}
        self._context.progress.note("Reusing the frozen blocks' features cached by an earlier run.")
        self.report = replace(self.report, cache="reused", views=views)
        return {
            cut: move_if_fits(features, self._context.compute_config.device)
            for cut, features in entries.items()
            if features
        }

    def _compute_features(
        self, cuts: Sequence[Cut], backbone: FrozenBackbone, views: int
    ) -> dict[Cut, Features]:
        assert self._traced_model is not None
        started = time.perf_counter()
        device = self._context.compute_config.device
        features = {backbone.cut: move_if_fits(self._feature_cache.fill(backbone, views), device)}
        for cut in cuts[1:]:
            train_extractor = self._make_intermediate_extractor(
                backbone, backbone.train_extractor.name, cut
            )
            val_extractor = train_extractor
            if backbone.val_extractor is not backbone.train_extractor:
                val_extractor = self._make_intermediate_extractor(
                    backbone, backbone.val_extractor.name, cut
                )
            later_features = self._feature_cache.fill_later_cut(
                cut, features[backbone.cut], train_extractor, val_extractor
            )
            features[cut] = move_if_fits(later_features, device)
        self.report = replace(
            self.report,
            cache="filled",
            views=views,
            bytes=sum(entry.total_bytes for entry in features.values()),
            fill_seconds=time.perf_counter() - started,
        )
        return features

    def _build_frozen_backbone(
        self, cuts: Sequence[Cut], choice: ExtractorChoice
    ) -> FrozenBackbone:
        assert self._traced_model is not None
        subgraph = self._traced_model.extract_subgraph(self._traced_model.input_cut, cuts[0])
        example = self._load_example_inputs()
        train_extractor, val_extractor = self._make_extractors(choice, subgraph, example)
        values = train_extractor(*(value[:2] for value in example))
        backbone = FrozenBackbone(cuts[0], train_extractor, val_extractor, tensor_specs(values))
        later_values = (
            self._make_intermediate_extractor(backbone, train_extractor.name, cut)(
                *(value.float() for value in values)
            )
            for cut in cuts[1:]
        )
        later_specs = tuple(spec for tensors in later_values for spec in tensor_specs(tensors))
        return replace(backbone, later_specs=later_specs)

    def _make_extractors(
        self, choice: ExtractorChoice, subgraph: fx.GraphModule, example: Tensors
    ) -> tuple[FeatureExtractor, FeatureExtractor]:
        """Return the fast and the exact extractor: the same object if float32 is the fastest."""
        try:
            fast = make_extractor(choice.fast, subgraph, example, self._context.compute_config)
            if choice.exact == choice.fast:
                return fast, fast
            exact = make_extractor(choice.exact, subgraph, example, self._context.compute_config)
            return fast, exact
        except EdgetlError as cause:
            if not self._choices.recorded.frozen_blocks:
                raise
            raise choice_unavailable_error(
                f"{choice.fast} for its frozen blocks", str(cause)
            ) from cause

    def _load_example_inputs(self) -> Tensors:
        indices = (list(self._context.train_indices) * 16)[:16]
        keys: list[ViewKey] = [(None, index) for index in indices]
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
        self.report = replace(
            self.report,
            train_runtime=choice.fast,
            val_runtime=choice.exact,
            milliseconds=choice.milliseconds,
        )
        return choice

    def _validate_recorded_choice(self, recorded: FrozenBlockRuntimes) -> ExtractorChoice:
        candidates = candidate_runtimes(self._context.compute_config)
        for name in (recorded.fast, recorded.exact):
            if name not in candidates:
                raise choice_unavailable_error(
                    f"{name} for its frozen blocks",
                    f"this device and precision support {', '.join(candidates)}",
                )
        return ExtractorChoice(recorded.fast, recorded.exact, {})

    def _measure_extractor_choice(self, cut: Cut) -> ExtractorChoice:
        assert self._traced_model is not None
        subgraph = self._traced_model.extract_subgraph(self._traced_model.input_cut, cut)
        if self._choices.uses_fixed_rules:
            return self._context.processes.broadcast(
                choose_extractor_by_precision(
                    subgraph, self._load_example_inputs(), self._context.compute_config
                )
            )

        def measure() -> dict[str, Any]:
            return asdict(
                choose_fastest_extractor(
                    subgraph, self._load_example_inputs(), self._context.compute_config
                )
            )

        key = {
            **self._measurement_key(cut),
            "choice of": candidate_runtimes(self._context.compute_config),
            "versions": self._context.feature_key["versions"],
        }
        if self._context.compute_config.device.type == "cuda":
            key["chosen by"] = "precision"
        return self._context.processes.broadcast(
            ExtractorChoice(**cached_measurement(key, measure))
        )

    def _measurement_key(self, cut: Cut | None) -> dict[str, Any]:
        context = self._context
        return {
            "model": context.config.model,
            "weights": context.feature_key["weights"],
            "size": context.preprocessing.crop,
            "cut": cut.name if cut else None,
            "device": context.compute_config.device_name,
            "precision": context.compute_config.precision,
        }

    @property
    def _requested_views(self) -> int:
        config = self._context.config
        if self._choices.recorded.views is not None:
            return self._choices.recorded.views
        default = DEFAULT_VIEWS if config.uses_augmentation else 1
        return max(1, min(config.views or default, sum(phase.epochs for phase in self._phases)))

    def _affordable_views(self, backbone: FrozenBackbone) -> int | None:
        """Return the number of views that the cache can hold; None if it is not worth caching."""
        train, val = len(self._context.train_indices), len(self._context.val_indices)
        requested = self._requested_views
        budget_bytes = self._context.cache_budget_bytes
        budget_gb = budget_bytes / 1e9
        view_bytes = max(1, backbone.total_bytes(1, train, 0))
        affordable = (budget_bytes - backbone.total_bytes(0, train, val)) // view_bytes
        if self._choices.recorded.views is not None and affordable < requested:
            needed_gb = backbone.total_bytes(requested, train, val) / 1e9
            raise choice_unavailable_error(
                f"{requested} cached views of each image",
                f"they need {needed_gb:.1f} GB and --cache-budget is {budget_gb:.1f} GB",
            )
        minimum = min(requested, 2)
        if affordable >= minimum:
            if affordable < requested:
                self._context.progress.note(
                    f"The cache holds {affordable} of {requested} views of each image. "
                    "Increase --cache-budget to hold all."
                )
            return min(requested, affordable)
        needed_gb = backbone.total_bytes(minimum, train, val) / 1e9
        plural = "s" * (minimum > 1)
        self._context.progress.note(
            f"The features of {minimum} view{plural} need {needed_gb:.1f} GB and --cache-budget is "
            f"{budget_gb:.1f} GB: every epoch streams the images through the frozen blocks."
        )
        return None

    def estimate_seconds(self) -> float:
        """Estimate the seconds for all epochs, preparation and finalization from timed steps.

        Nothing is trained, and no features are cached.
        """
        cuts = self._find_cuts()
        feature_cuts = _feature_cuts(cuts)
        backbone, views = None, None
        if feature_cuts:
            choice = self._choose_extractor(feature_cuts[0])
            backbone = self._build_frozen_backbone(feature_cuts, choice)
            views = self._affordable_views(backbone)
        plan = BudgetPlan(views or 1, tuple(phase.epochs for phase in self._phases), True)
        return plan.estimate_seconds(self._measure_costs(cuts, backbone, views))

    def _measure_costs(
        self, cuts: Sequence[Cut | None], backbone: FrozenBackbone | None, views: int | None
    ) -> StepCosts:
        runtime = backbone.train_extractor.name if backbone else ""
        functions = [
            PhaseFunctions(
                phase,
                cut is not None,
                wrap_channels_last(self._make_trainable_module(cut)),
                self._make_intermediate_extractor(backbone, runtime, cut),
            )
            for phase, cut in zip(self._phases, cuts, strict=True)
        ]
        return self._context.processes.broadcast(
            measure_step_costs(self._context, functions, backbone, cached=bool(views))
        )

    def _fit_budget(
        self,
        deadline: float,
        cuts: Sequence[Cut | None],
        backbone: FrozenBackbone | None,
        views: int | None,
    ) -> int | None:
        """Set each phase's epochs to fit the deadline and return the number of views to cache."""
        context = self._context
        costs = self._measure_costs(cuts, backbone, views)
        self._expected_epoch_s = costs.epoch_s
        plan = plan_budget(
            context.processes.broadcast(deadline - time.perf_counter()),
            costs,
            [phase.epochs for phase in self._phases],
            views or 1,
        )
        self._phases = [
            replace(phase, epochs=count)
            for phase, count in zip(self._phases, plan.epochs, strict=True)
        ]
        self._choices.record(epochs=plan.epochs)
        epochs = " + ".join(map(str, plan.epochs))
        views_text = f", {plan.views} view{'s' * (plan.views > 1)}" if views else ""
        seconds = plan.estimate_seconds(costs)
        context.progress.note(f"--budget: {epochs} epochs{views_text}, about {seconds:.0f} s left.")
        if not plan.is_feasible:
            context.progress.warn(
                "--budget is too short even for one epoch of each phase. "
                "Increase it, or use fewer images or a smaller --image-size."
            )
        return plan.views if views else None

    def _make_intermediate_extractor(
        self, backbone: FrozenBackbone | None, runtime: str, cut: Cut | None
    ) -> Callable[..., Tensors]:
        """Return a function from the values at the backbone's cut to those at a phase's cut.

        It is the identity if the two cuts are the same or nothing is frozen.
        """
        if backbone is None or cut is None or cut == backbone.cut or self._traced_model is None:
            return lambda *values: values
        example = tuple(
            torch.zeros(2, *spec.shape, device=self._context.compute_config.device)
            for spec in backbone.specs
        )
        subgraph = self._traced_model.extract_subgraph(backbone.cut, cut)
        try:
            return make_extractor(runtime, subgraph, example, self._context.compute_config)
        except EdgetlError:
            # The runtime was chosen for the blocks before; this subgraph may have an operator
            # that it does not support.
            return make_float32_extractor(subgraph, self._context.compute_config)

    def _make_batch_source(self, cut: Cut | None, features: dict[Cut, Features]) -> BatchSource:
        context = self._context
        if cut is not None and cut in features:
            return CachedBatches(
                features[cut],
                self._train_labels,
                self._val_labels,
                self._sampler,
                context.compute_config.device,
            )
        extractors = None
        if cut is not None and self._traced_model is not None:
            subgraph = self._traced_model.extract_subgraph(self._traced_model.input_cut, cut)
            extractors = self._make_extractors(
                self._choose_extractor(cut), subgraph, self._load_example_inputs()
            )
        return StreamingBatches(
            self._loader,
            context.train_indices,
            context.val_indices,
            self._sampler,
            self._streamed_view_numbers,
            extractors,
            context.preprocessing,
            context.compute_config,
        )

    @property
    def _streamed_view_numbers(self) -> Sequence[int | None] | None:
        config = self._context.config
        if not config.uses_augmentation:
            return view_numbers(1)
        return view_numbers(config.views) if config.views else None

    @cached_property
    def _loader(self) -> BatchLoader:
        context = self._context
        loader, choice = choose_loader(context, self._choices.recorded.input_device)
        if choice:
            self.report = replace(self.report, input=choice)
            self._choices.record(input_device=choice.device)
        if context.compute_config.device.type != "cuda":
            return loader
        free_bytes, _ = torch.cuda.mem_get_info(context.compute_config.device)
        val_keys: list[ViewKey] = [(None, index) for index in context.val_indices]
        train_keys: list[ViewKey] = [
            (view, index)
            for view in self._streamed_view_numbers or ()
            for index in context.train_indices
        ]
        return GpuViewCache(
            loader,
            [val_keys, train_keys],
            context.preprocessing.crop,
            context.compute_config.device,
            free_bytes // 3,
        )

    def _make_trainable_module(self, cut: Cut | None) -> nn.Module:
        module: nn.Module = self._context.adapted_model.model
        if cut is not None and self._traced_model is not None:
            module = self._traced_model.extract_subgraph(cut)
        return torch.compile(module) if self._context.config.compile else module  # type: ignore[return-value]

    def _choose_compute_config(self, trainable: TrainablePhase, cut: Cut | None) -> ComputeConfig:
        number = str(trainable.phase.number)
        compute_config = self._context.compute_config
        recorded = self._choices.recorded.precision.get(number)
        if recorded is not None:
            is_bf16_available = recorded == "bf16" and compute_config.may_use_bf16
            if recorded != compute_config.precision and not is_bf16_available:
                raise choice_unavailable_error(
                    f"{recorded} in phase {number}",
                    f"this {compute_config.device.type} trains in {compute_config.precision}",
                )
            precision: PrecisionName = recorded
        elif (
            compute_config.device.type != "cpu"
            or compute_config.precision == "bf16"
            or not compute_config.may_use_bf16
            or self._choices.uses_fixed_rules
        ):
            precision = compute_config.precision
        else:
            precision = self._measure_fastest_precision(trainable, cut)
        self._choices.record_entry("precision", number, precision)
        return replace(compute_config, precision=precision)

    def _measure_fastest_precision(
        self, trainable: TrainablePhase, cut: Cut | None
    ) -> PrecisionName:
        phase, compute_config = trainable.phase, self._context.compute_config
        key = {
            **self._measurement_key(cut),
            "training": str(phase.unfreeze),
            "batch_size": self._context.batch_size,
        }

        def measure() -> dict[str, Any]:
            values, labels = next(iter(trainable.batch_source.iter_train_batches(1)))
            set_trainable(
                self._context.adapted_model, phase.unfreeze, phase.freeze_statistics
            ).train_mode()
            step_ms = measure_step_ms(
                self._context.adapted_model.model,
                trainable.forward,
                values,
                labels,
                compute_config,
            )
            fastest = min(step_ms, key=lambda name: step_ms[name])
            return {"precision": fastest, "milliseconds": step_ms}

        precision: PrecisionName = self._context.processes.broadcast(
            cached_measurement(key, measure)["precision"]
        )
        return precision


def _feature_cuts(cuts: Sequence[Cut | None]) -> list[Cut]:
    """Return the distinct cuts from the last phase to the first, the earliest cut first."""
    return list(dict.fromkeys(cut for cut in reversed(cuts) if cut is not None))

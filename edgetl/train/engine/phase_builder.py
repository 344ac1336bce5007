"""Build trainable phases.

The model is split at the first trainable block, and the features before it are cached.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

import torch

from edgetl.core.artifacts.run_metrics import FeatureReport
from edgetl.train.common.precision import keep_slow_kernels_in_float32
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
from edgetl.train.engine.phases import Phase, TrainablePhase
from edgetl.train.engine.split_model import SplitModel
from edgetl.train.engine.step_precision import choose_step_precision
from edgetl.train.features.batches import (
    BatchLoader,
    BatchSource,
    CachedBatches,
    EpochSampler,
    StreamingBatches,
)
from edgetl.train.features.cache import FeatureCache, FrozenBackbone, RunContext, view_numbers
from edgetl.train.features.extractor import ExtractorChoice
from edgetl.train.features.partition import Cut, wrap_channels_last
from edgetl.train.features.store import Features, move_if_fits

DEFAULT_VIEWS = 3
"""Default number of views, unless the user or the budget sets one.

See docs/decisions/005-default-recipe.md.
"""


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
        self._expected_epoch_s: Sequence[float] = [0.0] * len(phases)
        if context.compute_config.may_use_bf16:
            keep_slow_kernels_in_float32(context.adapted_model.model)

    @cached_property
    def _split_model(self) -> SplitModel:
        return SplitModel(self._context, self._phases)

    def build_phases(self) -> list[TrainablePhase]:
        """Compute the cached features and return the phases, ready to be trained."""
        features = self._load_or_compute_features()
        phases = []
        for phase, cut, expected_epoch_s in zip(
            self._phases, self._split_model.cuts, self._expected_epoch_s, strict=True
        ):
            key = self._split_model.measurement_key(cut)
            trainable = TrainablePhase(
                phase,
                self._make_batch_source(cut, features),
                self._split_model.make_trainable_module(cut),
                self._context.compute_config,
                expected_epoch_s,
                {**key, "batch_size": self._context.batch_size},
            )
            compute_config = choose_step_precision(self._context, trainable, key)
            phases.append(replace(trainable, compute_config=compute_config))
        return phases

    def estimate_seconds(self) -> float:
        """Estimate the seconds for all epochs, preparation and finalization from timed steps.

        Nothing is trained, and no features are cached.
        """
        backbone, views = None, None
        if self._split_model.feature_cuts:
            choice = self._choose_extractor(self._split_model.feature_cuts[0])
            backbone = self._split_model.build_backbone(choice)
            views = self._affordable_views(backbone)
        plan = BudgetPlan(views or 1, tuple(phase.epochs for phase in self._phases), True)
        return plan.estimate_seconds(self._measure_costs(backbone, views))

    def _load_or_compute_features(self) -> dict[Cut, Features]:
        """Return the features at each cut, cached or computed now; empty if images are streamed."""
        context = self._context
        feature_cuts = self._split_model.feature_cuts
        if not feature_cuts:
            if context.deadline is not None:
                self._fit_budget(context.deadline, None, None)
            self._choices.record(cached=False)
            return {}
        if self._choices.recorded.cached is False:
            context.progress.note(
                "Every epoch streams the images through the frozen blocks, as recorded."
            )
            return {}

        choice = self._choose_extractor(feature_cuts[0])
        cache = FeatureCache(context, feature_cuts[0], choice)
        if context.deadline is None:
            features = self._load_features(cache, self._requested_views)
            if features:
                self._choices.record(cached=True, views=self._requested_views)
                return features

        backbone = self._split_model.build_backbone(choice)
        views = self._affordable_views(backbone)
        if context.deadline is not None:
            views = self._fit_budget(context.deadline, backbone, views)
        self._choices.record(cached=views is not None, views=views)
        if views is None:
            return {}
        return self._load_features(cache, views) or self._compute_features(cache, backbone, views)

    def _choose_extractor(self, cut: Cut) -> ExtractorChoice:
        choice = self._split_model.choose_extractor(cut)
        self.report = replace(
            self.report,
            train_runtime=choice.fast,
            val_runtime=choice.exact,
            milliseconds=choice.milliseconds,
        )
        return choice

    def _load_features(self, cache: FeatureCache, views: int) -> dict[Cut, Features]:
        entries = {cut: cache.find(cut, views) for cut in self._split_model.feature_cuts}
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
        self, cache: FeatureCache, backbone: FrozenBackbone, views: int
    ) -> dict[Cut, Features]:
        started = time.perf_counter()
        device = self._context.compute_config.device
        features = {backbone.cut: move_if_fits(cache.fill(backbone, views), device)}
        for cut in self._split_model.feature_cuts[1:]:
            train_extractor = self._split_model.make_intermediate_extractor(
                backbone, backbone.train_extractor.name, cut
            )
            val_extractor = train_extractor
            if backbone.val_extractor is not backbone.train_extractor:
                val_extractor = self._split_model.make_intermediate_extractor(
                    backbone, backbone.val_extractor.name, cut
                )
            later_features = cache.fill_later_cut(
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

    def _measure_costs(self, backbone: FrozenBackbone | None, views: int | None) -> StepCosts:
        split_model = self._split_model
        runtime = backbone.train_extractor.name if backbone else ""
        functions = [
            PhaseFunctions(
                phase,
                cut is not None,
                wrap_channels_last(split_model.make_trainable_module(cut)),
                split_model.make_intermediate_extractor(backbone, runtime, cut),
            )
            for phase, cut in zip(self._phases, split_model.cuts, strict=True)
        ]
        return self._context.processes.broadcast(
            measure_step_costs(self._context, functions, backbone, cached=bool(views))
        )

    def _fit_budget(
        self, deadline: float, backbone: FrozenBackbone | None, views: int | None
    ) -> int | None:
        """Set each phase's epochs to fit the deadline and return the number of views to cache."""
        context = self._context
        costs = self._measure_costs(backbone, views)
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
        if cut is not None:
            choice = self._choose_extractor(cut)
            extractors = self._split_model.make_streaming_extractors(cut, choice)
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

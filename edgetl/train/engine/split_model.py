"""Model split at the first trainable block of each phase, with the fastest runtime for the rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import fx, nn

from edgetl.core.artifacts.measured_choices import FrozenBlockRuntimes
from edgetl.core.errors import EdgetlError
from edgetl.train.common.autotune import cached_measurement
from edgetl.train.common.precision import Tensors
from edgetl.train.common.run_choices import choice_unavailable_error
from edgetl.train.data.loader import ViewKey
from edgetl.train.engine.phases import Phase
from edgetl.train.features.cache import FrozenBackbone, RunContext
from edgetl.train.features.extractor import (
    ExtractorChoice,
    FeatureExtractor,
    candidate_runtimes,
    choose_extractor_by_precision,
    choose_fastest_extractor,
    make_extractor,
    make_float32_extractor,
)
from edgetl.train.features.partition import Cut, TracedModel, check_subgraphs
from edgetl.train.features.store import tensor_specs
from edgetl.train.model.freezing import set_trainable


class SplitModel:
    """The run's model, split for each phase into frozen blocks and a trainable rest."""

    def __init__(self, context: RunContext, phases: Sequence[Phase]) -> None:
        """Find the cut of each phase."""
        self._context = context
        self._choices = context.choices
        self._traced_model = self._trace()
        self.cuts = self._find_cuts(phases)
        """The cut before the first trainable block of each phase; None to stream images."""

    @property
    def feature_cuts(self) -> list[Cut]:
        """The distinct cuts from the last phase to the first, the earliest cut first."""
        return _distinct_cuts(self.cuts)

    def _trace(self) -> TracedModel | None:
        try:
            return TracedModel(self._context.adapted_model)
        except ValueError as cause:
            self._report_unsplittable(cause)
            return None

    def _find_cuts(self, phases: Sequence[Phase]) -> list[Cut | None]:
        if self._traced_model is None:
            return [None] * len(phases)
        cuts: list[Cut | None] = []
        for phase in phases:
            set_trainable(
                self._context.adapted_model, phase.unfreeze, phase.freeze_statistics
            ).train_mode()
            cut = self._traced_model.find_cut()
            cuts.append(cut if self._traced_model.has_blocks_before(cut) else None)
        try:
            check_subgraphs(
                self._traced_model,
                self._context.adapted_model.model,
                _distinct_cuts(cuts),
                self._context.preprocessing.crop,
            )
        except ValueError as cause:
            self._report_unsplittable(cause)
            return [None] * len(phases)
        for phase, phase_cut in zip(phases, cuts, strict=True):
            if phase_cut is None:
                self._context.progress.note(
                    f"Phase {phase.number} has no frozen blocks before its first trainable one: "
                    "every epoch streams the images."
                )
        return cuts

    def _report_unsplittable(self, cause: ValueError) -> None:
        self._context.progress.note(
            f"Training without a feature cache, the model cannot be split: {cause}."
        )

    def choose_extractor(self, cut: Cut) -> ExtractorChoice:
        """Choose the runtimes of the blocks before a cut; the choice is recorded.

        Raises:
            ConfigError: the recorded runtimes are not available on this machine.
        """
        choice = self._recorded_choice(cut) or self._measure_choice(cut)
        self._choices.record_entry(
            "frozen_blocks", cut.name, FrozenBlockRuntimes(choice.fast, choice.exact)
        )
        return choice

    def _recorded_choice(self, cut: Cut) -> ExtractorChoice | None:
        recorded = self._choices.recorded.frozen_blocks.get(cut.name)
        if recorded is None:
            return None
        candidates = candidate_runtimes(self._context.compute_config)
        for name in (recorded.fast, recorded.exact):
            if name not in candidates:
                raise choice_unavailable_error(
                    f"{name} for its frozen blocks",
                    f"this device and precision support {', '.join(candidates)}",
                )
        return ExtractorChoice(recorded.fast, recorded.exact, {})

    def _measure_choice(self, cut: Cut) -> ExtractorChoice:
        compute_config, processes = self._context.compute_config, self._context.processes
        subgraph = self._frozen_subgraph(cut)
        if self._choices.uses_fixed_rules:
            return processes.broadcast(
                choose_extractor_by_precision(subgraph, self._load_example_inputs(), compute_config)
            )

        def measure() -> ExtractorChoice:
            return choose_fastest_extractor(subgraph, self._load_example_inputs(), compute_config)

        key = {
            **self.measurement_key(cut),
            "choice of": candidate_runtimes(compute_config),
            "versions": self._context.feature_key["versions"],
        }
        if compute_config.device.type == "cuda":
            key["chosen by"] = "precision"
        return processes.broadcast(cached_measurement(ExtractorChoice, key, measure))

    def measurement_key(self, cut: Cut | None) -> dict[str, object]:
        """Return everything that the fastest way to compute a part of the model depends on."""
        context = self._context
        return {
            "model": context.config.model,
            "weights": context.feature_key["weights"],
            "size": context.preprocessing.crop,
            "cut": cut.name if cut else None,
            "device": context.compute_config.device_name,
            "precision": context.compute_config.precision,
        }

    def build_backbone(self, choice: ExtractorChoice) -> FrozenBackbone:
        """Build the blocks before the earliest cut, with the sizes of the values at all cuts."""
        first_cut, *later_cuts = self.feature_cuts
        example = self._load_example_inputs()
        train_extractor, val_extractor = self._make_extractors(
            choice, self._frozen_subgraph(first_cut), example
        )
        values = train_extractor(*(value[:2] for value in example))
        backbone = FrozenBackbone(first_cut, train_extractor, val_extractor, tensor_specs(values))
        later_values = (
            self.make_intermediate_extractor(backbone, train_extractor.name, cut)(
                *(value.float() for value in values)
            )
            for cut in later_cuts
        )
        later_specs = tuple(spec for tensors in later_values for spec in tensor_specs(tensors))
        return replace(backbone, later_specs=later_specs)

    def make_streaming_extractors(
        self, cut: Cut, choice: ExtractorChoice
    ) -> tuple[FeatureExtractor, FeatureExtractor]:
        """Return the fast and the exact extractor from images to the values at a cut."""
        return self._make_extractors(
            choice, self._frozen_subgraph(cut), self._load_example_inputs()
        )

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

    def make_intermediate_extractor(
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

    def make_trainable_module(self, cut: Cut | None) -> nn.Module:
        """Return the part of the model after a cut; the whole model for None."""
        module: nn.Module = self._context.adapted_model.model
        if cut is not None and self._traced_model is not None:
            module = self._traced_model.extract_subgraph(cut)
        return torch.compile(module) if self._context.config.compile else module  # type: ignore[return-value]

    def _frozen_subgraph(self, cut: Cut) -> fx.GraphModule:
        assert self._traced_model is not None
        return self._traced_model.extract_subgraph(self._traced_model.input_cut, cut)

    def _load_example_inputs(self) -> Tensors:
        indices = (list(self._context.train_indices) * 16)[:16]
        keys: list[ViewKey] = [(None, index) for index in indices]
        pixels, _ = next(iter(self._context.loader([keys])))
        return (self._context.compute_config.to_model_input(pixels, self._context.preprocessing),)


def _distinct_cuts(cuts: Sequence[Cut | None]) -> list[Cut]:
    return list(dict.fromkeys(cut for cut in reversed(cuts) if cut is not None))

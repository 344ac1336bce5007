"""Time budget: measure the cost of a step and plan epochs and views that fit."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from torch import Tensor

from edgetl.train.common.precision import ComputeConfig, Tensors, measure_step_ms
from edgetl.train.data.loader import ViewKey
from edgetl.train.engine.phases import Phase
from edgetl.train.features.cache import FrozenBackbone, RunContext
from edgetl.train.model.freezing import set_trainable

T = TypeVar("T")
_TIMED_BATCHES = 4
_FORWARD_SHARE = 1 / 3
"""Share of a training step spent in the forward pass."""
_MAX_FLOAT32_SLOWDOWN = 2.0
"""Upper bound on the slowdown of float32 relative to the fastest runtime."""


@dataclass(frozen=True)
class PhaseFunctions:
    """A phase with the functions that compute its steps."""

    phase: Phase
    has_frozen_blocks: bool
    """Whether any block before the first trainable one is frozen."""
    forward: Callable[..., Tensor]
    """(float32 values, ...) at the phase's cut to logits."""
    intermediate_extractor: Callable[..., Tensors]
    """Values at the backbone's cut to those at the phase's cut."""


def measure_step_costs(
    context: RunContext,
    phases: Sequence[PhaseFunctions],
    backbone: FrozenBackbone | None,
    cached: bool,
) -> StepCosts:
    """Time loading, the frozen blocks and a step of every phase on batches of training images.

    Args:
        context: the run.
        phases: the phases, in order.
        backbone: the frozen blocks that all phases share; None if nothing is frozen.
        cached: whether the frozen blocks' features will be cached.
    """
    compute_config, world_size = context.compute_config, context.processes.world_size
    batch_size = min(len(context.train_indices), context.batch_size // world_size)
    keys: list[ViewKey] = [(1, index) for index in list(context.train_indices)[:batch_size]]
    # The first batch imports libraries and starts workers, and a single batch would not show the
    # throughput of several workers.
    next(iter(context.loader([keys])))
    batches, load_s = _time_call(
        lambda: list(context.loader([keys] * _TIMED_BATCHES)), compute_config
    )
    load_s /= _TIMED_BATCHES
    pixels, labels = batches[0]
    labels = labels.to(compute_config.device)
    inputs = (compute_config.to_model_input(pixels, context.preprocessing),)
    extractor = backbone.train_extractor if backbone else (lambda *values: values)
    extractor(*inputs)
    features, frozen_s = _time_call(lambda: extractor(*inputs), compute_config)

    train_batches, val_batches = (
        len(indices) / world_size / batch_size
        for indices in (context.train_indices, context.val_indices)
    )
    epoch_s = []
    final_evaluation_s = 0.0
    for functions in phases:
        step_s, intermediate_s = _time_phase_step(context, functions, inputs, features, labels)
        preparation_s = 0.0
        if not (cached and functions.has_frozen_blocks):
            extraction_s = frozen_s + intermediate_s if functions.has_frozen_blocks else 0.0
            preparation_s = load_s + _MAX_FLOAT32_SLOWDOWN * extraction_s
        forward_s = step_s * _FORWARD_SHARE + preparation_s
        epoch_s.append(train_batches * (step_s + preparation_s) + val_batches * forward_s)
        # The final evaluation on all training images computes them as the last phase does.
        final_evaluation_s = train_batches * forward_s
    view_s, val_features_s = 0.0, 0.0
    if cached:
        view_s = train_batches * (load_s + frozen_s)
        val_features_s = val_batches * (load_s + _MAX_FLOAT32_SLOWDOWN * frozen_s)
    return StepCosts(view_s, val_features_s + final_evaluation_s + FINALIZATION_S, tuple(epoch_s))


def _time_phase_step(
    context: RunContext,
    functions: PhaseFunctions,
    inputs: Tensors,
    features: Tensors,
    labels: Tensor,
) -> tuple[float, float]:
    """Return the seconds of a training step and of the blocks between the two cuts."""
    values, intermediate_s = _time_call(
        lambda: (
            functions.intermediate_extractor(*features) if functions.has_frozen_blocks else inputs
        ),
        context.compute_config,
    )
    phase = functions.phase
    set_trainable(context.adapted_model, phase.unfreeze, phase.freeze_statistics).train_mode()
    step_ms = measure_step_ms(
        context.adapted_model.model,
        functions.forward,
        tuple(value.float() for value in values),
        labels,
        context.compute_config,
    )
    return min(step_ms.values()) / 1e3, intermediate_s


def _time_call(call: Callable[[], T], compute_config: ComputeConfig) -> tuple[T, float]:
    # A GPU may still be busy with a warm-up, whose time does not belong to the call.
    compute_config.synchronize()
    started = time.perf_counter()
    result = call()
    compute_config.synchronize()
    return result, time.perf_counter() - started


MAX_EPOCH_SCALE = 3.0
"""Largest factor on the recipe's epochs; more would only overfit the training images."""
FINALIZATION_S = 3.0
"""Seconds reserved for what follows the last epoch: final evaluation, plots and metrics."""
_PLANNED_SHARE = 0.85
"""Share of the remaining time to plan for; the rest covers slowdowns by other programs."""


@dataclass(frozen=True)
class StepCosts:
    """Expected costs in seconds, from measured steps."""

    view_s: float
    """One view of all training images: decoding and frozen blocks; 0 if nothing is cached."""
    fixed_s: float
    """The validation images' features, and the final evaluation."""
    epoch_s: tuple[float, ...]
    """One epoch of each phase, validation included."""


@dataclass(frozen=True)
class BudgetPlan:
    """Views and epochs that fit into a time budget."""

    views: int
    epochs: tuple[int, ...]
    is_feasible: bool
    """Whether the plan fits. If not, it is the minimum: one epoch of each phase."""

    def estimate_seconds(self, costs: StepCosts) -> float:
        """Return the expected duration in seconds."""
        epochs_s = sum(count * cost for count, cost in zip(self.epochs, costs.epoch_s, strict=True))
        return costs.fixed_s + self.views * costs.view_s + epochs_s


def plan_budget(left_s: float, costs: StepCosts, epochs: Sequence[int], views: int) -> BudgetPlan:
    """Scale the recipe's epochs, together, to the time that is left.

    Views are given up first, down to two.

    Args:
        left_s: seconds until the run has to be finished.
        costs: the measured costs.
        epochs: the recipe's epochs of each phase.
        views: the recipe's views.
    """
    planned_s = left_s * _PLANNED_SHARE
    recipe_s = sum(count * cost for count, cost in zip(epochs, costs.epoch_s, strict=True))
    for planned_views in range(views, 0, -1):
        available_s = planned_s - costs.fixed_s - planned_views * costs.view_s
        scale = available_s / max(recipe_s, 1e-9)
        if scale >= 1 or planned_views <= min(2, views):
            break
    if planned_views == 2 and scale * min(epochs) < 1:
        # One epoch of each phase on a single view is better than an unfinished run.
        planned_views = 1
        scale = (planned_s - costs.fixed_s - costs.view_s) / max(recipe_s, 1e-9)
    counts = [max(1, int(count * min(scale, MAX_EPOCH_SCALE))) for count in epochs]
    while True:
        plan = BudgetPlan(min(planned_views, sum(counts)), tuple(counts), True)
        if plan.estimate_seconds(costs) <= left_s:
            return plan
        if max(counts) == 1:
            return replace(plan, is_feasible=False)
        # The other phases give way to one that gets its single epoch only by rounding up.
        counts[counts.index(max(counts))] -= 1

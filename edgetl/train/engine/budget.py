"""What the parts of a run cost on this machine: timed on real images, before anything is planned."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
"""Of a step's time is its forward pass."""
_MAX_FLOAT32_SLOWDOWN = 2.0
"""float32 on the validation images takes at most so many times the fastest prefix."""


@dataclass(frozen=True)
class PhaseFunctions:
    """A phase as it will run."""

    phase: Phase
    has_frozen_blocks: bool
    """Whether anything before what it trains is frozen."""
    forward: Callable[..., Tensor]
    """From its values to logits."""
    intermediate_extractor: Callable[..., Tensors]
    """From the base's values to its own."""


def measure_step_costs(
    has: RunContext, parts: Sequence[PhaseFunctions], base: FrozenBackbone | None, cached: bool
) -> StepCosts:
    """Time loading, the frozen blocks and a step of every phase on batches of training images.

    Args:
        cached: whether the frozen blocks' values will be cached.
    """
    size = min(len(has.train_indices), has.batch_size // has.processes.world_size)
    keys: list[list[ViewKey]] = [
        [(1, index) for index in list(has.train_indices)[:size]]
    ] * _TIMED_BATCHES
    # The first batch imports libraries and starts workers; and of several workers only several batches show the pace.
    next(iter(has.loader(keys[:1])))
    batches, load = _time_call(lambda: list(has.loader(keys)), has.compute_config)
    load /= _TIMED_BATCHES
    pixels, labels = batches[0]
    inputs = (has.compute_config.to_model_input(pixels, has.preprocessing),)
    prefix = base.train_extractor if base else (lambda *values: values)
    prefix(*inputs)
    values, frozen = _time_call(lambda: prefix(*inputs), has.compute_config)
    train, val = (
        len(part) / has.processes.world_size / size for part in (has.train_indices, has.val_indices)
    )
    epochs = []
    plain = 0.0
    for part in parts:
        own, passed = _time_call(
            lambda part=part: (
                part.intermediate_extractor(*values) if part.has_frozen_blocks else inputs
            ),  # type: ignore[misc]
            has.compute_config,
        )
        set_trainable(
            has.adapted_model, part.phase.unfreeze, part.phase.freeze_statistics
        ).train_mode()
        given = tuple(value.float() for value in own)
        step = (
            min(
                measure_step_ms(
                    has.adapted_model.model,
                    part.forward,
                    given,
                    labels.to(has.compute_config.device),
                    has.compute_config,
                ).values()
            )
            / 1e3
        )
        streamed = not (cached and part.has_frozen_blocks)
        before = (
            load + _MAX_FLOAT32_SLOWDOWN * (frozen + passed if part.has_frozen_blocks else 0.0)
            if streamed
            else 0.0
        )
        epochs.append(train * (step + before) + val * (step * _FORWARD_SHARE + before))
        plain = train * (step * _FORWARD_SHARE + before)
    view = train * (load + frozen) if cached else 0.0
    fixed = val * (load + _MAX_FLOAT32_SLOWDOWN * frozen) if cached else 0.0
    # The last phase's way is also the one by which all training images are evaluated in the end.
    return StepCosts(view, fixed + plain + FINALIZATION_S, tuple(epochs))


def _time_call(call: Callable[[], T], computing: ComputeConfig) -> tuple[T, float]:
    # A GPU may still be busy with a warm-up, whose time is not the call's.
    computing.synchronize()
    started = time.perf_counter()
    found = call()
    computing.synchronize()
    return found, time.perf_counter() - started


MAX_EPOCH_SCALE = 3.0
"""Times the recipe's epochs: with more time than that is needed, more epochs would only fit the training images closer."""
FINALIZATION_S = 3.0
"""Kept for what follows the last epoch: final evaluation, plots and metrics."""
_PLANNED_SHARE = 0.85
"""Of the time left is planned for: other programs may slow a machine down after the steps were timed."""


@dataclass(frozen=True)
class StepCosts:
    """Seconds, from measured steps."""

    view_s: float
    """All training images once through the frozen blocks, decoding included; 0 where nothing is cached."""
    fixed_s: float
    """Validation images through the frozen blocks, and the final evaluation."""
    epoch_s: tuple[float, ...]
    """One epoch of each phase, validation included."""


@dataclass(frozen=True)
class BudgetPlan:
    """What fits."""

    views: int
    epochs: tuple[int, ...]
    is_feasible: bool
    """False where even one epoch of each phase is expected to take longer; that is then what is planned."""

    def estimate_seconds(self, costs: StepCosts) -> float:
        """What it is expected to take."""
        return (
            costs.fixed_s
            + self.views * costs.view_s
            + sum(count * cost for count, cost in zip(self.epochs, costs.epoch_s, strict=True))
        )


def plan_budget(left_s: float, costs: StepCosts, epochs: Sequence[int], views: int) -> BudgetPlan:
    """Scale the recipe's epochs, together, to the time that is left; views are given up first, down to two.

    Args:
        left_s: seconds until the run has to be finished.
        epochs: the recipe's, of each phase.
        views: the recipe's.
    """
    planned = left_s * _PLANNED_SHARE
    wanted = sum(count * cost for count, cost in zip(epochs, costs.epoch_s, strict=True))
    for kept in range(views, 0, -1):
        scale = (planned - costs.fixed_s - kept * costs.view_s) / max(wanted, 1e-9)
        if scale >= 1 or kept <= min(2, views):
            break
    if kept == 2 and scale * min(epochs) < 1:
        # One epoch of each phase on one view is better than a run that is not finished.
        kept = 1
        scale = (planned - costs.fixed_s - costs.view_s) / max(wanted, 1e-9)
    counts = tuple(max(1, int(count * min(scale, MAX_EPOCH_SCALE))) for count in epochs)
    found = BudgetPlan(min(kept, sum(counts)), counts, True)
    return BudgetPlan(found.views, found.epochs, found.estimate_seconds(costs) <= left_s)

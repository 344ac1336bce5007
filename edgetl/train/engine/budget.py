"""What the parts of a run cost on this machine: timed on real images, before anything is planned."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

from edgetl.train.common.precision import Computing, Values, step_milliseconds
from edgetl.train.data.loader import Key
from edgetl.train.engine.phases import Phase
from edgetl.train.features.cache import Base, Materials
from edgetl.train.model.freezing import set_trainable

T = TypeVar("T")
_BATCHES = 4
_WITHOUT_GRADIENTS = 1 / 3
"""Of a step's time is its forward pass."""
_EXACT = 2.0
"""float32 on the validation images takes at most so many times the fastest prefix."""


@dataclass(frozen=True)
class PhaseParts:
    """A phase as it will run."""

    phase: Phase
    frozen: bool
    """Whether anything before what it trains is frozen."""
    forward: Callable[..., Tensor]
    """From its values to logits."""
    middle: Callable[..., Values]
    """From the base's values to its own."""


def measure_costs(
    has: Materials, parts: Sequence[PhaseParts], base: Base | None, cached: bool
) -> Costs:
    """Time loading, the frozen blocks and a step of every phase on batches of training images.

    Args:
        cached: whether the frozen blocks' values will be cached.
    """
    size = min(len(has.train), has.batch_size // has.ranks.world)
    keys: list[list[Key]] = [[(1, index) for index in list(has.train)[:size]]] * _BATCHES
    # The first batch imports libraries and starts workers; and of several workers only several batches show the pace.
    next(iter(has.loader(keys[:1])))
    batches, load = _timed(lambda: list(has.loader(keys)), has.computing)
    load /= _BATCHES
    pixels, labels = batches[0]
    inputs = (has.computing.network_input(pixels, has.preprocessing),)
    prefix = base.prefix if base else (lambda *values: values)
    prefix(*inputs)
    values, frozen = _timed(lambda: prefix(*inputs), has.computing)
    train, val = (len(part) / has.ranks.world / size for part in (has.train, has.val))
    epochs = []
    plain = 0.0
    for part in parts:
        own, passed = _timed(
            lambda part=part: part.middle(*values) if part.frozen else inputs,  # type: ignore[misc]
            has.computing,
        )
        set_trainable(has.adapted, part.phase.unfreeze, part.phase.freeze_statistics).train_mode()
        given = tuple(value.float() for value in own)
        step = (
            min(
                step_milliseconds(
                    has.adapted.network,
                    part.forward,
                    given,
                    labels.to(has.computing.device),
                    has.computing,
                ).values()
            )
            / 1e3
        )
        streamed = not (cached and part.frozen)
        before = load + _EXACT * (frozen + passed if part.frozen else 0.0) if streamed else 0.0
        epochs.append(train * (step + before) + val * (step * _WITHOUT_GRADIENTS + before))
        plain = train * (step * _WITHOUT_GRADIENTS + before)
    view = train * (load + frozen) if cached else 0.0
    fixed = val * (load + _EXACT * frozen) if cached else 0.0
    # The last phase's way is also the one by which all training images are evaluated in the end.
    return Costs(view, fixed + plain + FINAL_S, tuple(epochs))


def _timed(call: Callable[[], T], computing: Computing) -> tuple[T, float]:
    # A GPU may still be busy with a warm-up, whose time is not the call's.
    computing.wait()
    started = time.perf_counter()
    found = call()
    computing.wait()
    return found, time.perf_counter() - started


LONGEST = 3.0
"""Times the recipe's epochs: with more time than that is needed, more epochs would only fit the training images closer."""
FINAL_S = 3.0
"""Kept for what follows the last epoch: final evaluation, plots and metrics."""
_RESERVE = 0.85
"""Of the time left is planned for: other programs may slow a machine down after the steps were timed."""


@dataclass(frozen=True)
class Costs:
    """Seconds, from measured steps."""

    view: float
    """All training images once through the frozen blocks, decoding included; 0 where nothing is cached."""
    fixed: float
    """Validation images through the frozen blocks, and the final evaluation."""
    epochs: tuple[float, ...]
    """One epoch of each phase, validation included."""


@dataclass(frozen=True)
class Plan:
    """What fits."""

    views: int
    epochs: tuple[int, ...]
    fits: bool
    """False where even one epoch of each phase is expected to take longer; that is then what is planned."""

    def seconds(self, costs: Costs) -> float:
        """What it is expected to take."""
        return (
            costs.fixed
            + self.views * costs.view
            + sum(count * cost for count, cost in zip(self.epochs, costs.epochs, strict=True))
        )


def plan(left_s: float, costs: Costs, epochs: Sequence[int], views: int) -> Plan:
    """Scale the recipe's epochs, together, to the time that is left; views are given up first, down to two.

    Args:
        left_s: seconds until the run has to be finished.
        epochs: the recipe's, of each phase.
        views: the recipe's.
    """
    planned = left_s * _RESERVE
    wanted = sum(count * cost for count, cost in zip(epochs, costs.epochs, strict=True))
    for kept in range(views, 0, -1):
        scale = (planned - costs.fixed - kept * costs.view) / max(wanted, 1e-9)
        if scale >= 1 or kept <= min(2, views):
            break
    if kept == 2 and scale * min(epochs) < 1:
        # One epoch of each phase on one view is better than a run that is not finished.
        kept = 1
        scale = (planned - costs.fixed - costs.view) / max(wanted, 1e-9)
    counts = tuple(max(1, int(count * min(scale, LONGEST))) for count in epochs)
    found = Plan(min(kept, sum(counts)), counts, True)
    return Plan(found.views, found.epochs, found.seconds(costs) <= left_s)

"""What the parts of a run cost on this machine: timed on real images, before anything is planned."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

from edgetl.train.arithmetic import step_milliseconds
from edgetl.train.computing import Computing
from edgetl.train.filling import Base, Materials
from edgetl.train.freezing import set_trainable
from edgetl.train.loading import Key
from edgetl.train.phases import Phase
from edgetl.train.planning import FINAL_S, Costs
from edgetl.train.prefix import Values

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

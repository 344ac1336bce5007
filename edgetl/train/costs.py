"""What the parts of a run cost on this machine: timed on real images, before anything is planned."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from torch import Tensor

from edgetl.train.arithmetic import step_milliseconds
from edgetl.train.filling import Base, Materials
from edgetl.train.freezing import set_trainable
from edgetl.train.loading import Key
from edgetl.train.phases import Phase
from edgetl.train.planning import FINAL_S, Costs
from edgetl.train.prefix import Values

T = TypeVar("T")
_WITHOUT_GRADIENTS = 1 / 3
"""Of a step's time is its forward pass."""
_EXACT = 2.0
"""float32 on the validation images takes at most so many times the fastest prefix."""


def measure_costs(
    has: Materials,
    phases: Sequence[Phase],
    forwards: Sequence[Callable[..., Tensor]],
    between: Sequence[Callable[..., Values]],
    base: Base | None,
    cached: bool,
) -> Costs:
    """Time loading, the frozen blocks and a step of every phase on one batch of training images.

    Args:
        forwards: of each phase, from its values to logits.
        between: of each phase, from the base's values to its own.
        cached: whether the frozen blocks' values will be cached.
    """
    size = min(len(has.train), has.batch_size)
    keys: list[Key] = [(1, index) for index in list(has.train)[:size]]
    _, load = _timed(lambda: next(iter(has.loader([keys]))))
    pixels, labels = next(iter(has.loader([keys])))
    inputs = (has.computing.network_input(pixels, has.preprocessing),)
    prefix = base.prefix if base else (lambda *values: values)
    prefix(*inputs)
    values, frozen = _timed(lambda: prefix(*inputs))
    train, val = len(has.train) / size, len(has.val) / size
    epochs = []
    for phase, forward, middle in zip(phases, forwards, between, strict=True):
        own, passed = _timed(lambda middle=middle: tuple(value.float() for value in middle(*values)))  # type: ignore[misc]
        set_trainable(has.adapted, phase.unfreeze, phase.freeze_statistics).train_mode()
        targets = labels.to(has.computing.device)
        step = min(step_milliseconds(has.adapted.network, forward, own, targets, has.computing).values()) / 1e3
        streaming = 0.0 if cached else train * (load + frozen + passed) + val * (load + _EXACT * (frozen + passed))
        epochs.append(train * step + val * step * _WITHOUT_GRADIENTS + streaming)
    view = train * (load + frozen) if cached else 0.0
    fixed = val * (load + _EXACT * frozen) if cached else 0.0
    return Costs(view, fixed + FINAL_S, tuple(epochs))


def _timed(call: Callable[[], T]) -> tuple[T, float]:
    started = time.perf_counter()
    found = call()
    return found, time.perf_counter() - started

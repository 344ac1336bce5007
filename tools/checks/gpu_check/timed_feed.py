"""A feed that stops the time of the training loop it feeds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from edgetl.train.features.batches import Batch
from tools.checks.gpu_check.clock import event, wait

PLANNED_STEPS = 1000


@dataclass(frozen=True)
class StepTimes:
    """Times of one training step."""

    wall_ms: float
    """By the clock, over steps in a row; the device is waited for at both ends only."""
    host_ms: float
    """Least time that the loop kept the CPU for a step: what launching it costs."""
    device_ms: float | None
    """By events, from the start of one step to that of the next; None on a CPU."""


class TimedFeed:
    """Batches for `edgetl.train.engine.phase_loop.Epochs`, whose loop asks for the next when a step was launched."""

    def __init__(
        self,
        batches: Callable[[int], Iterator[Batch]],
        batch_size: int,
        steps: int,
        warm_steps: int,
        device: str,
    ) -> None:
        """Take a source of so many batches.

        Args:
            batches: the epoch's number to its batches.
            warm_steps: steps that are not timed.
        """
        self._batches, self._device, self._warm = batches, device, warm_steps
        self.local_batch_size = batch_size
        # A real epoch has more: the trainer captures CUDA graphs where a phase has hundreds of steps.
        self.steps_per_epoch = max(steps, PLANNED_STEPS)
        self._host_s: list[float] = []
        self._events: list[torch.cuda.Event] = []
        self._began = self._ended = 0.0

    def iter_train_batches(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """One epoch."""
        self._host_s, self._events = [], []
        self._began = time.perf_counter()
        for number, batch in enumerate(self._batches(epoch)):
            if number >= self._warm and self._device == "cuda":
                self._events.append(event())
                self._events[-1].record()
            given = time.perf_counter()
            yield batch
            if number >= self._warm:
                self._host_s.append(time.perf_counter() - given)
            else:
                # The first timed step begins with the wait for its batch.
                wait(self._device)
                self._began = time.perf_counter()
        wait(self._device)
        self._ended = time.perf_counter()

    def iter_val_batches(self) -> Iterator[Batch]:
        """Nothing."""
        return iter(())

    def iter_train_eval_batches(self) -> Iterator[Batch]:
        """Nothing."""
        return iter(())

    @property
    def times(self) -> StepTimes:
        """Of the last epoch that was gone through to its end."""
        timed = len(self._host_s)
        device_ms = None
        if len(self._events) > 1:
            device_ms = self._events[0].elapsed_time(self._events[-1]) / (len(self._events) - 1)
        wall_ms = (self._ended - self._began) / timed * 1e3
        return StepTimes(wall_ms, min(self._host_s) * 1e3, device_ms)

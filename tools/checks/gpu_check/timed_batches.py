"""Batch source that times the training loop consuming it."""

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
    """Wall time over consecutive steps, synchronized only before the first and after the last."""
    host_ms: float
    """Shortest CPU time of the loop per step, i.e. the launch overhead."""
    device_ms: float | None
    """Time between the starts of two steps by CUDA events; None on a CPU."""


class TimedBatches:
    """Batches for `edgetl.train.engine.phase_loop.PhaseLoop`, which takes one per launched step."""

    def __init__(
        self,
        batches: Callable[[int], Iterator[Batch]],
        batch_size: int,
        steps: int,
        warmup_steps: int,
        device: str,
    ) -> None:
        """Create a source that times the steps after the warm-up.

        Args:
            batches: function from the epoch number to its batches.
            batch_size: images per batch.
            steps: number of batches per epoch.
            warmup_steps: steps that are not timed.
            device: `cuda` or `cpu`.
        """
        self._batches = batches
        self._device = device
        self._warmup_steps = warmup_steps
        self.local_batch_size = batch_size
        # Claim as many steps as a real epoch: CUDA graphs are captured only for long phases.
        self.steps_per_epoch = max(steps, PLANNED_STEPS)
        self._host_s: list[float] = []
        self._events: list[torch.cuda.Event] = []
        self._started_s = 0.0
        self._finished_s = 0.0

    def iter_train_batches(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch and record the time of each step."""
        self._host_s = []
        self._events = []
        self._started_s = time.perf_counter()
        for number, batch in enumerate(self._batches(epoch)):
            if number >= self._warmup_steps and self._device == "cuda":
                self._events.append(event())
                self._events[-1].record()
            yielded_s = time.perf_counter()
            yield batch
            if number >= self._warmup_steps:
                self._host_s.append(time.perf_counter() - yielded_s)
            else:
                # The first timed step includes the wait for its batch.
                wait(self._device)
                self._started_s = time.perf_counter()
        wait(self._device)
        self._finished_s = time.perf_counter()

    def iter_val_batches(self) -> Iterator[Batch]:
        """Return an empty iterator: there is no validation."""
        return iter(())

    def iter_train_eval_batches(self) -> Iterator[Batch]:
        """Return an empty iterator: there is no evaluation on training images."""
        return iter(())

    @property
    def times(self) -> StepTimes:
        """Times of the last complete epoch."""
        device_ms = None
        if len(self._events) > 1:
            device_ms = self._events[0].elapsed_time(self._events[-1]) / (len(self._events) - 1)
        wall_ms = (self._finished_s - self._started_s) / len(self._host_s) * 1e3
        return StepTimes(wall_ms, min(self._host_s) * 1e3, device_ms)

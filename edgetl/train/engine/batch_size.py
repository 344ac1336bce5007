"""Automatic batch size: search the size that a GPU trains fastest with, and scale the rates."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F

from edgetl.core.artifacts.measured_choices import BatchSizeResult, SearchStopReason
from edgetl.core.config.finetune import FinetuneConfig
from edgetl.train.common.autotune import best_duration_s
from edgetl.train.common.precision import ComputeConfig, cudnn_autotuning, preserve_model_state
from edgetl.train.engine.optim import make_optimizer
from edgetl.train.engine.phases import Phase
from edgetl.train.model.factory import AdaptedModel
from edgetl.train.model.freezing import set_trainable

MIN_STEPS_PER_EPOCH = 16
"""Minimum steps per epoch with a larger batch: half of what the default batch size aims at."""
_MIN_SPEEDUP = 1.1
"""Minimum ratio of throughputs for which doubling the batch is worth its fewer steps."""
_MEMORY_SHARE = 0.5
"""Share of a GPU's free memory that a step may use.

Cached features and resident images need up to a third each, later.
"""


def largest_batch_size(images: int, default: int) -> int:
    """Return the largest power of two with `MIN_STEPS_PER_EPOCH` steps, at least `default`."""
    return max(default, 1 << max(0, (images // MIN_STEPS_PER_EPOCH).bit_length() - 1))


def search_batch_size(
    measure: Callable[[int], float], default: int, largest: int
) -> BatchSizeResult:
    """Double the batch while it fits into memory and the throughput grows by 10%.

    Args:
        measure: takes a batch size and returns images per second; raises torch.OutOfMemoryError or
            MemoryError if it does not fit.
        default: the smallest size. It is chosen if nothing larger is better, even if it does not
            fit: training then reports the error.
        largest: the largest size to try.
    """
    rates: dict[str, float] = {}
    best, best_rate = default, 0.0
    size = default
    stop_reason: SearchStopReason = "steps"
    while size <= largest:
        try:
            rate = measure(size)
        except (torch.OutOfMemoryError, MemoryError):
            stop_reason = "memory"
            break
        rates[str(size)] = rate
        if rate < best_rate * _MIN_SPEEDUP:
            stop_reason = "rate"
            break
        best, best_rate = size, rate
        size *= 2
    return BatchSizeResult(best, default, rates, stop_reason)


class StepTimer:
    """Timer of training steps (forward, backward, optimizer) on random images.

    It works on a copy of the model.
    """

    def __init__(
        self,
        adapted: AdaptedModel,
        phase: Phase,
        config: FinetuneConfig,
        compute_config: ComputeConfig,
        image_size: int,
        world_size: int,
    ) -> None:
        """Copy the model to the device; `phase` is the one with the most trainable parameters."""
        model = copy.deepcopy(adapted.model)
        model.to(device=compute_config.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        adapted_copy = replace(adapted, model=model)
        self._frozen_state = set_trainable(adapted_copy, phase.unfreeze, phase.freeze_statistics)
        self._optimizer = make_optimizer(adapted_copy, config, phase.lr)
        self._scaler = compute_config.make_grad_scaler()
        self._model = model
        self._compute_config = compute_config
        self._image_size = image_size
        self._world_size = world_size

    def __call__(self, batch_size: int) -> float:
        """Return this process's images per second with its share of a batch.

        Raises:
            torch.OutOfMemoryError: if the batch does not fit.
            MemoryError: if it uses more than half of the free memory.
        """
        images = -(-batch_size // self._world_size)
        device = self._compute_config.device
        with preserve_model_state(self._model), cudnn_autotuning(True):
            limit_bytes = self._reset_memory_stats()
            values = torch.randn(images, 3, self._image_size, self._image_size, device=device)
            values = values.contiguous(memory_format=torch.channels_last)
            labels = torch.zeros(images, dtype=torch.int64, device=device)
            self._frozen_state.train_mode()

            def run_steps(count: int) -> None:
                for _ in range(count):
                    self._step(values, labels)

            run_steps(3)
            step_s = best_duration_s(partial(run_steps, 5), 3, self._compute_config.synchronize) / 5
        if limit_bytes is not None and torch.cuda.max_memory_reserved(device) > limit_bytes:
            raise MemoryError(
                f"A batch of {images} images needs more than {_MEMORY_SHARE:.0%} of the free GPU memory."
            )
        return images / step_s

    def _step(self, values: torch.Tensor, labels: torch.Tensor) -> None:
        with self._compute_config.autocast():
            logits = self._model(values)
        self._optimizer.zero_grad()
        self._scaler.scale(F.cross_entropy(logits.float(), labels)).backward()  # type: ignore[no-untyped-call]
        self._scaler.step(self._optimizer)
        self._scaler.update()

    def _reset_memory_stats(self) -> int | None:
        """Return the limit on reserved GPU memory in bytes; None on a CPU."""
        device = self._compute_config.device
        if device.type != "cuda":
            return None
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        free_bytes, _ = torch.cuda.mem_get_info(device)
        return torch.cuda.memory_reserved(device) + int(_MEMORY_SHARE * free_bytes)


def autotune_batch_size(
    adapted: AdaptedModel,
    phase: Phase,
    config: FinetuneConfig,
    compute_config: ComputeConfig,
    image_size: int,
    images: int,
    default: int,
    world_size: int = 1,
) -> BatchSizeResult:
    """Search the batch size on a GPU; return the default on a CPU.

    Args:
        adapted: the model; it is not changed.
        phase: the phase with the most trainable parameters.
        config: the configuration.
        compute_config: device and precision.
        image_size: side of the input images in pixels.
        images: training images per epoch.
        default: the batch size without `auto`.
        world_size: number of processes that divide a batch.
    """
    if compute_config.device.type != "cuda":
        return BatchSizeResult(default, default)
    timer = StepTimer(adapted, phase, config, compute_config, image_size, world_size)
    result = search_batch_size(timer, default, largest_batch_size(images, default))
    del timer
    torch.cuda.empty_cache()
    # The peak memory that the run reports must not include the search.
    torch.cuda.reset_peak_memory_stats(compute_config.device)
    return result


_STOP_REASON_TEXTS: dict[SearchStopReason, str] = {
    "memory": "a larger one needs too much GPU memory",
    "rate": "a larger one is less than 10% faster",
    "steps": f"a larger one leaves fewer than {MIN_STEPS_PER_EPOCH} steps per epoch",
    "not searched": "nothing was tried",
}


def describe_batch_size(result: BatchSizeResult, device: str) -> str:
    """Return a message about the choice of `--batch-size auto`."""
    if device == "cpu":
        return f"--batch-size auto: {result.usual} images per step, the default on a CPU."
    return (
        f"--batch-size auto: {result.batch_size} images per step (default {result.usual}), "
        f"learning rates scaled by {result.lr_scale:.2f}; {_STOP_REASON_TEXTS[result.ended]}."
    )

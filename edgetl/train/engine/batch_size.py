"""The batch size that a GPU trains fastest with, found by real steps, and the learning rate that goes with it."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F

from edgetl.core.config.finetune import FinetuneConfig
from edgetl.train.common.precision import ComputeConfig, cudnn_autotuning, preserve_model_state
from edgetl.train.engine.optim import make_optimizer
from edgetl.train.engine.phases import Phase
from edgetl.train.model.factory import AdaptedModel
from edgetl.train.model.freezing import set_trainable

SearchStopReason = Literal["memory", "rate", "steps", "not searched"]

MIN_STEPS_PER_EPOCH = 16
"""Steps of an epoch that a larger batch must leave: half of what the usual batch size aims at."""
_MIN_SPEEDUP = 1.1
"""Ratio of rates, images a second, for which doubling the batch is worth its fewer steps."""
_MEMORY_SHARE = 0.5
"""Of a GPU's free memory that a step may take: cached activations and images that stay there need up to a third each, later."""


@dataclass(frozen=True)
class BatchSizeResult:
    """A batch size as `--batch-size auto` decided it."""

    batch_size: int
    """Images a step, of all processes together."""
    usual: int
    """The size without `auto`, which learning rates are meant for."""
    images_per_second: dict[str, float] = field(default_factory=dict)
    """In the first process, by batch size; empty where nothing was tried."""
    ended: SearchStopReason = "not searched"
    """Why no larger batch was taken: memory, a rate that no longer grew, or too few steps an epoch."""

    @property
    def lr_scale(self) -> float:
        """Factor on learning rates: the square root of the ratio of batch sizes.

        Malladi et al., "On the SDEs and Scaling Rules for Adaptive Gradient Algorithms" (2022). Their rule also changes Adam's betas and
        epsilon; these stay as they are.
        """
        return math.sqrt(self.batch_size / self.usual)

    def to_json(self) -> dict[str, Any]:
        """Return its fields and the factor on learning rates, for config.json and metrics.json."""
        return {**asdict(self), "lr_scale": self.lr_scale}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> BatchSizeResult:
        """Read what `to_json` gave."""
        return cls(**{name: value for name, value in content.items() if name != "lr_scale"})


def largest_batch_size(images: int, usual: int) -> int:
    """Return the largest power of two that leaves LEAST_STEPS steps an epoch of `images`; `usual` where that is larger."""
    return max(usual, 1 << max(0, (images // MIN_STEPS_PER_EPOCH).bit_length() - 1))


def search_batch_size(measure: Callable[[int], float], usual: int, largest: int) -> BatchSizeResult:
    """Double the batch while it fits into memory and the rate grows by a tenth.

    Args:
        measure: takes a batch size, returns images a second; raises torch.OutOfMemoryError or MemoryError where it does not fit.
        usual: the size to begin with. It is taken if nothing larger is better, even if it does not fit: training then tells.
        largest: none above this is tried.
    """
    rates: dict[str, float] = {}
    best, best_rate = usual, 0.0
    size = usual
    ended: SearchStopReason = "steps"
    while size <= largest:
        try:
            rate = measure(size)
        except (torch.OutOfMemoryError, MemoryError):
            ended = "memory"
            break
        rates[str(size)] = rate
        if rate < best_rate * _MIN_SPEEDUP:
            ended = "rate"
            break
        best, best_rate = size, rate
        size *= 2
    return BatchSizeResult(best, usual, rates, ended)


class StepTimer:
    """Times whole training steps (forward, backward, optimizer) on random images, on a copy of the network."""

    def __init__(
        self,
        adapted: AdaptedModel,
        phase: Phase,
        config: FinetuneConfig,
        computing: ComputeConfig,
        image_size: int,
        processes: int,
    ) -> None:
        """Copy the network to the device; `phase` says what is trained: the phase that trains most."""
        network = copy.deepcopy(adapted.model)
        network.to(device=computing.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        copied = replace(adapted, model=network)
        self._frozen_state = set_trainable(copied, phase.unfreeze, phase.freeze_statistics)
        self._optimizer = make_optimizer(copied, config, phase.lr)
        self._scaler = computing.make_grad_scaler()
        self._model, self._compute_config, self._image_size, self._world_size = (
            network,
            computing,
            image_size,
            processes,
        )

    def __call__(self, batch_size: int) -> float:
        """Return images a second of this process, with its share of a batch.

        Raises:
            torch.OutOfMemoryError: the batch does not fit at all.
            MemoryError: it takes more than half of the memory that was free.
        """
        images = -(-batch_size // self._world_size)
        device = self._compute_config.device
        with preserve_model_state(self._model), cudnn_autotuning(True):
            limit = self._begin_memory_count()
            values = torch.randn(images, 3, self._image_size, self._image_size, device=device)
            values = values.contiguous(memory_format=torch.channels_last)
            labels = torch.zeros(images, dtype=torch.int64, device=device)
            self._frozen_state.train_mode()
            for _ in range(3):
                self._step(values, labels)
            taken = []
            for _ in range(3):
                self._compute_config.synchronize()
                started = time.perf_counter()
                for _ in range(5):
                    self._step(values, labels)
                self._compute_config.synchronize()
                taken.append((time.perf_counter() - started) / 5)
        if limit is not None and torch.cuda.max_memory_reserved(device) > limit:
            raise MemoryError(
                f"A batch of {images} images takes more than {_MEMORY_SHARE:.0%} of the free GPU memory."
            )
        return images / min(taken)

    def _step(self, values: torch.Tensor, labels: torch.Tensor) -> None:
        with self._compute_config.autocast():
            logits = self._model(values)
        self._optimizer.zero_grad()
        self._scaler.scale(F.cross_entropy(logits.float(), labels)).backward()  # type: ignore[no-untyped-call]
        self._scaler.step(self._optimizer)
        self._scaler.update()

    def _begin_memory_count(self) -> int | None:
        device = self._compute_config.device
        if device.type != "cuda":
            return None
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        free, _ = torch.cuda.mem_get_info(device)
        return torch.cuda.memory_reserved(device) + int(_MEMORY_SHARE * free)


def autotune_batch_size(
    adapted: AdaptedModel,
    phase: Phase,
    config: FinetuneConfig,
    computing: ComputeConfig,
    image_size: int,
    images: int,
    usual: int,
    processes: int = 1,
) -> BatchSizeResult:
    """Search the batch size on a GPU; the usual one on a CPU.

    Args:
        phase: the one that trains most.
        images: training images of an epoch.
        usual: the batch size without `auto`.
        processes: that divide a batch.
    """
    if computing.device.type != "cuda":
        return BatchSizeResult(usual, usual)
    timer = StepTimer(adapted, phase, config, computing, image_size, processes)
    fit = search_batch_size(timer, usual, largest_batch_size(images, usual))
    del timer
    torch.cuda.empty_cache()
    # What was tried is no part of what the run will have taken.
    torch.cuda.reset_peak_memory_stats(computing.device)
    return fit


_STOP_REASON_TEXTS: dict[SearchStopReason, str] = {
    "memory": "a larger one takes too much GPU memory",
    "rate": "a larger one gives less than a tenth more images a second",
    "steps": f"a larger one would leave fewer than {MIN_STEPS_PER_EPOCH} steps an epoch",
    "not searched": "nothing was tried",
}


def describe_batch_size(fit: BatchSizeResult, device: str) -> str:
    """Say what `--batch-size auto` decided, for the user."""
    if device == "cpu":
        return (
            f"--batch-size auto: on a CPU this is the usual batch size, {fit.usual} images a step."
        )
    return (
        f"--batch-size auto: {fit.batch_size} images a step (usually {fit.usual}), learning rates times {fit.lr_scale:.2f}; "
        f"{_STOP_REASON_TEXTS[fit.ended]}."
    )

"""Automatic choices of a run, based on timing or free memory.

They are stored in the run's config.json and reused by `--resume` and by reruns (`--config`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from edgetl.core.config.finetune import MAX_EPOCHS, MAX_VIEWS, FinetuneConfig
from edgetl.core.config.options import get_option_fields
from edgetl.core.typed_json import FieldError, computed, parse_as

_MAX_THREADS = 4096


SearchStopReason = Literal["memory", "rate", "steps", "not searched"]
StepRunner = Literal["eager", "cuda-graph"]


@dataclass(frozen=True)
class BatchSizeResult:
    """Batch size that `--batch-size auto` chose."""

    batch_size: int
    """Images per step, over all processes."""
    usual: int
    """Default batch size, for which the learning rates are meant."""
    images_per_second: Mapping[str, float] = field(default_factory=dict)
    """Throughput of the main process, by batch size; empty if nothing was tried."""
    ended: SearchStopReason = "not searched"
    """Why no larger batch was chosen: memory, throughput, or too few steps per epoch."""

    def __post_init__(self) -> None:
        if min(self.batch_size, self.usual) < 1:
            raise FieldError(
                f"batch_size and usual must be >= 1, got {self.batch_size} and {self.usual}"
            )

    @computed
    def lr_scale(self) -> float:
        """Factor on learning rates: the square root of the ratio of batch sizes.

        Malladi et al., "On the SDEs and Scaling Rules for Adaptive Gradient Algorithms" (2022).
        Their rule also changes Adam's betas and epsilon, which are kept here.
        """
        return math.sqrt(self.batch_size / self.usual)


@dataclass(frozen=True)
class FrozenBlockRuntimes:
    """Runtimes for the frozen blocks, by name: `pytorch-bf16`, `onnxruntime-fp32`."""

    fast: str
    """Runtime for training images."""
    exact: str
    """Runtime for validation images, in float32."""


@dataclass(frozen=True)
class AutoChoices:
    """Choices that depend on timing, free memory or the machine and affect the trained weights.

    None or a missing entry means not decided yet.
    """

    device: Literal["cpu", "cuda"] | None = None
    """Training device."""
    threads: int | None = None
    """PyTorch's CPU threads; sums are split among them, so their number changes the last bits."""
    cache_budget: int | None = None
    """Size limit of the feature cache, bytes."""
    batch: BatchSizeResult | None = None
    """Result of `--batch-size auto`."""
    frozen_blocks: Mapping[str, FrozenBlockRuntimes] = field(default_factory=dict)
    """Runtimes for the frozen blocks, by the name of the cut after them."""
    cached: bool | None = None
    """Whether epochs read cached features instead of computing them from the images."""
    views: int | None = None
    """Cached views of each training image."""
    epochs: tuple[int, ...] | None = None
    """Epochs of each phase if planned by `--budget`."""
    ended_after: Mapping[str, int] = field(default_factory=dict)
    """Epochs after which `--budget` stopped a phase early, by phase number."""
    input_device: Literal["cpu", "cuda"] | None = None
    """Device that decodes and augments streamed training images; None if there is no choice."""
    precision: Mapping[str, Literal["fp32", "bf16", "fp16"]] = field(default_factory=dict)
    """Precision of training steps, by phase number."""
    steps: Mapping[str, StepRunner] = field(default_factory=dict)
    """Execution mode of training steps, by phase number."""

    def __post_init__(self) -> None:
        ranges = {
            "threads": (self.threads, 1, _MAX_THREADS),
            "cache_budget": (self.cache_budget, 0, 2**62),
            "views": (self.views, 0, MAX_VIEWS),
            **{
                f"epochs[{index}]": (count, 0, MAX_EPOCHS)
                for index, count in enumerate(self.epochs or ())
            },
            **{
                f"ended_after.{phase}": (count, 0, MAX_EPOCHS)
                for phase, count in self.ended_after.items()
            },
        }
        for name, (value, minimum, maximum) in ranges.items():
            if value is not None and not minimum <= value <= maximum:
                raise FieldError(f"{name} must be {minimum} to {maximum}, got {value}")

    @classmethod
    def from_json(cls, content: Any) -> AutoChoices:
        """Parse the section `choices` of config.json.

        Raises:
            FieldError: A field is unknown, because an unknown choice cannot be repeated, has the
                wrong type, or is out of range.
        """
        return parse_as(cls, content, "choices")


def find_changed_choice_inputs(recorded: FinetuneConfig, config: FinetuneConfig) -> list[str]:
    """Return the names of fields that affect choices and differ from the recorded run."""
    return [
        declared.name
        for declared in get_option_fields(FinetuneConfig)
        if declared.option.affects_choices
        and getattr(recorded, declared.name) != getattr(config, declared.name)
    ]

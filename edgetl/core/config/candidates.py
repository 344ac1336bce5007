"""Configuration of `edgetl candidates`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgetl.core.config.options import (
    check,
    check_minimum,
    check_positive,
    check_seed,
    raise_config_errors,
)

MIN_IMAGE_SIZE = 32
"""Smallest image size, pixels; the same as for `edgetl finetune --image-size`."""


@dataclass(frozen=True)
class CandidatesConfig:
    """Options of `edgetl candidates`."""

    architectures: tuple[str, ...]
    """Names of torchvision architectures."""
    classes: int = 10
    """Width of the new head."""
    image_sizes: tuple[int, ...] = ()
    """Sides of the square input, pixels; empty uses each architecture's own."""
    latency_budget_ms: float | None = None
    """Largest p50 of one image, model with preprocessing; None is no budget."""
    threads: int | None = None
    """Intra-op threads; None uses the available cores."""
    provider: str = "cpu"
    """Execution provider of ONNX Runtime."""
    rounds: int = 8
    """Number of rounds; each runs every candidate once, in random order, in fresh processes."""
    output: Path | None = None
    """Result file to write; None chooses a new name in ./bench."""
    seed: int = 0
    """Seed for the weights and the order within rounds."""
    force: bool = False
    """Allow more threads than there are cores."""

    def __post_init__(self) -> None:
        small = [str(size) for size in self.image_sizes if size < MIN_IMAGE_SIZE]
        raise_config_errors(
            [
                check(
                    bool(self.architectures),
                    "ARCHITECTURE must name at least one; `edgetl models` lists them.",
                ),
                check_minimum("--classes", self.classes, 2),
                check(
                    not small,
                    f"--image-size must be at least {MIN_IMAGE_SIZE} pixels, got {', '.join(small)}.",
                ),
                check_positive("--latency-budget", self.latency_budget_ms, " ms"),
                check_minimum("--threads", self.threads, 1),
                check_minimum("--rounds", self.rounds, 2, "an interval needs two"),
                check_seed("--seed", self.seed),
            ]
        )

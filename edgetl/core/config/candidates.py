"""Configuration of `edgetl bench ARCHITECTURE...`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from edgetl.core.config.options import raise_config_errors

MIN_IMAGE_SIZE = 32
"""Pixels; as `edgetl finetune --image-size`."""


@dataclass(frozen=True)
class CandidatesConfig:
    """What to time, and against which budget."""

    architectures: tuple[str, ...]
    """torchvision's names."""
    classes: int = 10
    """Width of the new head."""
    image_sizes: tuple[int, ...] = ()
    """Sides of the input, pixels; none takes each architecture's own."""
    latency_budget_ms: float | None = None
    """Largest p50, one image, network with its preprocessing; None only measures."""
    threads: int | None = None
    """Intra-op threads; None takes the cores available."""
    provider: str = "cpu"
    """ONNX Runtime's execution provider."""
    rounds: int = 8
    """Rounds; each runs every candidate once, in random order, in a fresh process."""
    output: Path | None = None
    """The result file to write; None chooses a new name in bench/ under the current folder."""
    seed: int = 0
    """Seed of the weights and of the order within rounds."""
    force: bool = False
    """Measure with more threads than there are cores."""

    def __post_init__(self) -> None:
        small = [str(size) for size in self.image_sizes if size < MIN_IMAGE_SIZE]
        budget = self.latency_budget_ms
        raise_config_errors(
            [
                None
                if self.architectures
                else "--candidates names at least one architecture; `edgetl models` lists them.",
                None if self.classes >= 2 else f"--classes is at least 2, not {self.classes}.",
                f"--image-size is at least {MIN_IMAGE_SIZE} pixels, not {', '.join(small)}."
                if small
                else None,
                None
                if budget is None or 0 < budget < math.inf
                else f"--latency-budget is above 0 and finite, not {budget:g} ms.",
                None
                if self.threads is None or self.threads >= 1
                else f"--threads is at least 1, not {self.threads}.",
                None
                if self.rounds >= 2
                else f"--rounds is at least 2 (an interval needs it), not {self.rounds}.",
                None if 0 <= self.seed < 2**63 else f"--seed lies in [0, 2^63), not {self.seed}.",
            ]
        )

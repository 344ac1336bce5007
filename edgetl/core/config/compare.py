"""What `edgetl compare` is asked to do, and the runs that it consists of."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from edgetl.core.config.options import raise_config_errors

STRATEGIES = ("scratch", "head", "finetune", "full", "freeze-sweep")
"""What can be asked for."""
EQUAL_TIME = "scratch-equal-time"
"""From nothing, in the time that a pretrained strategy took."""
STRATEGY_DESCRIPTIONS = {
    "scratch": "random weights, everything trained",
    EQUAL_TIME: "random weights, everything trained, planned for the time that the pretrained network took; one epoch is the least",
    "head": "pretrained, backbone frozen, only the new head trained",
    "finetune": "pretrained, the head, then the last blocks as well",
    "freeze-75": "pretrained, the head, then the last quarter of the blocks",
    "freeze-50": "pretrained, the head, then the last half of the blocks",
    "freeze-25": "pretrained, the head, then the last three quarters of the blocks",
    "full": "pretrained, the head, then everything",
}
"""What each strategy is, in the order of tables."""
FREEZE_SWEEP = ("head", "freeze-75", "freeze-50", "freeze-25", "full")
REFERENCE_STRATEGIES = ("finetune", "full", "head")
"""Fine-tuning with all, 3/4, 1/2, 1/4 and none of the blocks frozen."""


@dataclass(frozen=True)
class CompareConfig:
    """Options of `edgetl compare`; the recipe that all runs share is a FinetuneConfig of its own."""

    output: Path
    """The experiment's folder; one that holds a part of the same experiment is gone on with."""
    models: tuple[str, ...] = ("mobilenet_v2", "resnet50")
    strategies: tuple[str, ...] = ("scratch", "head", "finetune")
    seeds: int = 3
    """Runs of each strategy, seeds 0, 1, ...; all on one split."""
    image_sizes: tuple[int, ...] = ()
    """Sides of the input, pixels; none takes each architecture's own."""
    epochs: int = 16
    """Of every run, over both phases."""
    budget_s: float | None = None
    """Seconds that each run may take at most; epochs are then set from measured steps, up to three times the recipe's."""
    target_accuracy: float = 0.8
    """Validation accuracy whose time is told; training goes on after it."""
    latency_budget_ms: float | None = None
    """Largest p50 on this device; what is above it is not trained."""
    bench: bool = True
    """Export the best run of each network and time it."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.strategies if name not in STRATEGIES]
        budget, latency = self.budget_s, self.latency_budget_ms
        raise_config_errors(
            [
                None
                if self.models
                else "--models names at least one architecture; `edgetl models` lists them.",
                None
                if self.strategies
                else f"--strategies names at least one of {', '.join(STRATEGIES)}.",
                f"--strategies knows {', '.join(STRATEGIES)}, not {', '.join(map(repr, unknown))}."
                if unknown
                else None,
                None if self.seeds >= 1 else f"--seeds is at least 1, not {self.seeds}.",
                None
                if all(size >= 32 for size in self.image_sizes)
                else "--image-size is at least 32 pixels.",
                None
                if self.epochs >= 2
                else f"--epochs is at least 2 (one of each phase), not {self.epochs}.",
                None
                if budget is None or 0 < budget < math.inf
                else f"--budget is above 0 and finite, not {budget} s.",
                None
                if 0 < self.target_accuracy <= 1
                else f"--target-accuracy lies in (0, 1], not {self.target_accuracy}.",
                None
                if latency is None or 0 < latency < math.inf
                else f"--latency-budget is above 0 and finite, not {latency:g} ms.",
            ]
        )

    @property
    def expanded_strategies(self) -> tuple[str, ...]:
        """Strategies as they are run, each once, in the order of tables."""
        wanted = {
            one
            for name in self.strategies
            for one in (FREEZE_SWEEP if name == "freeze-sweep" else (name,))
        }
        if (
            "scratch" in wanted
            and wanted.intersection(REFERENCE_STRATEGIES)
            and self.budget_s is None
        ):
            wanted.add(EQUAL_TIME)
        return tuple(name for name in STRATEGY_DESCRIPTIONS if name in wanted)

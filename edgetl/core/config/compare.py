"""Configuration of `edgetl compare`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgetl.core.config.options import (
    check,
    check_minimum,
    check_positive,
    raise_config_errors,
)

STRATEGIES = ("scratch", "head", "finetune", "full", "freeze-sweep")
"""Values of `--strategies`."""
EQUAL_TIME = "scratch-equal-time"
"""Training from scratch in the time that a pretrained strategy took."""
STRATEGY_DESCRIPTIONS = {
    "scratch": "random weights, everything trained",
    EQUAL_TIME: "random weights, everything trained, in the time of the pretrained run; at least one epoch",
    "head": "pretrained, frozen backbone, only the new head trained",
    "finetune": "pretrained, first the head, then the last blocks as well",
    "freeze-75": "pretrained, first the head, then the last quarter of the blocks",
    "freeze-50": "pretrained, first the head, then the last half of the blocks",
    "freeze-25": "pretrained, first the head, then the last three quarters of the blocks",
    "full": "pretrained, first the head, then everything",
}
"""Description of each strategy, in the order of tables."""
FREEZE_SWEEP = ("head", "freeze-75", "freeze-50", "freeze-25", "full")
"""Fine-tuning with all, 3/4, 1/2, 1/4 and none of the blocks frozen."""
REFERENCE_STRATEGIES = ("finetune", "full", "head")
"""Pretrained strategies whose duration scratch-equal-time can use, in order of preference."""


@dataclass(frozen=True)
class CompareConfig:
    """Options of `edgetl compare`; the recipe of all runs is a separate FinetuneConfig."""

    output: Path
    """Folder of the experiment; an unfinished experiment with the same options is resumed."""
    models: tuple[str, ...] = ("mobilenet_v2", "resnet50")
    strategies: tuple[str, ...] = ("scratch", "head", "finetune")
    seeds: int = 3
    """Number of runs of each strategy, with seeds 0, 1, ... on the same split."""
    image_sizes: tuple[int, ...] = ()
    """Sides of the square input, pixels; empty uses each architecture's own."""
    epochs: int = 16
    """Epochs of every run, over both phases."""
    budget_s: float | None = None
    """Time limit of each run, seconds; epochs are then planned from measured steps, up to three
    times those of the recipe."""
    target_accuracy: float = 0.8
    """Validation accuracy for which the time to reach it is reported; training continues after
    it."""
    latency_budget_ms: float | None = None
    """Largest p50 on this device; slower architectures are not trained."""
    bench: bool = True
    """Whether to export and time the best run of each network."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.strategies if name not in STRATEGIES]
        raise_config_errors(
            [
                check(
                    bool(self.models),
                    "--models must name at least one architecture; `edgetl models` lists them.",
                ),
                check(
                    bool(self.strategies),
                    f"--strategies must name at least one of {', '.join(STRATEGIES)}.",
                ),
                check(
                    not unknown,
                    f"--strategies must be among {', '.join(STRATEGIES)}, "
                    f"got {', '.join(map(repr, unknown))}.",
                ),
                check_minimum("--seeds", self.seeds, 1),
                check(
                    all(size >= 32 for size in self.image_sizes),
                    "--image-size must be at least 32 pixels.",
                ),
                check_minimum("--epochs", self.epochs, 2, "one for each phase"),
                check_positive("--budget", self.budget_s, " s"),
                check(
                    0 < self.target_accuracy <= 1,
                    f"--target-accuracy must be in (0, 1], got {self.target_accuracy}.",
                ),
                check_positive("--latency-budget", self.latency_budget_ms, " ms"),
            ]
        )

    @property
    def expanded_strategies(self) -> tuple[str, ...]:
        """Strategies to run, each once, in the order of tables.

        `freeze-sweep` is expanded, and scratch-equal-time is added to scratch beside a pretrained
        strategy unless a budget sets the time of all runs.
        """
        expanded: set[str] = set()
        for name in self.strategies:
            expanded.update(FREEZE_SWEEP if name == "freeze-sweep" else (name,))
        has_reference = bool(expanded.intersection(REFERENCE_STRATEGIES))
        if "scratch" in expanded and has_reference and self.budget_s is None:
            expanded.add(EQUAL_TIME)
        return tuple(name for name in STRATEGY_DESCRIPTIONS if name in expanded)

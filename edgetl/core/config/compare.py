"""What `edgetl compare` is asked to do, and the runs that it consists of."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgetl.core.config.finetune import FinetuneConfig
from edgetl.core.config.options import raise_config_errors
from edgetl.core.errors import ConfigError

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
"""Fine-tuning with all, 3/4, 1/2, 1/4 and none of the blocks frozen."""
_REFERENCE_STRATEGIES = ("finetune", "full", "head")
_HEAD_PHASE_SHARE = 10 / 16
"""Of the epochs of a strategy with two phases, the first phase's: as in the default recipe."""


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
            and wanted.intersection(_REFERENCE_STRATEGIES)
            and self.budget_s is None
        ):
            wanted.add(EQUAL_TIME)
        return tuple(name for name in STRATEGY_DESCRIPTIONS if name in wanted)


@dataclass(frozen=True)
class NetworkSpec:
    """An architecture at an image size."""

    architecture: str
    image_size: int
    """Side of the input, pixels."""
    blocks: int
    """Of the backbone."""

    @property
    def name(self) -> str:
        """Unique in an experiment."""
        return f"{self.architecture}-{self.image_size}"


@dataclass(frozen=True)
class PlannedRun:
    """One run of the experiment."""

    network: NetworkSpec
    strategy: str
    seed: int
    config: FinetuneConfig
    budget_run: str | None = None
    """The run whose total time is this one's budget."""

    @property
    def row(self) -> str:
        """What runs of all seeds have in common."""
        return f"{self.network.name}-{self.strategy}"

    @property
    def name(self) -> str:
        """Unique in an experiment; the run directory's name."""
        return f"{self.row}-s{self.seed}"


def plan_runs(
    config: CompareConfig, recipe: FinetuneConfig, networks: Sequence[NetworkSpec], folder: Path
) -> list[PlannedRun]:
    """Every run in the order in which they are run: a whole experiment of the first seed first, and what is quick before what is slow.

    Args:
        recipe: what all runs share: data, weights and training procedure.
        networks: architectures and image sizes.
        folder: where the run directories go.

    Raises:
        ConfigError: pretrained strategies without weights.
    """
    pretrained = [
        name for name in config.expanded_strategies if name not in ("scratch", EQUAL_TIME)
    ]
    if recipe.weights == "none" and pretrained:
        raise ConfigError(
            f"--weights none has nothing pretrained for {', '.join(pretrained)}. Give weights, or --strategies scratch."
        )
    runs = [
        run
        for seed in range(config.seeds)
        for network in networks
        for run in _plan_network_runs(config, recipe, network, seed)
    ]
    return [replace(run, config=replace(run.config, output=folder / run.name)) for run in runs]


def _plan_network_runs(
    config: CompareConfig, recipe: FinetuneConfig, network: NetworkSpec, seed: int
) -> Iterator[PlannedRun]:
    strategies = config.expanded_strategies
    base = replace(
        recipe,
        model=network.architecture,
        image_size=network.image_size,
        seed=seed,
        split_seed=recipe.resolved_split_seed,
        budget_s=config.budget_s,
        target_accuracy=None,
        patience=None,
        force=True,
    )
    head_epochs = min(config.epochs - 1, max(1, round(_HEAD_PHASE_SHARE * config.epochs)))
    one_phase: dict[str, Any] = {"epochs": config.epochs, "finetune_epochs": 0}
    two_phases: dict[str, Any] = {
        "epochs": head_epochs,
        "finetune_epochs": config.epochs - head_epochs,
    }
    unfreeze = {
        "full": "all",
        **{
            f"freeze-{share}": str(_count_unfrozen_blocks(share, network.blocks))
            for share in (25, 50, 75)
        },
    }
    reference = next((name for name in _REFERENCE_STRATEGIES if name in strategies), None)
    last = (EQUAL_TIME, "scratch")
    for strategy in [
        *(name for name in strategies if name not in last),
        *(name for name in last if name in strategies),
    ]:
        if strategy in last:
            own = replace(base, weights="none", **one_phase)
        elif strategy == "head":
            own = replace(base, unfreeze="head", **one_phase)
        else:
            own = replace(base, unfreeze=unfreeze.get(strategy, recipe.unfreeze), **two_phases)
        timed_by = f"{network.name}-{reference}-s{seed}" if strategy == EQUAL_TIME else None
        yield PlannedRun(network, strategy, seed, own, timed_by)


def _count_unfrozen_blocks(share: int, blocks: int) -> int:
    return blocks - round(blocks * share / 100)

"""Strategies x seeds x networks to planned runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgetl.core.config.compare import EQUAL_TIME, REFERENCE_STRATEGIES, CompareConfig
from edgetl.core.config.finetune import FinetuneConfig
from edgetl.core.errors import ConfigError

_HEAD_PHASE_SHARE = 10 / 16
"""Of the epochs of a strategy with two phases, the first phase's: as in the default recipe."""


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
    reference = next((name for name in REFERENCE_STRATEGIES if name in strategies), None)
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

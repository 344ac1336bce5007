"""Expansion of strategies, seeds and networks to planned runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgetl.core.architectures import file_stem, source_of
from edgetl.core.config.compare import EQUAL_TIME, REFERENCE_STRATEGIES, CompareConfig
from edgetl.core.config.finetune import FinetuneConfig
from edgetl.core.errors import ConfigError

_HEAD_PHASE_SHARE = 10 / 16
"""Share of the epochs spent in the head phase of two-phase strategies, as in the default recipe."""


@dataclass(frozen=True)
class NetworkSpec:
    """An architecture with an image size."""

    architecture: str
    image_size: int
    """Side of the square input in pixels."""
    blocks: int
    """Number of blocks of the backbone."""

    @property
    def name(self) -> str:
        """Name, unique in an experiment."""
        return f"{file_stem(self.architecture)}-{self.image_size}"


@dataclass(frozen=True)
class PlannedRun:
    """One training run of an experiment."""

    network: NetworkSpec
    strategy: str
    seed: int
    config: FinetuneConfig
    budget_run: str | None = None
    """Name of the run whose total time is the budget of this run."""

    @property
    def row(self) -> str:
        """Name of the table row that the runs of all seeds share."""
        return f"{self.network.name}-{self.strategy}"

    @property
    def name(self) -> str:
        """Name, unique in an experiment; also the name of the run directory."""
        return f"{self.row}-s{self.seed}"


def plan_runs(
    config: CompareConfig, recipe: FinetuneConfig, networks: Sequence[NetworkSpec], folder: Path
) -> list[PlannedRun]:
    """Return all runs in execution order: seed by seed, fast strategies before slow ones.

    Args:
        config: strategies, seeds and epochs.
        recipe: data, weights and training options shared by all runs.
        networks: architectures with their image sizes.
        folder: parent of the run directories.

    Raises:
        ConfigError: `config` has pretrained strategies and `recipe` has no weights.
    """
    pretrained = [
        name for name in config.expanded_strategies if name not in ("scratch", EQUAL_TIME)
    ]
    if recipe.weights == "none" and pretrained:
        raise ConfigError(
            f"{{weights}} none does not work with {', '.join(pretrained)}: these strategies need "
            "pretrained weights. Give weights, or compare only scratch.",
            FinetuneConfig,
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
    weights = recipe.weights
    if weights == "auto" and source_of(network.architecture) != "python":
        weights = "imagenet"  # as in the plans of versions without `auto`
    base = replace(
        recipe,
        model=network.architecture,
        weights=weights,
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
    finetune_epochs = config.epochs - head_epochs
    two_phases: dict[str, Any] = {"epochs": head_epochs, "finetune_epochs": finetune_epochs}
    unfreeze = {"full": "all"}
    for share in (25, 50, 75):
        unfreeze[f"freeze-{share}"] = str(_count_unfrozen_blocks(share, network.blocks))
    reference = next((name for name in REFERENCE_STRATEGIES if name in strategies), None)
    slowest = (EQUAL_TIME, "scratch")
    fast = [name for name in strategies if name not in slowest]
    for strategy in [*fast, *(name for name in slowest if name in strategies)]:
        if strategy in slowest:
            run_config = replace(base, weights="none", **one_phase)
        elif strategy == "head":
            run_config = replace(base, unfreeze="head", **one_phase)
        else:
            blocks = unfreeze.get(strategy, recipe.unfreeze)
            run_config = replace(base, unfreeze=blocks, **two_phases)
        budget_run = None
        if strategy == EQUAL_TIME:
            budget_run = f"{network.name}-{reference}-s{seed}"
        yield PlannedRun(network, strategy, seed, run_config, budget_run)


def _count_unfrozen_blocks(share: int, blocks: int) -> int:
    return blocks - round(blocks * share / 100)

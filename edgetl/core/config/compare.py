"""Configuration of `edgetl compare`."""

from __future__ import annotations

from dataclasses import dataclass

from edgetl.core.config.options import option, repr_config, validate
from edgetl.core.config.parsers import parse_duration, parse_milliseconds
from edgetl.core.paths import RequiredPath

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

    output: RequiredPath = option(
        help="Experiment folder to write; an unfinished experiment in it is resumed.",
        short="o",
        unset="experiments/<data>",
        basic=True,
    )
    models: tuple[str, ...] = option(
        ("mobilenet_v2", "resnet50"),
        help="Architectures, separated by commas; `edgetl models` lists them.",
        basic=True,
        nonempty="architecture; `edgetl models` lists them",
    )
    strategies: tuple[str, ...] = option(
        ("scratch", "head", "finetune"),
        help="`scratch`: random weights. `head`: frozen backbone. `finetune`: the head, then the "
        "last blocks. `full`: the head, then all blocks. `freeze-sweep`: `finetune` with 0, 1/4, "
        "1/2, 3/4 and all of the blocks frozen.",
        basic=True,
        choices=STRATEGIES,
        nonempty="strategy",
    )
    seeds: int = option(3, help="Runs per strategy, all on the same split.", basic=True, ge=1)
    """The seeds are 0, 1, ..."""
    image_sizes: tuple[int, ...] = option(
        (),
        help="Side of the square input, in pixels.",
        name="image-size",
        unset="the architecture's own",
        metavar="160,224",
        ge=32,
        unit="pixels",
    )
    epochs: int = option(
        16,
        help="Epochs per run, both phases together.",
        basic=True,
        ge=2,
        reason="one for each phase",
    )
    budget_s: float | None = option(
        None,
        help="Time limit per run, instead of --epochs.",
        unset="no limit",
        metavar="30m",
        basic=True,
        parse=parse_duration,
        gt=0,
    )
    """Epochs are then planned from measured steps, up to three times those of the recipe."""
    target_accuracy: float = option(
        0.8,
        help="Validation accuracy for which the time to reach it is reported.",
        gt=0,
        le=1,
    )
    """Training continues after it."""
    latency_budget_ms: float | None = option(
        None,
        help="Time each network on this device first and skip those with a higher p50.",
        unset="no limit",
        metavar="5ms",
        parse=parse_milliseconds,
        gt=0,
    )
    bench: bool = option(True, help="Export and benchmark the recommended run of each network.")

    __repr__ = repr_config

    def __post_init__(self) -> None:
        validate(self)

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

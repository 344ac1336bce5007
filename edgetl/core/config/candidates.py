"""Configuration of `edgetl candidates`."""

from __future__ import annotations

from dataclasses import dataclass

from edgetl.core.config.options import MAX_SEED, check, option, repr_config, validate
from edgetl.core.config.parsers import parse_milliseconds
from edgetl.core.paths import OptionalPath

MIN_IMAGE_SIZE = 32
"""Smallest image size, pixels; the same as for `edgetl finetune --image-size`."""


@dataclass(frozen=True)
class CandidatesConfig:
    """Options of `edgetl candidates`."""

    architectures: tuple[str, ...]
    """Names of torchvision architectures."""
    classes: int = option(10, help="Number of classes of the new head.", basic=True, ge=2)
    image_sizes: tuple[int, ...] = option(
        (),
        help="Sides of the square input, in pixels.",
        name="image-size",
        metavar="160,224",
        unset="the architecture's own",
        basic=True,
        ge=MIN_IMAGE_SIZE,
        unit="pixels",
    )
    latency_budget_ms: float | None = option(
        None,
        help="Largest acceptable p50.",
        metavar="5ms",
        basic=True,
        parse=parse_milliseconds,
        gt=0,
    )
    """For one image, model with preprocessing."""
    threads: int | None = option(
        None, help="Intra-op threads.", unset="available cores", basic=True, ge=1
    )
    provider: str = option(
        "cpu",
        help="Execution provider: cpu, cuda, tensorrt, nv_tensorrt_rtx, ...",
        basic=True,
    )
    rounds: int = option(
        8,
        help="Number of rounds. Each runs every candidate once, in fresh processes and in random "
        "order.",
        basic=True,
        ge=2,
        reason="an interval needs two",
    )
    output: OptionalPath = option(
        None, help="Result file to write.", short="o", unset="a new file in ./bench", basic=True
    )
    seed: int = option(
        0,
        help="Seed for the weights and the order within rounds.",
        command_line=False,
        ge=0,
        le=MAX_SEED,
    )
    force: bool = option(False, help="Allow more threads than available cores.", basic=True)

    __repr__ = repr_config

    def __post_init__(self) -> None:
        validate(
            self,
            [
                check(
                    bool(self.architectures),
                    "{architectures} must name at least one architecture; `edgetl models` lists them.",
                )
            ],
        )

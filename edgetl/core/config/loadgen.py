"""Configuration of `edgetl loadgen`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from edgetl.core.config.options import check, option, repr_config, validate
from edgetl.core.config.parsers import parse_duration, parse_share
from edgetl.core.paths import OptionalPath, RequiredPath

Scenario = Literal["single-stream", "multi-stream", "offline"]
LoadgenMode = Literal["accuracy", "performance"]
LoadgenScope = Literal["model", "image"]
MULTI_STREAM_SAMPLES = 8
"""Samples in each query, by MLPerf's rules."""


@dataclass(frozen=True)
class LoadgenConfig:
    """Options of `edgetl loadgen`."""

    target: RequiredPath
    """Run directory or bundle."""
    scenario: Scenario = option(
        "single-stream",
        help="Scenario: `single-stream`, `multi-stream` or `offline`.",
        basic=True,
    )
    modes: tuple[LoadgenMode, ...] = option(
        get_args(LoadgenMode),
        help="LoadGen's modes; each runs in a separate process.",
        name="mode",
        basic=True,
        nonempty="mode",
    )
    scope: LoadgenScope = option(
        "model",
        help="Input of a query: `model` (tensors) or `image` (decoded images).",
        basic=True,
    )
    batch: int | None = option(
        None,
        help="Images in each call.",
        unset="1 in single-stream and in scope `image`, else 8",
        basic=True,
        ge=1,
    )
    threads: int | None = option(
        None, help="Intra-op threads.", unset="available cores", basic=True, ge=1
    )
    provider: str = option(
        "cpu",
        help="Execution provider: cpu, cuda, tensorrt, nv_tensorrt_rtx, ...",
        basic=True,
    )
    variant: str | None = option(
        None, help="Variant of the bundle.", unset="the recommended one", basic=True
    )
    data: OptionalPath = option(
        None,
        help="Labelled images, one folder per label.",
        metavar="DIR",
        unset="the golden images",
        basic=True,
    )
    min_duration_s: float = option(
        10.0,
        help="LoadGen's min_duration; the MLPerf rules require 10m.",
        metavar="10m",
        basic=True,
        parse=parse_duration,
        gt=0,
        le=86400,
        unit="seconds",
    )
    min_accuracy: float | None = option(
        None,
        help="Fail if the accuracy is below this.",
        metavar="90%",
        unset="100% on golden images, 99% of the accuracy at export on --data",
        basic=True,
        parse=parse_share,
        ge=0,
        le=1,
    )
    output: OptionalPath = option(
        None,
        help="Result file to write.",
        short="o",
        unset="a new file in RUN/bench or ./bench",
        basic=True,
    )
    force: bool = option(False, help="Allow more threads than available cores.", basic=True)

    __repr__ = repr_config

    def __post_init__(self) -> None:
        validate(self, self._find_contradictions())

    def _find_contradictions(self) -> list[str | None]:
        max_batch = {"single-stream": 1, "multi-stream": MULTI_STREAM_SAMPLES}.get(self.scenario)
        batch = 1 if self.batch is None else self.batch
        return [
            check(
                max_batch is None or batch <= max_batch,
                f"{{batch}} must be <= {max_batch} for {{scenario}} {self.scenario}, got {batch}.",
            ),
            check(
                batch <= 1 or self.scope != "image",
                f"{{batch}} must be 1 in scope image, where sizes differ, got {batch}.",
            ),
        ]

    @property
    def call_batch(self) -> int:
        """Images in each call of the runtime."""
        if self.batch is not None:
            return self.batch
        if self.scenario == "single-stream" or self.scope == "image":
            return 1
        return MULTI_STREAM_SAMPLES

    @property
    def query_samples(self) -> int:
        """Images in each query of edgetl's own loop.

        This is a query of LoadGen, or one call in scenario `offline`, where LoadGen issues all
        samples in a single query.
        """
        query_sizes = {"single-stream": 1, "multi-stream": MULTI_STREAM_SAMPLES}
        return query_sizes.get(self.scenario, self.call_batch)

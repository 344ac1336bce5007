"""Configuration of `edgetl loadgen`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from edgetl.core.config.options import check, check_choice, check_minimum, raise_config_errors

Scenario = Literal["single-stream", "multi-stream", "offline"]
LoadgenMode = Literal["accuracy", "performance"]
LoadgenScope = Literal["model", "image"]
MULTI_STREAM_SAMPLES = 8
"""Samples in each query, by MLPerf's rules."""


@dataclass(frozen=True)
class LoadgenConfig:
    """Options of `edgetl loadgen`."""

    target: Path
    """Run directory or bundle."""
    scenario: Scenario = "single-stream"
    modes: tuple[LoadgenMode, ...] = get_args(LoadgenMode)
    """LoadGen's modes; each runs in a separate process."""
    scope: LoadgenScope = "model"
    """Input of a query: tensors or decoded images."""
    batch: int | None = None
    """Images in each call; None is 1 in single-stream and in scope `image`, else 8."""
    threads: int | None = None
    """Intra-op threads; None uses the available cores."""
    provider: str = "cpu"
    variant: str | None = None
    """Variant of the bundle; None is the recommended one."""
    data: Path | None = None
    """Folder with one subfolder for each label; None uses the golden images."""
    min_duration_s: float = 10.0
    """LoadGen's min_duration for the performance run, seconds."""
    min_accuracy: float | None = None
    """Required accuracy; None is 100% for golden images, and 99% of the accuracy at export for
    labeled images."""
    output: Path | None = None
    """Result file to write; None chooses a new name as `edgetl bench` does."""
    force: bool = False
    """Allow more threads than there are cores."""

    def __post_init__(self) -> None:
        max_batch = {"single-stream": 1, "multi-stream": MULTI_STREAM_SAMPLES}.get(self.scenario)
        batch = 1 if self.batch is None else self.batch
        raise_config_errors(
            [
                check_choice("--scenario", self.scenario, Scenario),
                *(check_choice("--mode", mode, LoadgenMode) for mode in self.modes),
                check(
                    bool(self.modes),
                    "--mode must name at least one of accuracy, performance.",
                ),
                # LoadGen loads its samples before timing starts, so files cannot be timed.
                check_choice("--scope", self.scope, LoadgenScope),
                check_minimum("--batch", self.batch, 1),
                check(
                    max_batch is None or batch <= max_batch,
                    f"--batch must be <= {max_batch} for --scenario {self.scenario}, got {batch}.",
                ),
                check(
                    batch <= 1 or self.scope != "image",
                    f"--batch must be 1 in scope image, where sizes differ, got {batch}.",
                ),
                check_minimum("--threads", self.threads, 1),
                check(
                    0 < self.min_duration_s <= 86400,
                    f"--min-duration must be > 0 and at most a day, got {self.min_duration_s:g} s.",
                ),
                check(
                    self.min_accuracy is None or 0 <= self.min_accuracy <= 1,
                    f"--min-accuracy must be 0% to 100%, got {self.min_accuracy}.",
                ),
            ]
        )

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

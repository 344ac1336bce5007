"""Configuration of `edgetl bench --loadgen`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from edgetl.core.config.options import check_choice, raise_config_errors

Scenario = Literal["single-stream", "multi-stream", "offline"]


LoadgenMode = Literal["accuracy", "performance"]


LoadgenScope = Literal["model", "image"]


MULTI_STREAM_SAMPLES = 8
"""Samples of a query, by MLPerf's rules."""


@dataclass(frozen=True)
class LoadgenConfig:
    """Options of `edgetl bench --loadgen`."""

    target: Path
    """A run directory or a bundle."""
    scenario: Scenario
    modes: tuple[LoadgenMode, ...] = get_args(LoadgenMode)
    """LoadGen's modes; each runs in a process of its own."""
    scope: LoadgenScope = "model"
    """What a query is answered from: tensors, or decoded photos."""
    batch: int | None = None
    """Images a call; None takes 1 in single-stream and in scope `image`, else 8."""
    threads: int | None = None
    """Intra-op threads; None takes the cores available."""
    provider: str = "cpu"
    variant: str | None = None
    """The bundle's file; None takes the recommended one."""
    data: Path | None = None
    """A folder of a folder for each label; None takes the bundle's reference images."""
    min_duration_s: float = 10.0
    """LoadGen's min_duration of the performance run."""
    min_accuracy: float | None = None
    """Least share of right answers; None: all for reference images, 99% of the accuracy at export for labelled ones."""
    output: Path | None = None
    """The result file to write; None chooses a new name as `edgetl bench` does."""
    force: bool = False
    """Measure with more threads than there are cores."""

    def __post_init__(self) -> None:
        most = {"single-stream": 1, "multi-stream": MULTI_STREAM_SAMPLES}.get(self.scenario)
        many = self.batch is not None and self.batch > 1
        raise_config_errors(
            [
                check_choice("--loadgen", self.scenario, Scenario),
                *(check_choice("--loadgen-mode", mode, LoadgenMode) for mode in self.modes),
                None
                if self.modes
                else "--loadgen-mode names at least one of accuracy, performance.",
                None
                if self.scope in get_args(LoadgenScope)
                else f"--loadgen takes scope model or image, not {self.scope!r}: LoadGen loads its samples before its clock starts.",
                None
                if self.batch is None or self.batch >= 1
                else f"--batch is at least 1, not {self.batch}.",
                f"--loadgen {self.scenario} asks for {most} at a time: leave --batch at {most} or less."
                if most is not None and self.batch is not None and self.batch > most
                else None,
                "Photos of scope image have sizes of their own: leave --batch at 1."
                if many and self.scope == "image"
                else None,
                None
                if self.threads is None or self.threads >= 1
                else f"--threads is at least 1, not {self.threads}.",
                None
                if 0 < self.min_duration_s <= 86400
                else "--min-duration is above 0 and at most a day.",
                None
                if self.min_accuracy is None or 0 <= self.min_accuracy <= 1
                else "--min-accuracy lies between 0% and 100%.",
            ]
        )

    @property
    def call_batch(self) -> int:
        """Images a call of the runtime."""
        if self.batch is not None:
            return self.batch
        return (
            1 if self.scenario == "single-stream" or self.scope == "image" else MULTI_STREAM_SAMPLES
        )

    @property
    def query_samples(self) -> int:
        """Images that edgetl's own loop times together: a whole query, or one call where LoadGen hands over all samples at once."""
        return {"single-stream": 1, "multi-stream": MULTI_STREAM_SAMPLES}.get(
            self.scenario, self.call_batch
        )

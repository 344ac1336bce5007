"""Configuration of `edgetl bench`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from edgetl.core.config.options import (
    check,
    check_choice,
    check_minimum,
    check_positive,
    raise_config_errors,
)

BenchScope = Literal["model", "image", "file"]
TorchModeName = Literal["eager", "bf16", "fp16", "compile", "cuda-graph", "fp16-cuda-graph"]
SessionMode = Literal["default", "cuda-graph", "no-tf32"]
MAX_BATCH = 4096


@dataclass(frozen=True)
class Limits:
    """Limits that a result is checked against; None is no limit."""

    max_regression: float | None = None
    """Largest relative slowdown of a configuration since the earlier result: 0.05 is 5%."""
    max_p99_ms: float | None = None
    """Largest p99 of the recommended configuration in the first scope, milliseconds.

    It applies to the rows with paced arrivals as well.
    """
    min_speedup: float | None = None
    """Smallest speed-up of the recommended configuration over eager PyTorch."""

    def __post_init__(self) -> None:
        raise_config_errors(
            [
                check(
                    self.max_regression is None or self.max_regression >= 0,
                    f"--max-regression must be >= 0, got {self.max_regression}.",
                ),
                check(
                    self.max_p99_ms is None or self.max_p99_ms > 0,
                    f"--max-p99 must be > 0, got {self.max_p99_ms} ms.",
                ),
                check_positive("--min-speedup", self.min_speedup),
            ]
        )


@dataclass(frozen=True)
class BenchConfig:
    """Options of `edgetl bench`.

    Several batches, threads, providers or variants are a sweep: every combination is measured.
    """

    target: Path
    """Run directory, bundle or single ONNX file."""
    scopes: tuple[BenchScope, ...] = ("model", "file")
    """Timed scopes: tensor to logits, decoded image to label, or encoded file to label."""
    batches: tuple[int, ...] = (1,)
    """Images a call in scope `model`; the other scopes use one."""
    threads: tuple[int, ...] = ()
    """Intra-op threads of every runtime; empty uses the available cores."""
    providers: tuple[str, ...] = ("cpu",)
    """Execution providers of ONNX Runtime."""
    variants: tuple[str, ...] = ()
    """Variants of the bundle to measure; empty measures all."""
    session_modes: tuple[SessionMode, ...] = ("default",)
    """Modes of ONNX Runtime sessions, see `edgetl.device.runtime.session_modes`."""
    torch_modes: tuple[TorchModeName, ...] = ("eager",)
    """PyTorch baselines, see `edgetl.core.config.torch_modes`; empty skips PyTorch."""
    rates: tuple[float, ...] = ()
    """Arrival rates (1/s), measured in addition to the single stream of back-to-back calls."""
    rounds: int = 8
    """Number of rounds; each runs every configuration once, in random order, in fresh processes."""
    sustained_s: float = 0.0
    """Duration of a sustained measurement of the recommended configuration; 0 skips it."""
    profile: bool = False
    """Whether to profile each operator as well, in separate processes."""
    inputs: Path | None = None
    """Inputs of a single ONNX file: a .npy file, or an .npz file with one array for each input."""
    baseline: Path | None = None
    """Earlier result to compare with."""
    any_model: bool = False
    """Whether to compare with an earlier result of another model."""
    limits: Limits = field(default_factory=Limits)
    """Limits that the result is checked against."""
    output: Path | None = None
    """Result file to write; None chooses a new name in RUN/bench or ./bench."""
    seed: int = 0
    """Seed for the order within rounds."""
    force: bool = False
    """Allow more threads than there are cores."""

    def __post_init__(self) -> None:
        raise_config_errors([*self._check_cases(), *self._check_protocol()])

    def _check_cases(self) -> list[str | None]:
        return [
            *(check_choice("--scope", scope, BenchScope) for scope in self.scopes),
            *(check_choice("--session", mode, SessionMode) for mode in self.session_modes),
            check(
                bool(self.session_modes),
                "--session must name at least one of default, cuda-graph, no-tf32.",
            ),
            check(bool(self.scopes), "--scope must name at least one of model, image, file."),
            *(check_choice("--pytorch", mode, TorchModeName) for mode in self.torch_modes),
            *(check_minimum("--threads", count, 1) for count in self.threads),
            *(
                check(1 <= batch <= MAX_BATCH, f"--batch must be 1 to {MAX_BATCH}, got {batch}.")
                for batch in self.batches
            ),
            check(bool(self.batches), "--batch must name at least one number of images."),
            check(bool(self.providers), "--provider must name at least one execution provider."),
            *(check_positive("--rate", rate, " arrivals a second") for rate in self.rates),
        ]

    def _check_protocol(self) -> list[str | None]:
        return [
            check_minimum("--rounds", self.rounds, 2, "an interval needs two"),
            check(
                self.sustained_s == 0 or self.sustained_s >= 10,
                f"--sustained must be at least 10s, got {self.sustained_s:g}s.",
            ),
            check(
                self.limits.max_regression is None or self.baseline is not None,
                "--max-regression needs an earlier result: give --baseline RESULT.json.",
            ),
            check(
                not self.rates or 1 in self.batches,
                "--rate paces single images: leave --batch at 1, or add 1 to it.",
            ),
            check(
                "model" in self.scopes or all(batch <= 1 for batch in self.batches),
                "--batch above 1 needs scope model: add it to --scope.",
            ),
        ]

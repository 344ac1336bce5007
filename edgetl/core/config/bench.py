"""What `edgetl bench` is asked to do: frozen, and checked as a whole."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from edgetl.core.config.options import check_choice, raise_config_errors

BenchScope = Literal["model", "image", "file"]
TorchModeName = Literal["eager", "bf16", "fp16", "compile", "cuda-graph", "fp16-cuda-graph"]
SessionMode = Literal["default", "cuda-graph", "no-tf32"]
MAX_BATCH = 4096


@dataclass(frozen=True)
class Limits:
    """Bounds that a result is judged by; None is no bound."""

    max_regression: float | None = None
    """Largest share by which a configuration may be slower than in the earlier result: 0.05 is 5%."""
    max_p99_ms: float | None = None
    """Largest p99 of the recommended configuration in the first scope, in paced arrivals too, milliseconds."""
    min_speedup: float | None = None
    """Least speed-up over eager PyTorch of the recommended configuration."""

    def __post_init__(self) -> None:
        raise_config_errors(
            [
                None
                if self.max_regression is None or self.max_regression >= 0
                else "--max-regression is at least 0%.",
                None if self.max_p99_ms is None or self.max_p99_ms > 0 else "--max-p99 is above 0.",
                None
                if self.min_speedup is None or 0 < self.min_speedup < math.inf
                else "--min-speedup is a number above 0.",
            ]
        )


@dataclass(frozen=True)
class BenchConfig:
    """Options of `edgetl bench`. Several batches, threads, providers or variants make a sweep: every combination is measured."""

    target: Path
    """A run directory, a bundle, or one ONNX file."""
    scopes: tuple[BenchScope, ...] = ("model", "file")
    """What is timed: tensors to logits, a decoded image to its label, or an encoded file to its label."""
    batches: tuple[int, ...] = (1,)
    """Images a call, in scope `model`; the other scopes take one."""
    threads: tuple[int, ...] = ()
    """Intra-op threads of every runtime; none takes the cores available."""
    providers: tuple[str, ...] = ("cpu",)
    """ONNX Runtime's execution providers."""
    variants: tuple[str, ...] = ()
    """Variants of the bundle to measure; none takes all."""
    session_modes: tuple[SessionMode, ...] = ("default",)
    """Ways to run ONNX Runtime's sessions, by provider options (`edgetl.device.runtime.session_modes`)."""
    torch_modes: tuple[TorchModeName, ...] = ("eager",)
    """The PyTorch baselines (`edgetl.core.config.torch_modes`); none leaves PyTorch out."""
    rates: tuple[float, ...] = ()
    """Arrivals a second: each is measured beside the single stream, in which a call follows on the one before."""
    rounds: int = 8
    """Rounds; each runs every configuration once, in random order, in a fresh process."""
    sustained_s: float = 0.0
    """How long the recommended configuration is measured without a pause, after the rounds; 0 leaves it out."""
    profile: bool = False
    """Whether to measure each operator as well, in processes of their own."""
    inputs: Path | None = None
    """For a lone ONNX file: a .npy file with its input, or an .npz file with one array for each of its inputs."""
    baseline: Path | None = None
    """An earlier result to compare with."""
    any_model: bool = False
    """Whether to compare with the earlier result though it measured another model."""
    limits: Limits = field(default_factory=Limits)
    """What the result must keep to."""
    output: Path | None = None
    """The result file to write; None chooses a new name in the run's bench/ folder, or in bench/ under the current folder."""
    seed: int = 0
    """Seed of the order within rounds."""
    force: bool = False
    """Measure with more threads than there are cores."""

    def __post_init__(self) -> None:
        raise_config_errors(
            [
                *(check_choice("--scope", scope, BenchScope) for scope in self.scopes),
                *(check_choice("--session", mode, SessionMode) for mode in self.session_modes),
                None
                if self.session_modes
                else "--session names at least one of default, cuda-graph, no-tf32.",
                None if self.scopes else "--scope names at least one of model, image, file.",
                *(check_choice("--pytorch", mode, TorchModeName) for mode in self.torch_modes),
                *(
                    None if count >= 1 else f"--threads is at least 1, not {count}."
                    for count in self.threads
                ),
                *(
                    None
                    if 1 <= count <= MAX_BATCH
                    else f"--batch is 1 to {MAX_BATCH}, not {count}."
                    for count in self.batches
                ),
                None if self.batches else "--batch names at least one number of images.",
                None if self.providers else "--provider names at least one execution provider.",
                *(
                    None
                    if 0 < rate < math.inf
                    else f"--rate is above 0 arrivals a second, not {rate:g}."
                    for rate in self.rates
                ),
                None
                if self.rounds >= 2
                else f"--rounds is at least 2 (an interval needs it), not {self.rounds}.",
                None
                if self.sustained_s == 0 or self.sustained_s >= 10
                else "--sustained is at least 10s.",
                "--max-regression compares with --baseline RESULT.json: give one."
                if self.limits.max_regression is not None and self.baseline is None
                else None,
                "--rate paces single images: leave --batch at 1, or add 1 to it."
                if self.rates and 1 not in self.batches
                else None,
                "--batch above 1 is measured in scope model: add it to --scope."
                if "model" not in self.scopes and any(count > 1 for count in self.batches)
                else None,
            ]
        )
